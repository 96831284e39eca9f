//! Memory that a device shares with its clients (memfd; sealed, so it can never shrink).

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::error::Result;

/// A memfd of fixed size, mapped here and mappable by clients.
#[derive(Debug)]
pub struct SharedMemory {
    size: u64,
}

impl SharedMemory {
    /// Creates zeroed memory. `size` is in bytes, a multiple of the page size.
    ///
    /// # Errors
    /// `EINVAL` for a size of 0 or not a multiple of the page size, else what the kernel says.
    pub fn new(_name: &str, _size: u64) -> Result<Arc<Self>> {
        todo!()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor that clients map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// Copies out. `EINVAL` outside the memory.
    pub fn read(&self, _offset: u64, _dst: &mut [u8]) -> Result<()> {
        todo!()
    }

    /// Copies in. `EINVAL` outside the memory.
    pub fn write(&self, _offset: u64, _src: &[u8]) -> Result<()> {
        todo!()
    }

    /// Fills a range with a byte.
    pub fn fill(&self, _offset: u64, _len: u64, _byte: u8) -> Result<()> {
        todo!()
    }
}
