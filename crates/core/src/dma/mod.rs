//! DMA: the table of a device's windows into its clients' memory, and access through it.

pub(crate) mod fault;
pub(crate) mod mapping;
mod table;

pub use self::fault::Scalar;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::file::FileId;

bitflags::bitflags! {
    /// What the device may do with a window (`VFIO_USER_F_DMA_REGION_READ`, `_WRITE`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Perm: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

/// Reaches memory that cannot be mapped, by messages to the client that owns it.
pub trait DmaPeer: Send + Sync {
    /// Reads the client's memory at `iova`. May wait for the peer, bounded by the transport's
    /// timeout (`ETIMEDOUT`).
    fn dma_read(&self, iova: u64, data: &mut [u8]) -> Result<()>;
    /// Writes the client's memory at `iova`, likewise.
    fn dma_write(&self, iova: u64, data: &[u8]) -> Result<()>;
}

/// What is behind a window.
pub enum Backing {
    /// A file that can be mapped, from an offset in bytes.
    File {
        /// The descriptor; kept no longer than the mapping needs it.
        fd: OwnedFd,
        /// Offset of the window's first byte in the file.
        offset: u64,
    },
    /// Memory that only messages reach.
    Peer(Arc<dyn DmaPeer>),
}

/// A window to be mapped.
pub struct MapRequest {
    /// First IO virtual address.
    pub iova: u64,
    /// Size in bytes, not 0; the end must not pass 2^64.
    pub size: u64,
    /// Allowed accesses.
    pub perm: Perm,
    /// What is behind it.
    pub backing: Backing,
}

/// The DMA address space of one device (VFIO's IOAS).
#[derive(Debug)]
pub struct DmaSpace {}

impl DmaSpace {
    pub(crate) fn new() -> Self {
        Self {}
    }

    /// Reads guest memory, across adjoining windows. Never blocks on a mapper; waits for the
    /// peer only where the memory is reached by messages.
    ///
    /// # Errors
    /// `EFAULT`: not mapped, or the peer cut its file short; `EACCES`: a window forbids it;
    /// `EPERM`: bus mastering is off; what [`DmaPeer`] says.
    pub fn read(&self, _iova: u64, _dst: &mut [u8]) -> Result<()> {
        todo!()
    }

    /// Writes guest memory; errors as for [`DmaSpace::read`].
    pub fn write(&self, _iova: u64, _src: &[u8]) -> Result<()> {
        todo!()
    }

    /// Lets the device master the bus, or not (PCI command register bit 2). On at first; PCI
    /// functions turn it off at reset.
    pub fn set_bus_master(&self, _on: bool) {
        todo!()
    }

    /// Whether the device may access memory now.
    pub fn bus_master(&self) -> bool {
        todo!()
    }

    /// Adds a window for a file.
    ///
    /// # Errors
    /// `EEXIST`: it overlaps a window; `EINVAL`: size 0, past 2^64, or not aligned to pages
    /// where a file is behind it; `ENOSPC`: the limit; what `mmap` says.
    pub fn map(&self, _file: FileId, _request: MapRequest) -> Result<()> {
        todo!()
    }

    /// Removes every window inside `[iova, iova + size)`; size may reach 2^64 exactly.
    /// Returns how many bytes were mapped there. Returns only when no access to them is in
    /// flight.
    ///
    /// # Errors
    /// `EINVAL`: a window would be cut in two, size 0 or past 2^64; `EBUSY`: accesses were
    /// still in flight after `wait`, and nothing was removed.
    pub fn unmap(&self, _iova: u64, _size: u64, _wait: Duration) -> Result<u64> {
        todo!()
    }

    /// Removes every window; otherwise as [`DmaSpace::unmap`].
    pub fn unmap_all(&self, _wait: Duration) -> Result<u64> {
        todo!()
    }

    /// Removes every window that a file mapped.
    pub(crate) fn drop_file(&self, _file: FileId) {
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
