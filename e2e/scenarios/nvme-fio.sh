# fio verifies in a guest what it has written, with checksums: mixed sizes at random places, two jobs at depth 16, on as
# many queues as Linux makes for processors that could come; one image past the page cache, one through it.
. "$(dirname "$0")/../scenario.sh"
"$HARNESS_DIR/build-fio.sh" || { echo "there is no fio for guests"; exit 77; }
truncate -s 8M "$WORK/direct.img" "$WORK/buffered.img"
start_server "
[device.direct]
model = \"nvme\"
socket = { path = \"$WORK/direct.sock\" }
options = { file = \"$WORK/direct.img\", serial = \"DIRECT\" }
[device.buffered]
model = \"nvme\"
socket = { path = \"$WORK/buffered.sock\" }
options = { file = \"$WORK/buffered.img\", serial = \"BUFFERED\", direct = false }" direct.sock buffered.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core
guest vm '
modprobe nvme
for disk in 0 1; do wait_for test -b /dev/nvme${disk}n1; done
echo "queues $(cat /sys/class/nvme/nvme?/queue_count | tr "\n" " ")"
for disk in /dev/nvme?n1; do
    fio --name=verify --filename=$disk --direct=1 --ioengine=io_uring --iodepth=16 --numjobs=2 --size=4M \
        --offset_increment=4M --rw=randwrite --bsrange=512-128k --fsync=32 --verify=crc32c --verify_fatal=1 \
        --group_reporting --thread || exit 1
done
echo "fio: all well"
' --smp 2,maxcpus=16 --initramfs "$WORK/initramfs" --file "${VFIOD_E2E_FIO:-$CACHE_DIR/fio}:/usr/bin/fio" \
    --socket "$WORK/direct.sock" --socket "$WORK/buffered.sock"
cat "$WORK/vm.out"
grep -q "fio: all well" "$WORK/vm.out"
stop_server
