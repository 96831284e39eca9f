# The device is unplugged from a running guest and plugged in again.
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture first edu.sock edu
capture second edu.sock edu

guest vm '
modprobe uio_pci_generic
edu uio || exit 1
echo "ready to unplug"
while lspci -n | grep -q 1234:11e8; do sleep 0.2; done
echo "unplugged"
while ! lspci -n | grep -q 1234:11e8; do sleep 0.2; done
echo "plugged in"
device=$(lspci -Dn -d 1234:11e8 | cut -d" " -f1)
# Made once its BARs have addresses. Drivers may have it a moment later.
until [ -e /sys/bus/pci/devices/$device/resource0 ]; do sleep 0.1; done
sleep 1
edu uio
' --socket "$WORK/first.captured" --root-port --qmp "$WORK/qmp" &
vm=$!
said vm "ready to unplug"
qmp '{"execute":"device_del","arguments":{"id":"dev0"}}'
said vm "^unplugged"
logged "connection ended"
qmp '{"execute":"device_add","arguments":{"driver":"vfio-user-pci","id":"dev1","bus":"port0","socket":{"type":"unix","path":"'"$WORK"'/second.captured"}}}'
wait "$vm"
cat "$WORK/vm.out"
[ "$(grep -c "edu: all well" "$WORK/vm.out")" = 2 ]
stop_server
