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
i=0
while [ "$(devmem $bar 32)" != 0xFFFFFFFF ]; do
    i=$((i + 1)); [ $i -lt 1200 ] || exit 1
    sleep 0.1
done
echo "the guest lives"
' --socket "$WORK/edu.captured" &
vm=$!
said vm "the server may stop"
stop_server
wait "$vm"
grep -q "the guest lives" "$WORK/vm.out"
