//! What a disk's controller asks of what keeps the disk's bytes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use vfiod_dma::{Errno, Error, Hold, Result};
use vfiod_io::Holds;
use vfiod_tasks::Runtime;

use crate::bytes::{AtOnce, Bytes};
use crate::pending::Pending;

/// Keeps the bytes of one disk. Several controllers may use it at once: what one has written and
/// completed, another one reads, and a flush by one covers what the others had completed before.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What it can do. The capacity may change while it is used ([`Backend::limits`] is asked again
    /// when the operator says so); all else stays.
    fn limits(&self) -> Limits;

    /// What it is, for the operator.
    fn about(&self) -> About {
        About::default()
    }

    /// Where a controller whose tasks run in `runtime` starts its requests. Called at the first
    /// command of an opening; the result is dropped when the controller is closed or removed.
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left.
    fn connect(self: Arc<Self>, runtime: &Runtime) -> Result<Arc<dyn Channel>>;

    /// Gives it a size, where that can be chosen. What is cut off is lost, what is added reads as zeroes. No
    /// request is under way behind the new end. May block.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: its size cannot be changed here.
    fn set_size(&self, _bytes: u64) -> Result<()> {
        let what = "its size cannot be changed here; change it where it is kept";
        Err(Error::new(Errno::OPNOTSUPP, what))
    }

    /// Lets others use what keeps the bytes, before the last user has dropped this. No request comes any more.
    fn release(&self) {}
}

/// What a back end is, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// In a word: `file`, `block device`, `memory`, `null`. Empty: it does not say.
    pub kind: &'static str,
    /// Where its bytes are, if that is a path.
    pub path: Option<PathBuf>,
    /// Whether the page cache is passed by, where there is one.
    pub direct: Option<bool>,
    /// Whether it is locked against other programs, where it can be.
    pub locked: Option<bool>,
}

/// One controller's way to a back end. Requests may be started from any thread, in any number.
pub trait Channel: fmt::Debug + Send + Sync + 'static {
    /// Starts a request. It has begun when this returns, and goes on whether or not the future is
    /// polled or dropped: what it owns is dropped when it has completed, never before. The future
    /// wakes its task by its waker. Requests may complete in any order; who needs an order waits.
    ///
    /// Does not block.
    fn start(&self, request: Request) -> Pending;

    /// Who does the requests, for the operator: `io_uring`, `threads`. `None`: they are done at once.
    fn engine(&self) -> Option<&'static str> {
        None
    }

    /// Calls `start`, which starts several requests: they may be handed to the kernel together.
    fn gather(&self, start: &mut dyn FnMut()) {
        start();
    }

    /// The same back end, if its reads and writes wait for nothing.
    fn at_once(&self) -> Option<&dyn AtOnce> {
        None
    }
}

/// What became of a request.
#[derive(Debug)]
pub struct Done {
    /// All of it was done, or it failed: of a failed write any part may have been done.
    pub result: Result<(), Failure>,
    /// The buffer of a read or write. `None` if it has none, or was lost with the back end.
    pub buffer: Option<Buffer>,
}

/// What is to be done. Offsets and lengths are in bytes, multiples of [`Limits::block`], and within
/// the capacity that the controller last saw; a back end that has shrunk meanwhile fails the request.
#[derive(Debug)]
pub enum Request {
    /// Reads as many bytes as the buffer has.
    Read {
        /// Where the range begins.
        offset: u64,
        /// What is filled.
        buffer: Buffer,
    },
    /// Writes the buffer.
    Write {
        /// Where the range begins.
        offset: u64,
        /// What is written.
        buffer: Buffer,
        /// The data is durable before this completes (Force Unit Access).
        durable: bool,
    },
    /// Makes durable what was written by requests that had completed when this was started, through
    /// any channel. Completes after the sync has returned.
    Flush,
    /// Makes a range read as zeroes.
    Zero {
        /// Where the range begins.
        offset: u64,
        /// Its length, not 0.
        len: u64,
        /// Its blocks may be given back.
        deallocate: bool,
        /// Durable before this completes.
        durable: bool,
    },
    /// Gives the blocks of a range back, as far as whole ones lie in it. What it reads as afterwards
    /// is [`Limits::deallocated_reads_zero`]'s; blocks outside the range keep their data. Only where
    /// [`Limits::deallocate`] is given.
    Deallocate {
        /// Where the range begins.
        offset: u64,
        /// Its length, not 0.
        len: u64,
    },
}

impl Request {
    /// Its buffer, if it has one.
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } => Some(buffer),
            Self::Flush | Self::Zero { .. } | Self::Deallocate { .. } => None,
        }
    }
}

/// What is read into, or written from.
#[derive(Debug)]
pub enum Buffer {
    /// Guest memory, in the order of the data: held for writing by a read, for reading by a write.
    /// Pieces are of any length but 0, at any address. The guest may change them meanwhile.
    Guest(Holds),
    /// A buffer of the controller's.
    Own(Vec<u8>),
}

impl Buffer {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Guest(holds) => holds.iter().map(Hold::len).sum(),
            Self::Own(bytes) => bytes.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a ring takes it.
    pub(crate) fn into_io(self) -> vfiod_io::Buffer {
        match self {
            Self::Guest(holds) => vfiod_io::Buffer::Guest(holds),
            Self::Own(bytes) => vfiod_io::Buffer::Own(bytes),
        }
    }

