# A guest with an IOMMU uses the device through its own VFIO: mappings come and go, INTx, MSI,
# function-level reset.
. "$(dirname "$0")/../scenario.sh"
start_server "$(device_config edu)" edu.sock
capture edu edu.sock edu
guest vm 'modprobe vfio-pci; modprobe vfio_iommu_type1; edu vfio' \
    --socket "$WORK/edu.captured" --iommu
cat "$WORK/vm.out"
grep -q "edu: all well" "$WORK/vm.out"
logged "function-level reset"
stop_server
