//! Holes in a client's file: read as zeros without being filled, filled before they are written.

use std::os::fd::OwnedFd;

use rustix::fs::fstat;
use rustix::io::pread;

use vfiod_sync::Arc;

use crate::error::Errno;
use crate::files::MemoryKind;
use crate::userfault;

/// How often an access is begun again at the same page because the client has made a hole of it
/// meanwhile, before it fails.
pub(crate) const TRIES: u32 = 64;

/// Whether accesses fill the holes of a file that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holes {
    /// Every access does: memory of our own, and files that are no memory.
    Fill,
    /// Only writes do, in a client's memory of this kind.
    Keep(MemoryKind),
}

/// A file whose holes are kept.
#[derive(Debug)]
pub(crate) struct Sparse {
    fd: Arc<OwnedFd>,
    /// Where in the file the mapping begins, in bytes.
    start: u64,
    kind: MemoryKind,
    /// Bytes that are there or missing together.
    page: usize,
}

impl Sparse {
    /// Of a file of kind `kind` that is mapped from `start` on.
    pub(crate) fn new(fd: &Arc<OwnedFd>, start: u64, kind: MemoryKind) -> Result<Self, Errno> {
        let page = match kind {
            MemoryKind::Huge => usize::try_from(fstat(fd)?.st_blksize).unwrap_or(0),
            _ => rustix::param::page_size(),
        };
        Ok(Self { fd: fd.clone(), start, kind, page })
    }

    /// Whether the file has huge pages.
    pub(crate) fn is_huge(&self) -> bool {
        self.kind == MemoryKind::Huge
    }

    /// Bytes that are there or missing together: a power of two.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Copies out from an offset in the mapping without filling holes, as far as the file reaches.
    /// Returns the bytes copied.
    ///
    /// # Errors
    /// `EIO` and the like: the kernel cannot read it.
    pub(crate) fn read(&self, offset: u64, dst: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while done < dst.len() {
            match pread(&self.fd, &mut dst[done..], self.start + offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Whether the file reaches past an offset in the mapping. Not by `fstat`: some kernels take the lock of
    /// the inode for that, which a client can hold (6.6.60, 6.1.116 and others of that time).
    ///
    /// # Errors
    /// `EIO` and the like: the kernel cannot read it.
    pub(crate) fn reaches_past(&self, offset: u64) -> Result<bool, Errno> {
        self.read(offset, &mut [0]).map(|read| read == 1)
    }

    /// Fills the hole at an address of the mapping, and those that follow it directly up to `end`,
    /// which the mapping contains. What is there stays as it is.
    ///
    /// # Errors
    /// `EFAULT`: past the end of the file; `ENOMEM`: no memory.
    pub(crate) fn fill(&self, address: usize, end: usize) -> Result<(), Errno> {
        let first = address & !(self.page - 1);
        match self.kind {
            MemoryKind::Huge => userfault::fill_huge(first, self.page),
            _ => userfault::fill(first, (end - first).next_multiple_of(self.page)),
        }
    }
}
