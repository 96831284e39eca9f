# The server is told to stop while a guest uses a device: it exits 0, the guest lives on and reads
# all ones.
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture edu edu.sock edu
guest vm '
modprobe uio_pci_generic
edu uio || exit 1
bar=$(setpci -d 1234:11e8 BASE_ADDRESS_0 | sed "s/^/0x/")
echo "the server may stop"
has_all_ones() { [ "$(devmem $bar 32)" = 0xFFFFFFFF ]; }
wait_for has_all_ones
echo "the guest lives"
' --socket "$WORK/edu.captured" &
vm=$!
said vm "the server may stop"
stop_server
wait "$vm"
grep -q "the guest lives" "$WORK/vm.out"
