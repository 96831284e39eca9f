# An operator takes the second disk of a running VM away under I/O, and gives it back, three times in a row: what the
# guest had under way ends with an error, and the disk is there again, with what was written before. The first disk
# grows under I/O: the guest sees it without a reset, and loses nothing.
. "$(dirname "$0")/../scenario.sh"
truncate -s 8M "$WORK/first.img" "$WORK/second.img"
start_server "
[control]
socket = { path = \"$WORK/api.sock\" }
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/first.img\", files = [\"$WORK/second.img\"] }" disk.sock api.sock
export VFIOD_CONTROL=$WORK/api.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core

guest vm '
modprobe nvme
# Linux looks at the namespaces side by side, and gives out names in the order in which it is ready with them.
name_of() { for disk in /sys/block/nvme0n*; do [ "$(cat $disk/nsid 2>/dev/null)" = $1 ] && echo ${disk##*/} && return; done; }
is_there() { [ -n "$(name_of $1)" ] && [ -b /dev/$(name_of $1) ]; }
is_gone() { [ -z "$(name_of $1)" ]; }
has_written() { [ "$(grep -c "has written" /tmp/$1.out)" -ge $2 ]; }
has_sectors() { [ "$(cat /sys/block/$one/size)" = $1 ]; }
wait_for is_there 1
wait_for is_there 2
one=$(name_of 1)
blocks write /dev/$one 2 1 /tmp/first /tmp/stop >/tmp/first.out &
first=$!
wait_for has_written first 2
dd if=/dev/urandom of=/tmp/data bs=64k count=1 2>/dev/null
for round in 1 2 3; do
    wait_for is_there 2
    two=$(name_of 2)
    if [ $round != 1 ]; then
        dd if=/dev/$two of=/tmp/read bs=64k count=1 iflag=direct 2>/dev/null || fail "reading what was kept"
        cmp /tmp/data /tmp/read || fail "the disk has lost what was written before it was taken away"
    fi
    dd if=/dev/zero of=/dev/$two bs=1M oflag=direct 2>/dev/null
    rm -f /tmp/second.out
    blocks write /dev/$two 2 $round /tmp/second /tmp/never >/tmp/second.out &
    pid=$!
    wait_for has_written second 2
    echo "taken $round"
    wait $pid && fail "no command has failed"
    # Linux ends what it has not sent yet as behind the end of a disk of no size: a read has no bytes then.
    grep -qE "blocks: (writing|reading) .*: (-1|0)," /tmp/second.out || fail "$(cat /tmp/second.out)"
    wait_for is_gone 2
    echo "gone $round"
    wait_for is_there 2
    two=$(name_of 2)
    dd if=/tmp/data of=/dev/$two bs=64k oflag=direct 2>/dev/null || fail "writing to what came back"
    echo "back $round"
done
wait_for has_sectors 65536
dd if=/tmp/data of=/dev/$one bs=64k seek=511 oflag=direct 2>/dev/null || fail "writing behind the old end"
dd if=/dev/$one of=/tmp/read bs=64k skip=511 iflag=direct 2>/dev/null || fail "reading behind the old end"
cmp /tmp/data /tmp/read || fail "behind the old end"
touch /tmp/stop
wait $first || fail "$(cat /tmp/first.out)"
dmesg | grep -E "nvme.*(timeout, |resetting|controller is down)" && fail "the controller was reset"
echo "namespaces: all well"
' --append "nvme_core.io_timeout=180 nvme_core.admin_timeout=180" --initramfs "$WORK/initramfs" \
    --file "$CACHE_DIR/guest-blocks:/usr/bin/blocks" --socket "$WORK/disk.sock" &
vm=$!
for round in 1 2 3; do
    said vm "^taken $round"
    "$VFIOD" namespace remove disk 2
    said vm "^gone $round"
    # Its image was free when the removal had returned.
    "$VFIOD" namespace add disk "$WORK/second.img"
    said vm "^back $round"
done
"$VFIOD" namespace resize disk 1 --size 32M
wait "$vm"
cat "$WORK/vm.out"
grep -q "namespaces: all well" "$WORK/vm.out"
stop_server
