#!/usr/bin/env bash
# Build a disk image that SeaBIOS and OVMF boot: GRUB, a kernel and an initramfs with a script.
#
# usage: boot-disk.sh IMAGE SCRIPT KERNEL-ARGS
#
# The boot sector and what follows it are GRUB for a BIOS; the one partition, FAT, is an EFI system
# partition with GRUB for EFI, kernel and initramfs. The guest finds it as a partition of its disk.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

image=$1 script=$2 arguments=$3
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
grub=$ROOTFS/usr/lib/grub
first=2048 sectors=$((2 * 1024 * 96))

# The modules that nvme and the partition need, the script, and little else: firmware reads all of it.
modules=(); for m in nvme nvme-core vfat nls_cp437 nls_ascii nls_iso8859-1; do modules+=(--module "$m"); done
"$HARNESS_DIR/build-initramfs.sh" --output "$work/initramfs" --only "${modules[@]}"
mkdir -p "$work/root/e2e"
cp "$script" "$work/root/e2e/script"
busybox=${VFIOD_E2E_BUSYBOX:-$ROOTFS/usr/bin/busybox}
(cd "$work/root" && find . -mindepth 1 | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null) >>"$work/initramfs"

cat >"$work/grub.cfg" <<EOF
search --no-floppy --file --set=root /vmlinuz
linux /vmlinuz console=ttyS0 panic=-1 rdinit=/init quiet loglevel=0 cryptomgr.notests=1 no_timer_check $arguments
initrd /initramfs
boot
EOF
for target in i386-pc x86_64-efi; do
    modules=(part_msdos fat linux search search_fs_file normal boot)
    [ "$target" != i386-pc ] || modules+=(biosdisk)
    rootfs_program /usr/bin/grub-mkimage -d "$grub/$target" -O "$target" -o "$work/$target" \
        -c "$work/grub.cfg" -p /grub "${modules[@]}"
done

truncate -s $(((first + sectors) * 512)) "$image"
# The boot sector reads what follows it, from sector 1 on; grub-mkimage has noted how much that is.
dd if="$grub/i386-pc/boot.img" of="$image" bs=440 count=1 conv=notrunc status=none
[ "$(stat -c %s "$work/i386-pc")" -lt $(((first - 1) * 512)) ] || die "GRUB is too large for the gap"
dd if="$work/i386-pc" of="$image" bs=512 seek=1 conv=notrunc status=none
# One entry of the partition table: active, type EF, by its first sector and its length.
number() { local n=$1; printf '\\x%02x\\x%02x\\x%02x\\x%02x' $((n & 255)) $((n >> 8 & 255)) $((n >> 16 & 255)) $((n >> 24)); }
printf "\x80\xfe\xff\xff\xef\xfe\xff\xff$(number $first)$(number $sectors)" |
    dd of="$image" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$image" bs=1 seek=510 conv=notrunc status=none

at="$image@@$((first * 512))"
mtool() { rootfs_program /usr/bin/mtools -c "$@"; }
mtool mformat -i "$at" -F -T "$sectors" -h 255 -s 63 ::
mtool mmd -i "$at" ::/EFI ::/EFI/BOOT
mtool mcopy -i "$at" "$work/x86_64-efi" ::/EFI/BOOT/BOOTX64.EFI
mtool mcopy -i "$at" "$(guest_kernel)" ::/vmlinuz
mtool mcopy -i "$at" "$work/initramfs" ::/initramfs
