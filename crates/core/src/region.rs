//! Regions: the address spaces of a device (VFIO uAPI `struct vfio_region_info`).

use std::fmt;
use std::sync::Arc;

use crate::memory::SharedMemory;

/// The number of a region in its device (`VFIO_PCI_BAR0_REGION_INDEX` and so on for PCI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionIndex(pub u32);

impl fmt::Display for RegionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}", self.0)
    }
}

bitflags::bitflags! {
    /// What a client may do with a region by message (`VFIO_REGION_INFO_FLAG_READ`, `_WRITE`).
    /// `MMAP` and `CAPS` follow from [`Region::shared`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// Reads are allowed.
        const READ = 1;
        /// Writes are allowed.
        const WRITE = 2;
    }
}

/// One region as a device describes it. Size 0 stands for "not there".
#[derive(Clone, Debug)]
pub struct Region {
    /// Size in bytes.
    pub size: u64,
    /// Allowed accesses.
    pub flags: RegionFlags,
    /// The part of the region that is plain memory, shared with the client.
    pub shared: Option<SharedAreas>,
    /// Places where a client may signal an eventfd instead of sending a write.
    pub doorbells: Vec<Doorbell>,
}

/// Memory behind a region, and which parts of the region it stands for.
///
/// An access by message that lies within one area is served from the memory and never
/// reaches the device; clients may map the areas.
#[derive(Clone, Debug)]
pub struct SharedAreas {
    /// Memory of the region's size; offset 0 is the region's offset 0.
    pub memory: Arc<SharedMemory>,
    /// Page-aligned, ascending, disjoint.
    pub areas: Vec<SparseArea>,
}

/// A part of a region (`struct vfio_region_sparse_mmap_area`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseArea {
    /// Offset from the region's start in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A place in a region that a client may write through an eventfd (KVM's ioeventfd).
///
/// The device sees it as a write of `datamatch` (or zero) of `size` bytes (4 if 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Offset from the region's start in bytes.
    pub offset: u64,
    /// Access size in bytes: 0 (any), 1, 2, 4 or 8.
    pub size: u8,
    /// Only writes of this value ring; `None` for all.
    pub datamatch: Option<u64>,
}

impl Region {
    /// A region that the device has not.
    pub const fn absent() -> Self {
        Self { size: 0, flags: RegionFlags::empty(), shared: None, doorbells: Vec::new() }
    }

    /// A region whose every access is a call of the device.
    pub const fn registers(size: u64) -> Self {
        Self {
            size,
            flags: RegionFlags::READ.union(RegionFlags::WRITE),
            shared: None,
            doorbells: Vec::new(),
        }
    }

    /// A region that is all plain memory, mappable by the client.
    pub fn memory(memory: Arc<SharedMemory>) -> Self {
        let size = memory.size();
        Self {
            shared: Some(SharedAreas { memory, areas: vec![SparseArea { offset: 0, size }] }),
            ..Self::registers(size)
        }
    }
}
