# The session of a guest is captured between QEMU and the server. A capture that was cut off is
# replayed as far as it goes. (Other scenarios capture and replay theirs whole.)
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture edu edu.sock edu
guest vm 'modprobe uio_pci_generic; edu uio' --socket "$WORK/edu.captured"
cat "$WORK/vm.out"
grep -q "edu: all well" "$WORK/vm.out"
stop_server
cat "$WORK/edu.capture.out"
grep -q "contains guest data" "$WORK/edu.capture.out"

size=$(stat -c %s "$WORK/edu.capture")
for percent in 5 30 60 90; do
    head -c $((size * percent / 100)) "$WORK/edu.capture" >"$WORK/part.capture"
    "$VFIOD" replay "$WORK/part.capture" --device edu --rebuild | tee "$WORK/part.out"
    grep -q truncated "$WORK/part.out"
done
