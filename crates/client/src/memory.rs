//! Memory that plays the guest's: a memfd, mapped for the server or reached by messages.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;

use crate::error::{Error, Result};

/// A memfd and the IO virtual addresses that parts of it are at. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    file: Arc<File>,
    size: u64,
    windows: Arc<Mutex<Vec<Window>>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    iova: u64,
    size: u64,
    offset: u64,
}

impl GuestMemory {
    /// Zeroed memory of a size in bytes.
    ///
    /// # Errors
    /// What the kernel says to a memfd of this size.
    pub fn new(size: u64) -> Result<Self> {
        let failed = |error| Error::io("cannot make guest memory", error);
        let fd = rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        let file = File::from(fd);
        file.set_len(size).map_err(failed)?;
        Ok(Self { file: Arc::new(file), size, windows: Arc::default() })
    }

    /// The first `size` bytes of a file that somebody has made, for example a memfd.
    pub fn from_file(file: File, size: u64) -> Self {
        Self { file: Arc::new(file), size, windows: Arc::default() }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor, to be sent with DMA_MAP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The file, to do to it what a hostile client would.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes at an offset in the file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(data, offset);
        written.map_err(|error| Error::io("cannot write guest memory", error))
    }

    /// Reads at an offset in the file.
    ///
    /// # Errors
    /// What the kernel says; an end of file before `data` is full.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(data, offset);
        read.map_err(|error| Error::io("cannot read guest memory", error))
    }

    /// Puts part of the file at an IO virtual address, for DMA messages.
    pub fn attach(&self, iova: u64, size: u64, offset: u64) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.push(Window { iova, size, offset });
    }

    /// The offset of a range that lies in one mapping.
    pub(crate) fn translate(&self, iova: u64, len: u64) -> Option<u64> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.iter().find_map(|window| {
            let into = iova.checked_sub(window.iova)?;
            (into.checked_add(len)? <= window.size).then_some(window.offset + into)
        })
    }
}
