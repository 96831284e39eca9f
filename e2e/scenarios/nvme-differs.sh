# One random sequence of commands goes to QEMU's own NVMe controller and to ours, in one guest: each difference of
# status, result or data is in e2e/nvme-differences, with what of the specifications decides it. VFIOD_SEED and
# VFIOD_COMMANDS choose another sequence.
. "$(dirname "$0")/../scenario.sh"
truncate -s 32M "$WORK/ours.img" "$WORK/qemu.img"
start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/ours.img\", serial = \"OURS\" }" disk.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core

guest vm "
modprobe nvme
# The number that Linux has given to a controller: it finds them side by side.
number() {
    for disk in /sys/class/nvme/nvme?; do
        [ \"\$(tr -d ' ' <\$disk/serial)\" = \$1 ] && [ -e /dev/ng\${disk##*nvme}n1 ] && echo \${disk##*nvme} && return
    done
    return 1
}
wait_for number QEMU
wait_for number OURS
qemu=\$(number QEMU) ours=\$(number OURS)
differ ${VFIOD_SEED:-1} ${VFIOD_COMMANDS:-1000} /e2e/nvme-differences /dev/nvme\$qemu /dev/ng\${qemu}n1 \
    /dev/nvme\$ours /dev/ng\${ours}n1
" --initramfs "$WORK/initramfs" --file "$CACHE_DIR/guest-differ:/usr/bin/differ" \
    --file "$HARNESS_DIR/nvme-differences" --socket "$WORK/disk.sock" -- \
    -drive "if=none,id=disk,format=raw,discard=unmap,file=$WORK/qemu.img" -device nvme,id=qemu,serial=QEMU \
    -device nvme-ns,drive=disk,bus=qemu
cat "$WORK/vm.out"
stop_server
