# A session of a guest is captured between QEMU and the server, and replays without a difference.
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
"$VFIOD" capture "$WORK/edu.sock" "$WORK/edu.capture" --listen "$WORK/captured.sock" \
    >"$WORK/capture.out" &
capture=$!
wait_for "the capture's socket" test -S "$WORK/captured.sock"
guest vm 'modprobe uio_pci_generic; edu uio' --socket "$WORK/captured.sock"
cat "$WORK/vm.out"
grep -q "edu: all well" "$WORK/vm.out"
wait "$capture"
cat "$WORK/capture.out"
grep -q "contains guest data" "$WORK/capture.out"
stop_server

"$VFIOD" replay "$WORK/edu.capture" --device edu
# One that was cut off says so.
head -c $(($(stat -c %s "$WORK/edu.capture") / 2)) "$WORK/edu.capture" >"$WORK/part.capture"
"$VFIOD" replay "$WORK/part.capture" --device edu | tee "$WORK/part.out"
grep -q truncated "$WORK/part.out"
