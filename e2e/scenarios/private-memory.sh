# Guest memory that cannot be mapped: the server reaches it by messages. Pieces of a disk's data may be as long as a
# huge page: QEMU loses the rest of a reply that its socket does not take at once.
. "$(dirname "$0")/../scenario.sh"
truncate -s 8M "$WORK/disk.img"
start_server "$(device_config edu)
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/disk.img\" }" edu.sock disk.sock
capture edu edu.sock edu
guest vm '
modprobe uio_pci_generic
edu uio || exit 1
modprobe nvme
wait_for test -b /dev/nvme0n1
echo always >/sys/kernel/mm/transparent_hugepage/enabled
dd if=/dev/urandom of=/tmp/data bs=4M count=1 2>/dev/null
dd if=/tmp/data of=/dev/nvme0n1 bs=4M oflag=direct 2>/dev/null || exit 1
dd if=/dev/nvme0n1 of=/tmp/read bs=4M count=1 iflag=direct 2>/dev/null || exit 1
cmp /tmp/data /tmp/read && echo "disk: all well"
' --socket "$WORK/edu.captured" --socket "$WORK/disk.sock" --private-memory
cat "$WORK/vm.out"
grep -q "edu: all well" "$WORK/vm.out"
grep -q "disk: all well" "$WORK/vm.out"
not grep -q "did not answer a DMA message" "$WORK/server.log"
stop_server
