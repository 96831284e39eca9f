//! What a client asks to be mapped.

use std::fmt;
use std::os::fd::OwnedFd;

use vfiod_sync::Arc;

use crate::peer::DmaPeer;

bitflags::bitflags! {
    /// What a device may do with a mapping (`VFIO_USER_F_DMA_REGION_READ`, `_WRITE`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Perm: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

/// Who made a mapping: an open file of the core, for example. All mappings of an owner end with it
/// ([`Space::drop_owner`](crate::Space::drop_owner)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapOwner(pub u64);

impl fmt::Display for MapOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is behind a mapping.
pub enum Backing {
    /// A file that the space accepts ([`AcceptedFiles`](crate::AcceptedFiles)), from an offset in bytes.
    File {
        /// The descriptor. The space keeps one for each file and access mode.
        fd: OwnedFd,
        /// Offset of the mapping's first byte in the file.
        offset: u64,
    },
    /// Memory that only messages reach. Mappings of one peer should share the `Arc`.
    Peer(Arc<dyn DmaPeer>),
}

/// A mapping to be made.
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
