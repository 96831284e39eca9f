# A guest's disk is an NVMe controller with an image: Linux makes a file system, fills it, gives space back,
# reboots, and finds everything. Afterwards the image is the file system, for any other tool.
. "$(dirname "$0")/../scenario.sh"
truncate -s 256M "$WORK/disk.img"
UUID=6d3a4e0c-5f4b-4d57-9a3e-0f6f6c1d2b7a
start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/disk.img\", serial = \"E2E-1\", uuid = \"$UUID\" }" disk.sock

guest vm '
set -e
modprobe nvme
wait_for test -b /dev/nvme0n1
name=$(cat /sys/class/nvme/nvme0/serial | tr -d " ")
echo "disk $name $(cat /sys/block/nvme0n1/uuid) of $(cat /sys/block/nvme0n1/size) sectors"
echo "queues $(cat /sys/class/nvme/nvme0/queue_count), cache $(cat /sys/block/nvme0n1/queue/write_cache)"
mkdir -p /mnt
if ! mount -t ext4 /dev/nvme0n1 /mnt 2>/dev/null; then
    echo "first boot"
    mke2fs /dev/nvme0n1 >/dev/null
    mount -t ext4 /dev/nvme0n1 /mnt
    dd if=/dev/urandom of=/mnt/data bs=1M count=24 2>/dev/null
    dd if=/dev/urandom of=/mnt/odd bs=777 count=99 2>/dev/null
    dd if=/dev/zero of=/mnt/gone bs=1M count=64 2>/dev/null
    (cd /mnt; sha256sum data odd >sums)
    sync
    rm /mnt/gone
    sync
    fstrim /mnt
    reboot -f
    sleep 60
fi
echo "second boot"
(cd /mnt; sha256sum -c sums)
umount /mnt
dd if=/dev/nvme0n1 of=/dev/null bs=1M iflag=direct 2>/dev/null
echo "all of it was read"
' --reboot --smp 2 --socket "$WORK/disk.sock"
cat "$WORK/vm.out"
grep -q "disk E2E-1 $UUID of 524288 sectors" "$WORK/vm.out"
grep -q "queues 3, cache write back" "$WORK/vm.out"
grep -q "first boot" "$WORK/vm.out"
grep -q "second boot" "$WORK/vm.out"
grep -q "data: OK" "$WORK/vm.out"
grep -q "odd: OK" "$WORK/vm.out"
grep -q "all of it was read" "$WORK/vm.out"
stop_server
# The file that was removed has given its 64 MiB back: what is left is 24 MiB and the file system's own.
[ $(($(stat -c %b "$WORK/disk.img") / 2048)) -lt 48 ]
# Who the disk is was kept, from inside the sandbox.
grep -q E2E-1 "$WORK/disk.img.vfiod"
if command -v e2fsck >/dev/null; then e2fsck -fn "$WORK/disk.img"; fi
