//! Capabilities: what each looks like in configuration space.

use vfiod_core::{Errno, Error, Result};

use crate::masked_bytes::MaskedBytes;
use crate::sriov::VirtualFunctions;

/// A capability of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Power management with D0 and D3hot; the state is kept on the way back to D0
    /// (`No_Soft_Reset` set; PM 3.2, PCIe 7.5.2).
    PowerManagement,
    /// The same, but the way back from D3hot to D0 resets the function (`No_Soft_Reset` clear;
    /// PM 5.4.1).
    PowerManagementSoftReset,
    /// PCI Express endpoint with function-level reset (PCIe 7.5.3). Brings the extended
    /// configuration space. See [`crate::Fitting::integrated`].
    Express,
    /// MSI with 64-bit addresses and a mask bit for each vector (PCIe 7.7.1).
    Msi {
        /// 1, 2, 4, 8, 16 or 32.
        vectors: u8,
    },
    /// MSI-X (PCIe 7.7.2). The function serves table and pending bits itself.
    Msix {
        /// 1 to 2048.
        vectors: u16,
        /// Where the table is, and its offset in that BAR, a multiple of 8. Not in memory that
        /// clients map: the function would not see what is written there.
        table: (u8, u32),
        /// Where the pending bits are: BAR and offset.
        pba: (u8, u32),
    },
    /// Vendor-specific (PCI appendix H): the bytes behind the length.
    Vendor(Vec<u8>),
    /// Extended: device serial number (PCIe 7.9.3).
    SerialNumber(u64),
    /// Extended: vendor-specific (PCIe 7.9.5): id, revision and the bytes behind its header.
    VendorExtended {
        /// The vendor's id for the structure.
        id: u16,
        /// Its revision, 0 to 15.
        revision: u8,
        /// The structure.
        data: Vec<u8>,
    },
    /// Extended: single root I/O virtualization (PCIe 9.3.3). A function gets it by its
    /// [`crate::Role`], which is what makes it one.
    SingleRootIoVirtualization(VirtualFunctions),
}

pub(crate) mod id {
    pub(crate) const POWER: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const VENDOR: u8 = 0x09;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
    pub(crate) const EXT_SERIAL: u16 = 0x0003;
    pub(crate) const EXT_VENDOR: u16 = 0x000b;
    pub(crate) const EXT_SRIOV: u16 = 0x0010;
}

impl Capability {
    pub(crate) fn is_extended(&self) -> bool {
        matches!(
            self,
            Self::SerialNumber(_)
                | Self::VendorExtended { .. }
                | Self::SingleRootIoVirtualization(_)
        )
    }

    /// The name of a kind that a function can have one of.
    pub(crate) fn unique(&self) -> Option<&'static str> {
        match self {
            Self::PowerManagement | Self::PowerManagementSoftReset => Some("power management"),
            Self::Express => Some("PCI Express"),
            Self::Msi { .. } => Some("MSI"),
            Self::Msix { .. } => Some("MSI-X"),
            Self::SerialNumber(_) => Some("serial number"),
            Self::SingleRootIoVirtualization(_) => Some("SR-IOV"),
            Self::Vendor(_) | Self::VendorExtended { .. } => None,
        }
    }

    /// Checks the capability by itself: `EINVAL`. Whether it fits the rest of the function is checked
    /// with the function's spec.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(Errno::INVAL, what));
        match self {
            Self::Msi { vectors } if !vectors.is_power_of_two() || *vectors > 32 => {
                bad(format!("MSI with {vectors} vectors; must be 1, 2, 4, 8, 16 or 32"))
            }
            Self::Msix { vectors: vectors @ (0 | 2049..), .. } => {
                bad(format!("MSI-X with {vectors} vectors; must be 1 to 2048"))
            }
            Self::Vendor(data) if data.len() > 0xff - 3 => {
                bad(format!("vendor capability of {} bytes; at most 252", data.len()))
            }
            Self::VendorExtended { data, .. } if data.len() > 0xfff - 8 => {
                bad(format!("extended vendor capability of {} bytes; at most 4087", data.len()))
            }
            Self::VendorExtended { revision, .. } if *revision > 15 => {
                bad(format!("extended vendor capability of revision {revision}; at most 15"))
            }
            Self::SingleRootIoVirtualization(functions) => functions.check(),
            _ => Ok(()),
        }
    }

    /// Its bytes behind id and next pointer (extended: behind the 4-byte header), with the bits
    /// that a guest may write.
    /// `device`: the function's device id.
    pub(crate) fn image(&self, device: u16) -> (u16, MaskedBytes) {
        match self {
            Self::PowerManagement | Self::PowerManagementSoftReset => {
                let mut image = MaskedBytes::new(6);
                // PMC: version 3, neither D1 nor D2 nor PME (PCIe 7.5.2.1).
                image.set16(0, 0x0003, 0);
                // PMCSR: PowerState is writable (PCIe 7.5.2.2).
                let keeps = if *self == Self::PowerManagement { NO_SOFT_RESET } else { 0 };
                image.set16(2, keeps, POWER_STATE);
                (id::POWER.into(), image)
            }
            Self::Express => (id::EXPRESS.into(), express()),
            Self::Msi { vectors } => {
                let mut image = MaskedBytes::new(22);
                // Message Control: Multiple Message Capable, 64 bits, per-vector masking.
                let capable = (vectors.trailing_zeros() as u16) << 1;
                image.set16(0, capable | 0x0180, 0x0071);
                image.set32(2, 0, 0xffff_fffc);
                image.set32(6, 0, 0xffff_ffff);
                image.set16(10, 0, 0xffff);
                let mask = ((1u64 << vectors) - 1) as u32;
                image.set32(14, 0, mask);
                (id::MSI.into(), image)
            }
            Self::Msix { vectors, table, pba } => {
                let mut image = MaskedBytes::new(10);
                image.set16(0, vectors - 1, 0xc000);
                image.set32(2, table.1 | u32::from(table.0), 0);
                image.set32(6, pba.1 | u32::from(pba.0), 0);
                (id::MSIX.into(), image)
            }
            Self::Vendor(data) => {
                let mut image = MaskedBytes::new(1 + data.len());
                image.bytes[0] = (3 + data.len()) as u8;
                image.bytes[1..].copy_from_slice(data);
                (id::VENDOR.into(), image)
            }
            Self::SingleRootIoVirtualization(functions) => (id::EXT_SRIOV, functions.image(device)),
            Self::SerialNumber(number) => {
                let mut image = MaskedBytes::new(8);
                image.bytes.copy_from_slice(&number.to_le_bytes());
                (id::EXT_SERIAL, image)
            }
            Self::VendorExtended { id, revision, data } => {
                let mut image = MaskedBytes::new(4 + data.len());
                let len = (8 + data.len()) as u32;
                image.set32(0, u32::from(*id) | u32::from(revision & 15) << 16 | len << 20, 0);
                image.bytes[4..].copy_from_slice(data);
                (id::EXT_VENDOR, image)
            }
        }
    }
}

