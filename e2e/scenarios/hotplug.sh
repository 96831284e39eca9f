# A device is unplugged from a running guest and plugged in again; the guest gets a disk, too. Each is asked of
# QEMU by vfiod. The disk has MSI-X, so that taking it back is refused: QEMU would abort.
. "$(dirname "$0")/../scenario.sh"
truncate -s 16M "$WORK/disk.img"
start_server "$(device_config edu)
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/disk.img\", serial = \"PLUGGED\" }
[control]
socket = \"$WORK/api.sock\"" edu.sock disk.sock api.sock
capture first edu.sock edu
capture second edu.sock edu
export VFIOD_CONTROL=$WORK/api.sock

guest vm '
modprobe uio_pci_generic
modprobe nvme
edu uio || exit 1
echo "ready to unplug"
has_edu() { lspci -n | grep -q 1234:11e8; }
has_none() { ! has_edu; }
wait_for has_none
echo "unplugged"
wait_for has_edu
echo "plugged in"
device=/sys/bus/pci/devices/$(lspci -Dn -d 1234:11e8 | cut -d" " -f1)
# Made once its BARs have addresses. Drivers may have it a moment later.
wait_for test -e $device/resource0
has_driver() {
    echo uio_pci_generic >$device/driver_override
    echo ${device##*/} >/sys/bus/pci/drivers_probe
    [ -e $device/driver ]
}
wait_for has_driver
edu uio || exit 1
echo "ready for a disk"
wait_for test -b /dev/nvme0n1
echo "disk $(cat /sys/class/nvme/nvme0/serial)"
echo written | dd of=/dev/nvme0n1 bs=4096 conv=sync oflag=direct 2>/dev/null
# The host has tried to take it back by then, and lets it grow to say so.
wait_for is_file_with /sys/block/nvme0n1/size 65536
' --socket "$WORK/first.captured" --root-port --qmp "$WORK/qmp" \
    -- -device pcie-root-port,id=spare,chassis=9,slot=9 &
vm=$!
said vm "ready to unplug"
# It is attached by the socket of the capture, under which no daemon knows it.
"$VFIOD" detach --qmp "$WORK/qmp" edu --id dev0 --timeout 120s
said vm "^unplugged"
logged "connection ended"
"$VFIOD" attach --qmp "$WORK/qmp" "$WORK/second.captured" --id dev1 --bus port0
said vm "ready for a disk"
# The root bus of q35 takes nothing while the machine runs.
not "$VFIOD" attach --qmp "$WORK/qmp" disk --bus pcie.0 2>"$WORK/refusal"
cat "$WORK/refusal"
grep -q "does not support hotplugging; free are: spare; --bus names one" "$WORK/refusal"
[ "$("$VFIOD" attach --qmp "$WORK/qmp" disk)" = "disk: attached as \`disk\` at \`spare\`" ]
not "$VFIOD" detach --qmp "$WORK/qmp" disk 2>"$WORK/refusal"
cat "$WORK/refusal"
grep -q "disk has MSI-X, and QEMU" "$WORK/refusal"
"$VFIOD" namespace resize disk 1 --size 32M
wait "$vm"
cat "$WORK/vm.out"
[ "$(grep -c "edu: all well" "$WORK/vm.out")" = 2 ]
grep -q "^disk PLUGGED" "$WORK/vm.out"
[ "$(head -c 7 "$WORK/disk.img")" = written ]
stop_server
