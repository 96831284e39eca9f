//! A request: what the kernel is to do, and what it does it with.

use std::os::fd::OwnedFd;

use vfiod_dma::{Completion, Errno, Error, Hold, Perm, Result};
use vfiod_sync::Arc;

/// What the kernel is to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads from an offset in bytes.
    Read(u64),
    /// Writes to an offset in bytes.
    Write(u64),
    /// Makes what was written durable, as far as it is needed to read it again.
    Flush,
    /// Changes what is allocated.
    Allocate { how: Allocation, offset: u64, len: u64 },
}

/// How a range of a file is to be allocated (`fallocate`). The size of the file stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Gives the range's blocks back; it reads as zeroes.
    PunchHole,
    /// Makes the range read as zeroes, and keeps its blocks where the file system can.
    Zero,
    /// Allocates blocks; what is there stays.
    Reserve,
}

impl Allocation {
    pub(crate) fn mode(self) -> i32 {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        match self {
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | keep,
            Self::Zero => libc::FALLOC_FL_ZERO_RANGE | keep,
            Self::Reserve => keep,
        }
    }
}

/// What data is read into, or written from.
#[derive(Debug)]
pub(crate) enum Buffer {
    None,
    Own(Vec<u8>),
    Guest(Hold),
}

impl Buffer {
    pub(crate) fn into_own(self) -> Vec<u8> {
        if let Self::Own(buffer) = self { buffer } else { Vec::new() }
    }

    pub(crate) fn into_hold(self) -> Option<Hold> {
        if let Self::Guest(hold) = self { Some(hold) } else { None }
    }
}

/// A request that has completed: bytes moved, and the buffer that comes back.
pub(crate) type Completed = (Result<usize>, Buffer);

/// A request before it is handed to the kernel.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) buffer: Buffer,
    pub(crate) completion: Completion<Completed>,
}

impl Request {
    /// Whether the kernel may be asked at all.
    ///
    /// # Errors
    /// `EINVAL`: a range past 2^63; `EACCES`: guest memory that is held for the other direction.
    pub(crate) fn check(&self) -> Result<()> {
        let (offset, len) = match (self.operation, &self.buffer) {
            (Operation::Read(at) | Operation::Write(at), Buffer::Own(bytes)) => {
                (at, bytes.len() as u64)
            }
            (Operation::Read(at) | Operation::Write(at), Buffer::Guest(hold)) => {
                (at, hold.len() as u64)
            }
            (Operation::Allocate { offset, len, .. }, _) => (offset, len),
            _ => (0, 0),
        };
        if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            let what = format!("I/O of {len} bytes at {offset:#x}: past 2^63");
            return Err(Error::new(Errno::INVAL, what));
        }
        let Buffer::Guest(hold) = &self.buffer else { return Ok(()) };
        let (needed, what) = match self.operation {
            Operation::Read(_) => (Perm::WRITE, "a read needs guest memory held for writing"),
            _ => (Perm::READ, "a write needs guest memory held for reading"),
        };
        if hold.perm().contains(needed) { Ok(()) } else { Err(Error::new(Errno::ACCESS, what)) }
    }

    /// Ends the request with what the kernel returned: bytes, or a negative errno.
    pub(crate) fn complete(self, result: i64) {
        let result = match usize::try_from(result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => {
                let errno = i32::try_from(-result).map_or(Errno::IO, Errno::from_raw_os_error);
                Err(Error::new(errno, self.failure()))
            }
        };
        self.completion.complete(Ok((result, self.buffer)));
    }

    /// Ends the request without the kernel.
    pub(crate) fn refuse(self, error: Error) {
        self.completion.complete(Ok((Err(error), self.buffer)));
    }

    fn failure(&self) -> &'static str {
        match self.operation {
            Operation::Read(_) => "cannot read the file",
            Operation::Write(_) => "cannot write the file",
            Operation::Flush => "cannot flush the file",
            Operation::Allocate { .. } => "cannot change the allocation of the file",
        }
    }
}