    /// What a ring gives back. Empty: it was lost with the ring.
    pub(crate) fn of_io(buffer: vfiod_io::Buffer) -> Self {
        match buffer {
            vfiod_io::Buffer::Guest(holds) => Self::Guest(holds),
            vfiod_io::Buffer::Own(bytes) => Self::Own(bytes),
            vfiod_io::Buffer::None | vfiod_io::Buffer::Aligned(_) => Self::Own(Vec::new()),
        }
    }

    /// Copies bytes into it, from an offset in it.
    ///
    /// # Errors
    /// `EINVAL`: past its end; as [`Hold::write`].
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        self.check(at, bytes.len())?;
        match self {
            Self::Own(own) => own[at..at + bytes.len()].copy_from_slice(bytes),
            Self::Guest(holds) => {
                for (hold, at, part) in Hold::parts(holds, at, bytes.len()) {
                    hold.write(at, &bytes[part])?;
                }
            }
        }
        Ok(())
    }

    /// Copies bytes out of it, from an offset in it.
    ///
    /// # Errors
    /// `EINVAL`: past its end; as [`Hold::read`].
    pub fn take(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.check(at, bytes.len())?;
        match self {
            Self::Own(own) => bytes.copy_from_slice(&own[at..at + bytes.len()]),
            Self::Guest(holds) => {
                for (hold, at, part) in Hold::parts(holds, at, bytes.len()) {
                    hold.read(at, &mut bytes[part])?;
                }
            }
        }
        Ok(())
    }

    fn check(&self, at: usize, len: usize) -> Result<()> {
        if at.checked_add(len).is_none_or(|end| end > self.len()) {
            let what = format!("{len} bytes at {at} of a buffer of {}", self.len());
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(())
    }
}

impl Bytes for Buffer {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        Self::put(self, at, bytes)
    }

    fn take(&mut self, at: usize, bytes: &mut [u8]) -> Result<()> {
        Self::take(self, at, bytes)
    }
}

/// What a back end can do. All in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk, a multiple of `block`.
    pub capacity: u64,
    /// What offsets and lengths are multiples of: a power of two, at least 512. The controller's
    /// format has blocks of this size or larger ones.
    pub block: u32,
    /// What is written whole or not at all when power fails; at least `block`.
    pub atomic_write: u32,
    /// The alignment and the size at which writes are fast, a multiple of `block`.
    pub preferred_write: u32,
    /// No request may change anything.
    pub read_only: bool,
    /// What was written may be lost until it is flushed.
    pub volatile: bool,
    /// The granularity at which space is given back, a multiple of `block`. `None`: it is not, and
    /// [`Request::Deallocate`] fails.
    pub deallocate: Option<u32>,
    /// Whole blocks that were deallocated read as zeroes, guaranteed.
    pub deallocated_reads_zero: bool,
    /// The longest range of one deallocate or zero request that takes no longer than one of
    /// megabytes of writes; the controller splits longer ones and tells the guest.
    pub max_range: u64,
}

/// Why a request failed.
#[derive(Debug)]
pub struct Failure {
    /// What the guest is told.
    pub kind: FailureKind,
    /// What the log is told.
    pub error: Error,
}

/// Kinds of failures, as a guest has to tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The medium could not be read or written (`EIO`), or ended early.
    Medium,
    /// No space is left, or a quota is reached (`ENOSPC`, `EDQUOT`): works again when there is.
    NoSpace,
    /// It cannot be written (`EROFS`, `EBADF`, `EPERM`).
    ReadOnly,
    /// The device behind it is gone (`ENODEV`, `ENXIO`).
    Gone,
    /// Guest memory could not be reached (`EFAULT`, `EACCES`).
    Memory,
    /// The back end does not do this (`EOPNOTSUPP`).
    Unsupported,
    /// Outside the disk, or the disk has become smaller than it was.
    OutOfRange,
    /// A sync has failed, this one or an earlier one: what was written before may be lost, and no
    /// write and no flush succeeds until the disk is opened anew.
    SyncFailed,
    /// A compare: the disk has other data than the buffer.
    Different,
    /// Nobody wants what it comes to any more: its [`Interest`](crate::Interest) has ended.
    Unwanted,
    /// Any other error.
    Other,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match error.errno() {
            Errno::IO => FailureKind::Medium,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => FailureKind::NoSpace,
            Errno::ROFS | Errno::BADF | Errno::PERM => FailureKind::ReadOnly,
            Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM => FailureKind::Gone,
            Errno::FAULT | Errno::ACCESS => FailureKind::Memory,
            Errno::OPNOTSUPP | Errno::NOSYS => FailureKind::Unsupported,
            _ => FailureKind::Other,
        };
        Self { kind, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_is_told_what_kind_of_failure_an_errno_is() {
        for (errnos, expected) in [
            (&[Errno::IO][..], FailureKind::Medium),
            (&[Errno::NOSPC, Errno::DQUOT, Errno::FBIG], FailureKind::NoSpace),
            (&[Errno::ROFS, Errno::BADF, Errno::PERM], FailureKind::ReadOnly),
            (&[Errno::NODEV, Errno::NXIO, Errno::NOMEDIUM], FailureKind::Gone),
            (&[Errno::FAULT, Errno::ACCESS], FailureKind::Memory),
            (&[Errno::OPNOTSUPP, Errno::NOSYS], FailureKind::Unsupported),
            (&[Errno::INVAL, Errno::TIMEDOUT], FailureKind::Other),
        ] {
            for errno in errnos {
                let failure = Failure::from(Error::new(*errno, "a test"));
                assert_eq!(failure.kind, expected, "{errno:?}");
            }
        }
    }
}
