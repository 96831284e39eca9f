//! What is asked of a disk, with its buffer, and what becomes of it.

use vfiod_dma::{Errno, Error, Hold, Result};
use vfiod_io::Holds;

use crate::bytes::Bytes;
use crate::failure::Failure;

/// What is to be done. Offsets and lengths are in bytes, multiples of [`Limits::block`](crate::Limits::block),
/// and within the capacity that the controller last saw; a back end that has shrunk meanwhile fails the request.
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
    /// Gives the blocks of a range back, as far as whole ones lie in it. What it reads as afterwards is
    /// [`Limits::deallocated_reads_zero`](crate::Limits::deallocated_reads_zero)'s; blocks outside the
    /// range keep their data. Only where [`Limits::deallocate`](crate::Limits::deallocate) is given.
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

/// What became of a request.
#[derive(Debug)]
pub struct Done {
    /// All of it was done, or it failed: of a failed write any part may have been done.
    pub result: Result<(), Failure>,
    /// The buffer of a read or write. `None` if it has none, or was lost with the back end.
    pub buffer: Option<Buffer>,
}
