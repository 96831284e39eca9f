//! What a device has, as the core reads it at registration.

use crate::irq::IrqInfo;
use crate::region::Region;

bitflags::bitflags! {
    /// `VFIO_DEVICE_FLAGS_*` as reported by DEVICE_GET_INFO.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// DEVICE_RESET works.
        const RESET = 1 << 0;
        /// A PCI function: regions 0-8 and interrupt indices 0-4 are those of `vfio-pci`.
        const PCI = 1 << 1;
        /// A platform device.
        const PLATFORM = 1 << 2;
        /// An fsl-mc object.
        const FSL_MC = 1 << 6;
    }
}

/// What a device has. The core reads it once, at registration.
#[derive(Clone, Debug)]
pub struct Description {
    /// Kind of device, and whether it can be reset.
    pub flags: DeviceFlags,
    /// Regions by index.
    pub regions: Vec<Region>,
    /// Interrupts by index.
    pub irqs: Vec<IrqInfo>,
}
