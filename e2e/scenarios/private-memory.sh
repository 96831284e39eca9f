# Guest memory that cannot be mapped: the server reaches it by messages.
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture edu edu.sock edu
guest vm 'modprobe uio_pci_generic; edu uio' --socket "$WORK/edu.captured" --private-memory
cat "$WORK/vm.out"
grep -q "edu: all well" "$WORK/vm.out"
stop_server
