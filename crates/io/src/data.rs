//! What data is read into or written from, and how it comes back.

use smallvec::SmallVec;
use vfiod_buffer::Aligned;
use vfiod_dma::{Hold, Result};

/// Holds of guest memory, in the order of the data. They need not adjoin. Most requests have one.
pub type Holds = SmallVec<[Hold; 1]>;

/// What data is read into, or written from.
#[derive(Debug)]
pub enum Buffer {
    /// No data. What comes back of a request whose ring has ended first.
    None,
    /// Memory of our own.
    Own(Vec<u8>),
    /// The same, as a file opened with `O_DIRECT` wants it.
    Aligned(Aligned),
    /// Guest memory.
    Guest(Holds),
}

impl Buffer {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Own(bytes) => bytes.len(),
            Self::Aligned(bytes) => bytes.len(),
            Self::Guest(holds) => holds.iter().map(Hold::len).sum(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn into_own(self) -> Vec<u8> {
        if let Self::Own(buffer) = self { buffer } else { Vec::new() }
    }

    pub(crate) fn into_aligned(self) -> Option<Aligned> {
        if let Self::Aligned(buffer) = self { Some(buffer) } else { None }
    }

    pub(crate) fn into_hold(self) -> Option<Hold> {
        if let Self::Guest(mut holds) = self { holds.pop() } else { None }
    }
}

/// A request that has completed: bytes moved, and the buffer that comes back.
pub(crate) type Completed = (Result<usize>, Buffer);
