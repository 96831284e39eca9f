# The host holds the disk's writes for longer than Linux waits for a command: the guest aborts, resets the controller,
# which waits for what the disk still has, and goes on when the host does. Nothing is lost. The image's file system is
# frozen for that, which root can do. VFIOD_IO_TIMEOUT is how many seconds Linux waits (3; by itself 30).
. "$(dirname "$0")/../scenario.sh"
[ "$(id -u)" = 0 ] || { echo "only root can freeze a file system"; exit 77; }
mkdir "$WORK/held"
truncate -s 64M "$WORK/held.img"
rootfs_program /usr/sbin/mke2fs -q -t ext4 -F "$WORK/held.img"
mount -o loop "$WORK/held.img" "$WORK/held" || { echo "no loop device can be mounted here"; exit 77; }
freeze() { "${VFIOD_E2E_BUSYBOX:-$ROOTFS/usr/bin/busybox}" fsfreeze "$1" "$WORK/held"; }
UNDO=(freeze --unfreeze)
truncate -s 16M "$WORK/held/disk.img"
start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/held/disk.img\" }" disk.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core

guest vm '
modprobe nvme
wait_for test -b /dev/nvme0n1
blocks write /dev/nvme0n1 3 1 /tmp/table /tmp/stop >/tmp/out &
pid=$!
has_written() { [ "$(grep -c "has written" /tmp/out)" = 3 ]; }
# More often than before: on a busy machine a command may take that long by itself.
said() { dmesg | grep -c "$1"; }
says_more() { [ "$(said "$1")" -gt $2 ]; }
is_live() { [ "$(cat /sys/class/nvme/nvme0/state)" = live ]; }
wait_for has_written
aborts=$(said "timeout, abort") resets=$(said "timeout, reset controller") queues=$(said "nvme nvme0: .*queues")
echo "writing"
wait_for says_more "timeout, abort" $aborts
wait_for says_more "timeout, reset controller" $resets
echo "resetting"
wait_for says_more "nvme nvme0: .*queues" $queues # told at first, and after each reset
wait_for is_live
touch /tmp/stop
wait $pid || fail "$(cat /tmp/out)"
blocks check /dev/nvme0n1 /tmp/table || fail "after the reset"
dmesg | grep "nvme nvme0"
echo "recovered: all well"
' --append "nvme_core.io_timeout=${VFIOD_IO_TIMEOUT:-3}" --initramfs "$WORK/initramfs" --file "$CACHE_DIR/guest-blocks:/usr/bin/blocks" --socket "$WORK/disk.sock" &
vm=$!
said vm "^writing"
freeze --freeze
said vm "^resetting"
freeze --unfreeze
wait "$vm"
cat "$WORK/vm.out"
grep -q "recovered: all well" "$WORK/vm.out"
stop_server
