# QEMU waits for every write (x-no-posted-writes=on).
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture edu edu.sock edu
guest vm 'modprobe uio_pci_generic; edu uio' \
    --socket "$WORK/edu.captured" --prop x-no-posted-writes=true
grep -q "edu: all well" "$WORK/vm.out"
stop_server
