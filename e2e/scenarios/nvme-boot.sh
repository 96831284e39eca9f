# Firmware boots from our controller: SeaBIOS or OVMF reads the boot loader, GRUB reads Linux, and Linux runs
# from the disk, writes to it, starts again, and finds that. VFIOD_BOOTS chooses: a firmware, and of these
#   nomsi    Linux uses the pin (pci=nomsi), otherwise MSI-X
#   reboot   Linux reboots from inside
#   reset    the machine is reset (system_reset) while Linux writes
#   4096     the image is a block device with sectors of 4,096 bytes, of which firmware reads eighths (for root)
. "$(dirname "$0")/../scenario.sh"
# Firmware takes its time, up to three times.
GUEST_PATIENCE=$((900 * ${VFIOD_PATIENCE:-1}))
cat "$GUEST_LIB" - >"$WORK/script" <<'END'
set -e
modprobe -a nvme vfat
wait_for test -b /dev/nvme0n1p1
mkdir -p /mnt
mount -t vfat /dev/nvme0n1p1 /mnt
echo "kernel $(sha256sum </mnt/vmlinuz)"
grep nvme0q0 /proc/interrupts
if [ -e /mnt/sums ]; then
    (cd /mnt; sha256sum -c sums)
else
    echo "nothing written yet"
    dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
    dd if=/dev/zero of=/mnt/restless bs=1M count=8 2>/dev/null
    (cd /mnt; sha256sum data vmlinuz >sums)
fi
# Each way to start again is taken once.
for way in reboot reset; do
    grep -q "vfiod.$way" /proc/cmdline && [ ! -e /mnt/$way ] || continue
    touch /mnt/$way
    umount /mnt
    [ $way = reset ] || reboot -f
    mount -t vfat /dev/nvme0n1p1 /mnt
    echo "writing until the reset"
    while true; do dd if=/dev/urandom of=/mnt/restless bs=1M count=8 conv=notrunc,fsync 2>/dev/null; done
done
echo "all well"
umount /mnt
END

LOOP=''
detach() { [ -z "$LOOP" ] || losetup --detach "$LOOP"; LOOP=''; }
UNDO=(detach)
# The image as a block device of large sectors, which the server may use.
block_device() {
    [ "$(id -u)" = 0 ] && LOOP=$(losetup --find --show --sector-size 4096 "$WORK/disk.img") || {
        echo "no block device can be made here: the image stays a file"
        return 1
    }
    rm -f "$WORK/disk.dev"
    mknod "$WORK/disk.dev" b $((0x$(stat -c %t "$LOOP"))) $((0x$(stat -c %T "$LOOP")))
}

boot() { # KIND
    local firmware=${1%%,*} kind=",$1," arguments='' starts=1 interrupts=MSI disk=$WORK/disk.img way
    case $kind in *,nomsi,*) arguments+=" pci=nomsi" interrupts=IO-APIC ;; esac
    arguments+=" vfiod.patience=${VFIOD_PATIENCE:-1}"
    for way in reboot reset; do
        case $kind in *,$way,*) arguments+=" vfiod.$way" starts=$((starts + 1)) ;; esac
    done
    rm -f "$WORK"/disk.* "$WORK/qmp" "$WORK"/vm.*
    "$HARNESS_DIR/boot-disk.sh" "$WORK/disk.img" "$WORK/script" "$arguments"
    case $kind in *,4096,*) ! block_device || disk=$WORK/disk.dev ;; esac
    start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$disk\", metadata = \"$WORK/disk.metadata\", torn_writes = true }" disk.sock
    run_guest vm --firmware "$firmware" --timeout "$GUEST_PATIENCE" --reboot --qmp "$WORK/qmp" \
        --socket "$WORK/disk.sock" --prop bootindex=0 &
    local vm=$!
    said vm "nothing written yet"
    case $kind in *,reboot,*) said vm "data: OK" ;; esac
    case $kind in *,reset,*)
        said vm "writing until the reset"
        qmp '{"execute":"system_reset"}' >/dev/null ;;
    esac
    wait "$vm"
    tr -d '\r' <"$WORK/vm.out" >"$WORK/said"
    [ "$(grep -c "kernel $(sha256sum <"$(guest_kernel)")" "$WORK/said")" = "$starts" ]
    [ "$(grep -c "nothing written yet" "$WORK/said")" = 1 ]
    [ "$(grep -c "data: OK" "$WORK/said")" = $((starts - 1)) ]
    grep -q "all well" "$WORK/said"
    [ "$(grep "nvme0q0" "$WORK/said" | grep -c "$interrupts")" = "$starts" ]
    stop_server
    detach
    echo "$1: started $starts times, with $interrupts"
}

for kind in ${VFIOD_BOOTS-seabios,reset,4096 ovmf,nomsi,reboot}; do
    boot "$kind"
done
