#![doc = include_str!("../README.md")]
//!
//! DMA: the table of a device's mappings into its clients' memory, and access through it.
//!
//! | module | its job |
//! | --- | --- |
//! | `space` | [`DmaSpace`]: mapping and unmapping, and whose each mapping is |
//! | `access` | reading, writing, translating: the data path |
//! | `table` | mappings sorted by address |
//! | `files` | which file is behind a mapping, how much of it to map |
//! | `mapped_file` | a file mapped into this process |
//! | `fault` | access that survives what the peer does to the file |
//! | `peer` | memory reached by messages: requests and completions |
//! | `pin` | accesses that hold no lock, and waiting for them |
//!
//! # Locks
//! The *control* lock is held while mappings come and go, also during `mmap`; the *table* lock
//! is taken for writing only for the few instructions that change the table. An access takes
//! the table lock for reading, copies up to [`DIRECT`] bytes under it, and pins what is larger.
//! Neither is held while a peer is waited for. Order: control, table, pins.
//!
//! # What it does not implement
//! Dirty logging. Its place is where `access` has written and where a writable pin ends.

mod access;
pub mod error;
mod fault;
mod files;
mod mapped_file;
pub mod memory;
mod peer;
mod pin;
mod space;
mod table;

use std::fmt;
use std::os::fd::OwnedFd;

pub use self::access::{DmaAccess, Span};
pub use self::error::{Errno, Error, Result};
pub use self::fault::Scalar;
use self::mapped_file::Access;
pub use self::peer::{Completion, DmaPeer, Reply};
pub use self::pin::{Pinned, PinnedSegment};
pub use self::space::{DmaSpace, DmaUsage, MappingInfo};
use vfiod_sync::Arc;

/// Accesses up to this many bytes are copied under the table lock: under a microsecond. Larger
/// ones pin their mappings instead.
pub const DIRECT: usize = 16 << 10;

/// Who made a mapping: an open file of the core, for example. All mappings of an owner go at once
/// ([`DmaSpace::drop_owner`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapOwner(pub u64);

impl fmt::Display for MapOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

bitflags::bitflags! {
    /// What the device may do with a mapping (`VFIO_USER_F_DMA_REGION_READ`, `_WRITE`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Perm: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

/// What is behind a mapping.
pub enum Backing {
    /// A regular file (memfd, hugetlbfs, a file on a disk), from an offset in bytes.
    File {
        /// The descriptor; kept no longer than the mapping needs it.
        fd: OwnedFd,
        /// Offset of the mapping's first byte in the file.
        offset: u64,
    },
    /// Memory that only messages reach. Mappings of one peer should share the `Arc`.
    Peer(Arc<dyn DmaPeer>),
}

/// A mapping to be mapped.
pub struct MapRequest {
    /// First IO virtual address.
    pub iova: u64,
    /// Size in bytes, not 0; the end may be 2^64 exactly.
    pub size: u64,
    /// Allowed accesses.
    pub perm: Perm,
    /// What is behind it.
    pub backing: Backing,
}

/// The error of an access to a client's memory at `iova`.
fn failed(access: Access, iova: u64) -> Error {
    match access {
        Access::Gone => Error::new(
            Errno::FAULT,
            format!("the client's file does not reach to what is mapped at {iova:#x}"),
        ),
        Access::ReadOnly => Error::new(
            Errno::ACCESS,
            format!("the client's file behind {iova:#x} is not open for writing"),
        ),
        Access::Misaligned => Error::new(
            Errno::INVAL,
            format!("an atomic access at {iova:#x}, which is not aligned to its size"),
        ),
        Access::Unsupported => Error::new(
            Errno::OPNOTSUPP,
            "this architecture has no recoverable atomic read-modify-write",
        ),
    }
}

#[cfg(all(test, shuttle))]
mod model;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
