# kill -9 of QEMU in the midst of DMA; then a fresh QEMU on the same socket.
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture first edu.sock edu
capture second edu.sock edu

guest first 'modprobe uio_pci_generic; edu dma-forever' \
    --socket "$WORK/first.captured" --pid "$WORK/pid" &
first=$!
said first "DMA until the end"
kill -9 "$(cat "$WORK/pid")"
logged "connection ended"
wait "$first" || true # 125: it ended without a word

guest second 'modprobe uio_pci_generic; edu uio' --socket "$WORK/second.captured"
cat "$WORK/second.out"
grep -q "edu: all well" "$WORK/second.out"
stop_server
