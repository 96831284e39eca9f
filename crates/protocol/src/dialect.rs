//! Deviations from the specification that single clients need.

use serde::{Deserialize, Serialize};
use vfiod_wire::{
    Capabilities, Command,
    payload::{DeviceInfo, DmaUnmap, IrqInfo, RegionAccess, RegionInfo},
};

/// The deviations that a client needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dialect {
    /// The specification, as QEMU and most others speak it.
    #[default]
    Standard,
    /// rust-vmm's `vfio_user` client (Cloud Hypervisor): it never looks at the Error flag and
    /// waits for the full size of a reply even where there is none.
    RustVmm,
}

impl Dialect {
    /// Recognises a client by the capabilities that it proposes: rust-vmm's sends exactly
    /// `max_msg_fds`, `max_data_xfer_size` and `migration.pgsize`.
    pub fn of(capabilities: &Capabilities) -> Self {
        match capabilities {
            Capabilities {
                max_msg_fds: Some(_),
                max_data_xfer_size: Some(_),
                max_dma_maps: None,
                pgsizes: None,
                twin_socket: None,
                write_multiple: None,
                migration: Some(migration),
                vf_token: None,
                vfiod_features: None,
            } if migration.pgsize.is_some() && migration.max_bitmap_size.is_none() => Self::RustVmm,
            _ => Self::Standard,
        }
    }

    /// Its name, for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::RustVmm => "rust-vmm",
        }
    }

    /// Bytes behind the header of an error reply. The specification says none.
    pub(crate) fn error_padding(self, command: Command) -> usize {
        match (self, command) {
            (Self::Standard, _) => 0,
            (Self::RustVmm, Command::DmaUnmap) => DmaUnmap::LEN,
            (Self::RustVmm, Command::DeviceGetInfo) => DeviceInfo::LEN,
            (Self::RustVmm, Command::DeviceGetRegionInfo) => RegionInfo::LEN,
            (Self::RustVmm, Command::DeviceGetIrqInfo) => IrqInfo::LEN,
            (Self::RustVmm, Command::RegionWrite) => RegionAccess::LEN,
            (Self::RustVmm, _) => 0,
        }
    }

    /// Whether a read that fails gets all ones, as on a bus, because the client waits for its
    /// data in any case.
    pub(crate) fn failed_read_is_ones(self) -> bool {
        self == Self::RustVmm
    }
}
