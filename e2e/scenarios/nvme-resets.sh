# A guest with an IOMMU resets its disk under I/O: by Linux's reset of the controller, by function-level reset; it
# removes the other disk under I/O, and finds it again. Nothing is lost, and who the two disks are stays, also when the
# daemon starts anew in between.
. "$(dirname "$0")/../scenario.sh"
truncate -s 16M "$WORK/one.img" "$WORK/two.img"
config="
[device.one]
model = \"nvme\"
socket = { path = \"$WORK/one.sock\" }
options = { file = \"$WORK/one.img\" }
[device.two]
model = \"nvme\"
socket = { path = \"$WORK/two.sock\" }
options = { file = \"$WORK/two.img\" }"
# The names are made with the disk, and kept.
start_server "$config" one.sock two.sock
stop_server
grep -h serial "$WORK/one.img.vfiod" "$WORK/two.img.vfiod" >"$WORK/serials"
start_server "$config" one.sock two.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core

guest vm '
modprobe nvme
one=/sys/bus/pci/devices/0000:00:01.0 two=/sys/bus/pci/devices/0000:00:02.0
disk() { ls $1/nvme/nvme*/ 2>/dev/null | grep -o "^nvme[0-9]*n[0-9]*$"; }
has_disk() { [ -n "$(disk $1)" ] && [ -b /dev/$(disk $1) ]; }
is_live() { [ "$(cat $1/nvme/nvme*/state 2>/dev/null)" = live ]; }
has_written() { [ "$(grep -c "has written" /tmp/$1.out)" -ge $2 ]; }
wait_for has_disk $one
wait_for has_disk $two
names() { for of in $one $two; do echo "$(cat $of/nvme/nvme*/serial) $(cat /sys/block/$(disk $of)/wwid)"; done; }
names >/tmp/names
[ $(sort -u /tmp/names | wc -l) = 2 ] || fail "both disks have one name: $(cat /tmp/names)"
cat /tmp/names | sed "s/^/named /"
[ -e $one/iommu_group ] || fail "no IOMMU"
echo "queues $(cat $one/nvme/nvme*/queue_count)"

blocks write /dev/$(disk $one) 3 1 /tmp/table /tmp/stop >/tmp/one.out &
pid=$!
wait_for has_written one 3
for n in 1 2 3; do
    echo 1 >$(echo $one/nvme/nvme*)/reset_controller || fail "reset of the controller"
    wait_for is_live $one
done
echo flr >$one/reset_method || fail "no function-level reset"
for n in 1 2 3; do
    echo 1 >$one/reset || fail "function-level reset"
    wait_for is_live $one
done
touch /tmp/stop
wait $pid || fail "$(cat /tmp/one.out)"
cat /tmp/one.out
echo "resets: all well"

blocks write /dev/$(disk $two) 3 2 /tmp/table.two /tmp/never >/tmp/two.out &
pid=$!
wait_for has_written two 3
echo 1 >$two/remove
wait $pid && fail "no I/O has failed"
echo 1 >/sys/bus/pci/rescan
wait_for has_disk $two
dd if=/dev/$(disk $two) of=/dev/null bs=1M iflag=direct 2>/dev/null || fail "reading after the removal"
blocks check /dev/$(disk $one) /tmp/table || fail "the other disk has changed"
names | diff /tmp/names - || fail "other names"
echo "removed and found: all well"
' --smp 2,maxcpus=16 --iommu --initramfs "$WORK/initramfs" --file "$CACHE_DIR/guest-blocks:/usr/bin/blocks" \
    --socket "$WORK/one.sock" --socket "$WORK/two.sock"
cat "$WORK/vm.out"
grep -q "resets: all well" "$WORK/vm.out"
grep -q "removed and found: all well" "$WORK/vm.out"
logged "function-level reset"
stop_server
# The guest has seen what was made with the disks.
cat "$WORK/serials"
while read -r line; do
    serial=$(grep -oE '[0-9A-Za-z-]{8,}' <<<"$line" | tail -n 1)
    grep -q "named .*$serial" "$WORK/vm.out"
done <"$WORK/serials"
[ "$(wc -l <"$WORK/serials")" = 2 ]