/// Offset of PMCSR in the power management capability, and bits of it (PCIe 7.5.2.2).
pub(crate) const POWER_CONTROL: usize = 4;
pub(crate) const POWER_STATE: u16 = 3;
pub(crate) const NO_SOFT_RESET: u16 = 1 << 3;

/// Offset of Device Control in the PCI Express capability, and its reset bit (PCIe 7.5.3.4).
pub(crate) const EXPRESS_DEVICE_CONTROL: usize = 8;
pub(crate) const INITIATE_FLR: u16 = 1 << 15;

/// The PCI Express capability, version 2, behind its first two bytes (PCIe 7.5.3).
fn express() -> MaskedBytes {
    let mut image = MaskedBytes::new(0x3c - 2);
    // PCI Express Capabilities: version 2, PCI Express endpoint (7.5.3.2).
    image.set16(0, 0x0002, 0);
    // Device Capabilities: 256-byte payload, extended tags, role-based errors, FLR (7.5.3.3).
    image.set32(2, 0x0000_0001 | 1 << 5 | 1 << 15 | 1 << 28, 0);
    // Device Control: all but phantom functions, auxiliary power and Initiate FLR, which always
    // reads as 0 and is seen by `ConfigSpace::write` (7.5.3.4). Device Status: no error is ever
    // logged, so there is none to clear (7.5.3.5).
    image.set16(6, 0x2810, 0x79ff);
    // Link Capabilities, Control, Status: 2.5 GT/s, x1 (7.5.3.6 to 7.5.3.8).
    image.set32(10, 0x0000_0011, 0);
    image.set16(14, 0, 0x02cb);
    image.set16(16, 0x0011, 0);
    // Device Capabilities 2 and Control 2: completion timeout disable (7.5.3.15, 7.5.3.16).
    image.set32(34, 1 << 4, 0);
    image.set16(38, 0, 0x0010);
    // Link Capabilities 2 and Control 2: 2.5 GT/s (7.5.3.18, 7.5.3.19).
    image.set32(42, 0x0000_0002, 0);
    image.set16(46, 0x0001, 0x000f);
    image
}

/// The parts of the capability that describe a link: Link Capabilities, Control and Status, and
/// Link Capabilities 2, Control 2 and Status 2.
pub(crate) const EXPRESS_LINK: [std::ops::Range<usize>; 2] = [0x0c..0x14, 0x2c..0x34];
/// Device/Port Type in the upper half of this byte, and root complex integrated endpoint
/// (PCIe 7.5.3.2).
pub(crate) const EXPRESS_TYPE: usize = 2;
pub(crate) const INTEGRATED: u8 = 9 << 4;
