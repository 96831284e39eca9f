#!/usr/bin/env bash
# Reads 4 KiB at random places in a guest of one processor, in turns from a disk that vfiod serves and from
# QEMU's own NVMe controllers, as it is by default and with ioeventfd, each with an image on tmpfs, and prints
# what each has done. Not a scenario: nothing is judged.
#
# usage: VFIOD=PROGRAM compare-disks.sh [ROUNDS] [SECONDS]      (5 rounds of 3 seconds)
. "$(dirname "${BASH_SOURCE[0]}")/scenario.sh"
rounds=${1:-5} seconds=${2:-3}
images=$(mktemp -d -p /dev/shm)
UNDO=(rm -rf "$images")
"${CC:-cc}" -O1 -Wall -Werror -static -o "$WORK/reads" "$HARNESS_DIR/guest/reads.c"
for image in vfiod qemu ioeventfd; do
    head -c 268435456 /dev/urandom >"$images/$image"
done
chmod 777 "$images"
chmod 666 "$images"/*
start_server "
poll = \"50us\"
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$images/vfiod\", serial = \"vfiod\" }" disk.sock

cat "$GUEST_LIB" - >"$WORK/vm.sh" <<END
modprobe nvme
for n in 0 1 2; do wait_for test -b /dev/nvme\${n}n1; done
for round in \$(seq $rounds); do
    for depth in 1 32; do
        for disk in /dev/nvme?; do
            name=\$(cat /sys/class/nvme/\${disk##*/}/serial | tr -d ' ')
            echo "disk \$name depth \$depth: \$(reads \${disk}n1 \$depth $seconds)"
        done
    done
done
END
"$HARNESS_DIR/run-guest.sh" --script "$WORK/vm.sh" --timeout 0 --socket "$WORK/disk.sock" --file "$WORK/reads:/usr/bin/reads" -- \
    -blockdev "driver=file,node-name=a,filename=$images/qemu,cache.direct=on,aio=io_uring" \
    -blockdev "driver=file,node-name=b,filename=$images/ioeventfd,cache.direct=on,aio=io_uring" \
    -device nvme,drive=a,serial=qemu -device nvme,drive=b,serial=ioeventfd,ioeventfd=on \
    >"$WORK/vm.out" 2>&1 || { cat "$WORK/vm.out"; exit 1; }
tr -d '\r' <"$WORK/vm.out" | grep '^disk ' >"$WORK/figures"
# Medians of the rounds, and their spread.
for depth in 1 32; do
    for disk in vfiod qemu ioeventfd; do
        sed -n "s/^disk $disk depth $depth: reads \([0-9]*\) a second, median \([0-9.]*\) us$/\1 \2/p" "$WORK/figures" |
            sort -n | awk -v name="$disk, depth $depth" '
                { iops[NR] = $1; latency[NR] = $2 }
                END { printf "%-24s%8d reads a second (%d to %d), median %.1f us\n", name,
                      iops[int((NR + 1) / 2)], iops[1], iops[NR], latency[int((NR + 1) / 2)] }'
    done
done
stop_server
