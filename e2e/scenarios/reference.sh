# The guest's test of edu passes on QEMU's own edu too: it tests the device, not our idea of it.
. "$(dirname "$0")/../scenario.sh"
guest uio 'modprobe uio_pci_generic; edu uio --reference' -- -device edu
grep -q "edu: all well" "$WORK/uio.out"
guest vfio 'modprobe vfio-pci; modprobe vfio_iommu_type1; edu vfio --reference' \
    --iommu -- -device edu
grep -q "edu: all well" "$WORK/vfio.out"
