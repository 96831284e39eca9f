# kill -9 of a QEMU whose guest writes to a file system, with memory that is reached by message: the other VM of the same
# daemon notices nothing, and the same disk, in a QEMU of its own, has every file that was synced.
. "$(dirname "$0")/../scenario.sh"
truncate -s 128M "$WORK/mine.img"
truncate -s 2M "$WORK/other.img"
start_server "
[device.mine]
model = \"nvme\"
socket = { path = \"$WORK/mine.sock\" }
options = { file = \"$WORK/mine.img\" }
[device.other]
model = \"nvme\"
socket = { path = \"$WORK/other.sock\" }
options = { file = \"$WORK/other.img\" }" mine.sock other.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core --module ext4 \
    --tool /usr/sbin/mke2fs --tool /usr/sbin/e2fsck

disk='
modprobe -a nvme ext4
wait_for test -b /dev/nvme0n1
mkdir -p /mnt
'
guest other "$disk"'
has_written_or_ended() { [ "$(grep -c "has written" /tmp/out)" -ge 2 ] || ! kill -0 $1; }
n=0
while true; do
    n=$((n + 1))
    rm -f /tmp/stop /tmp/out
    blocks write /dev/nvme0n1 2 $n /tmp/table /tmp/stop >/tmp/out &
    wait_for has_written_or_ended $!
    touch /tmp/stop
    wait $! && blocks check /dev/nvme0n1 /tmp/table >>/tmp/out || { cat /tmp/out; exit 1; }
    # The next round begins with an empty disk.
    dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=2 oflag=direct 2>/dev/null || exit 1
    echo "round $n"
done
' --initramfs "$WORK/initramfs" --file "$CACHE_DIR/guest-blocks:/usr/bin/blocks" \
    --socket "$WORK/other.sock" --pid "$WORK/other.pid" &
other=$!
guest mine "$disk"'
# Not busybox'"'"'s.
/usr/bin/mke2fs -q -t ext4 /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt || exit 1
n=0
while true; do
    n=$((n + 1))
    dd if=/dev/urandom of=/mnt/file.$n bs=40k count=4 conv=fsync 2>/dev/null
    sync
    echo "synced file.$n $(sha256sum </mnt/file.$n) end"
    [ $n -le 20 ] || rm /mnt/file.$((n - 20))
done
' --private-memory --initramfs "$WORK/initramfs" --socket "$WORK/mine.sock" --pid "$WORK/pid" &
mine=$!
said mine "synced file.6 .* end"
said other "round 1"
kill -9 "$(cat "$WORK/pid")"
rounds=$(grep -c "^round" "$WORK/other.out")
logged "connection ended.*mine"
wait "$mine" || true # 125: it ended without a word

guest again "$disk"'
set -e
mount -t ext4 /dev/nvme0n1 /mnt
cd /mnt
for file in file.*; do echo "found $file $(sha256sum <$file) end"; done
cd /
umount /mnt
/usr/bin/e2fsck -fn /dev/nvme0n1
' --initramfs "$WORK/initramfs" --socket "$WORK/mine.sock"
tr -d '\r' <"$WORK/again.out" | grep '^found' | cut -d ' ' -f 2,3 | sort >"$WORK/found"
tr -d '\r' <"$WORK/mine.out" | grep '^synced .* end$' | cut -d ' ' -f 2,3 | tail -n 18 | sort >"$WORK/synced"
cat "$WORK/again.out"
[ "$(wc -l <"$WORK/synced")" -ge 6 ]
[ -z "$(comm -13 "$WORK/found" "$WORK/synced")" ]
# The round in which the kill was, and one after it.
said other "round $((rounds + 2))"
kill "$(cat "$WORK/other.pid")"
wait "$other" || true # it would go on for ever
not grep -q "blocks: " "$WORK/other.out" # which it says when something is wrong
stop_server
