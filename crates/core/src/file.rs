//! Files: one open of a device each; dropping it is its release.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::device::Description;
use crate::dma::MapRequest;
use crate::error::Result;
use crate::irq::{IrqAction, IrqData, IrqIndex, IrqInfo};
use crate::region::{Region, RegionIndex};

/// The number of a file, never used twice by one registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.0)
    }
}

/// Who holds a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// This process itself, under a name for people.
    InProcess(String),
    /// A peer, as the kernel vouches for it (`SO_PEERCRED`).
    Peer {
        /// Process id.
        pid: i32,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// One open of a device. Every operation of a revoked file fails with `ENODEV`; of a device in
/// the error state, with `EIO`.
pub struct File {}

impl File {
    /// The file's number.
    pub fn id(&self) -> FileId {
        todo!()
    }

    /// What the device has.
    pub fn description(&self) -> &Description {
        todo!()
    }

    /// A region; `EINVAL` where there is none of this index.
    pub fn region(&self, _index: RegionIndex) -> Result<&Region> {
        todo!()
    }

    /// An interrupt index; `EINVAL` where there is none.
    pub fn irq(&self, _index: IrqIndex) -> Result<IrqInfo> {
        todo!()
    }

    /// Reads a region. Takes the device's lock, unless the access is within a shared area.
    ///
    /// # Errors
    /// `EINVAL`: no such region, or outside it; `EACCES`: not readable; `ENODEV`, `EIO`; what
    /// the device says.
    pub fn read(&self, _region: RegionIndex, _offset: u64, _data: &mut [u8]) -> Result<()> {
        todo!()
    }

    /// Writes a region; errors as for [`File::read`].
    pub fn write(&self, _region: RegionIndex, _offset: u64, _data: &[u8]) -> Result<()> {
        todo!()
    }

    /// DEVICE_RESET. `EINVAL` if the device cannot be reset; what the device says.
    pub fn reset(&self) -> Result<()> {
        todo!()
    }

    /// DEVICE_SET_IRQS; see [`crate::irq::IrqSet::set`].
    pub fn set_irqs(
        &self,
        _index: IrqIndex,
        _start: u32,
        _count: u32,
        _action: IrqAction,
        _data: IrqData<'_>,
    ) -> Result<()> {
        todo!()
    }

    /// DMA_MAP; see [`crate::dma::DmaSpace::map`].
    pub fn dma_map(&self, _request: MapRequest) -> Result<()> {
        todo!()
    }

    /// DMA_UNMAP of a range; see [`crate::dma::DmaSpace::unmap`].
    pub fn dma_unmap(&self, _iova: u64, _size: u64, _wait: Duration) -> Result<u64> {
        todo!()
    }

    /// DMA_UNMAP with ALL.
    pub fn dma_unmap_all(&self, _wait: Duration) -> Result<u64> {
        todo!()
    }

    /// DEVICE_FEATURE probe: (get, set) work for this index.
    pub fn feature_probe(&self, _index: u16) -> Result<(bool, bool)> {
        todo!()
    }

    /// DEVICE_FEATURE get. `ENOTTY` for an unknown index.
    pub fn feature_get(&self, _index: u16, _argument: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }

    /// DEVICE_FEATURE set. `ENOTTY` for an unknown index.
    pub fn feature_set(&self, _index: u16, _data: &[u8]) -> Result<()> {
        todo!()
    }

    /// The eventfds of a region's doorbells, made at the first call, one per doorbell, for
    /// handing to the client. `EINVAL` where there is no such region.
    pub fn doorbells(&self, _region: RegionIndex) -> Result<Vec<OwnedFd>> {
        todo!()
    }

    /// Whether the file was taken away.
    pub fn is_revoked(&self) -> bool {
        todo!()
    }
}
