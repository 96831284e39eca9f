# Firmware boots from our controller: SeaBIOS or OVMF reads the boot loader, GRUB reads Linux, and Linux runs
# from the disk, writes to it, reboots, and finds that; SeaBIOS with MSI-X, and OVMF with the pin
# (pci=nomsi). VFIOD_BOOTS="seabios ovmf seabios,nomsi ovmf,nomsi" chooses others.
. "$(dirname "$0")/../scenario.sh"
cat >"$WORK/script" <<'END'
set -e
modprobe -a nvme vfat
for n in $(seq 100); do [ -b /dev/nvme0n1p1 ] && break; sleep 0.2; done
mkdir -p /mnt
mount -t vfat /dev/nvme0n1p1 /mnt
echo "kernel $(sha256sum </mnt/vmlinuz)"
grep nvme0q0 /proc/interrupts
if [ ! -e /mnt/sums ]; then
    echo "first boot"
    dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
    (cd /mnt; sha256sum data vmlinuz >sums)
    umount /mnt
    reboot -f
    sleep 60
fi
echo "second boot"
(cd /mnt; sha256sum -c sums)
umount /mnt
END

boot() { # FIRMWARE ARGUMENTS INTERRUPTS
    local firmware=$1
    rm -f "$WORK"/disk.img*
    "$HARNESS_DIR/boot-disk.sh" "$WORK/disk.img" "$WORK/script" "$2"
    start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/disk.img\" }" disk.sock
    "$HARNESS_DIR/run-guest.sh" --firmware "$firmware" --timeout 300 --reboot \
        --socket "$WORK/disk.sock" --prop bootindex=0 >"$WORK/vm.out" 2>&1 || {
        cat "$WORK/vm.out"
        return 1
    }
    tr -d '\r' <"$WORK/vm.out" >"$WORK/said"
    [ "$(grep -c "kernel $(sha256sum <"$(guest_kernel)")" "$WORK/said")" = 2 ]
    grep -q "first boot" "$WORK/said"
    grep -q "second boot" "$WORK/said"
    grep -q "data: OK" "$WORK/said"
    grep "nvme0q0" "$WORK/said" | grep -q "$3"
    stop_server
    echo "$firmware: booted twice, with $3"
}

for kind in ${VFIOD_BOOTS-seabios ovmf,nomsi}; do
    case $kind in
    *,nomsi) boot "${kind%,nomsi}" pci=nomsi IO-APIC ;;
    *) boot "$kind" '' MSI ;;
    esac
done
