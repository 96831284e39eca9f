//! Regions: the address spaces of a device (VFIO uAPI `struct vfio_region_info`).

use std::fmt;
use std::sync::Arc;

use crate::error::{Errno, Error, Result};
use crate::memory::SharedMemory;

/// The unit of what clients can map.
const PAGE: u64 = 4096;

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
    /// While the device resets itself, accesses wait for the end of that, up to 100 ms. Others
    /// read all ones at once, and write nothing.
    pub waits_for_reset: bool,
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
        Self {
            size: 0,
            flags: RegionFlags::empty(),
            shared: None,
            doorbells: Vec::new(),
            waits_for_reset: false,
        }
    }

    /// A region whose every access is a call of the device.
    pub const fn registers(size: u64) -> Self {
        Self {
            size,
            flags: RegionFlags::READ.union(RegionFlags::WRITE),
            shared: None,
            doorbells: Vec::new(),
            waits_for_reset: false,
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

    /// Checks an access: `EINVAL` outside the region, `EACCES` without permission.
    #[inline]
    pub(crate) fn check(
        &self,
        index: RegionIndex,
        offset: u64,
        len: u64,
        access: RegionFlags,
    ) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(self.outside(index, offset, len));
        }
        if !self.flags.contains(access) {
            return Err(self.forbidden(index, access));
        }
        Ok(())
    }

    /// The memory that serves an access, if it lies within one shared area.
    #[inline]
    pub(crate) fn shared_with(&self, offset: u64, len: usize) -> Option<&SharedMemory> {
        let shared = self.shared.as_ref().filter(|shared| shared.covers(offset, len as u64))?;
        Some(&shared.memory)
    }

    #[cold]
    fn outside(&self, index: RegionIndex, offset: u64, len: u64) -> Error {
        let what = format!("{len} bytes at {offset:#x} are outside {index} of {:#x}", self.size);
        Error::new(Errno::INVAL, what)
    }

    #[cold]
    fn forbidden(&self, index: RegionIndex, access: RegionFlags) -> Error {
        Error::new(Errno::ACCESS, format!("{index} does not allow {access:?}"))
    }

    /// The doorbell that a write rings: of its place and size, and of its value if it matches one.
    pub(crate) fn doorbell_of(&self, offset: u64, data: &[u8]) -> Option<usize> {
        self.doorbells.iter().position(|bell| {
            bell.offset == offset
                && (bell.size == 0 || usize::from(bell.size) == data.len())
                && data.len() <= 8
                && bell.datamatch.is_none_or(|value| {
                    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)) == value
                })
        })
    }

    /// Whether the description of the region agrees with itself: `EINVAL`.
    pub(crate) fn validate(&self, index: RegionIndex) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Errno::INVAL, format!("{index}: {what}")));
        if let Some(shared) = &self.shared {
            let mut free_from = 0;
            for area in &shared.areas {
                let SparseArea { offset, size } = *area;
                if size == 0 || offset % PAGE != 0 || size % PAGE != 0 {
                    return wrong(format!("area {offset:#x}+{size:#x} is not made of pages"));
                }
                if offset < free_from {
                    return wrong(format!("area {offset:#x} is not after the one before it"));
                }
                let end = offset.checked_add(size);
                let Some(end) = end.filter(|&end| end <= self.size) else {
                    return wrong(format!("area {offset:#x}+{size:#x} is not in the region"));
                };
                if end > shared.memory.size() {
                    return wrong(format!("area {offset:#x}+{size:#x} is not in the memory"));
                }
                free_from = end;
            }
        }
        for bell in &self.doorbells {
            if !matches!(bell.size, 0 | 1 | 2 | 4 | 8) {
                return wrong(format!("a doorbell of {} bytes", bell.size));
            }
            let size = if bell.size == 0 { 4 } else { bell.size };
            let end = bell.offset.checked_add(u64::from(size));
            if end.is_none_or(|end| end > self.size) {
                return wrong(format!("doorbell {:#x} is not in the region", bell.offset));
            }
            if !self.flags.contains(RegionFlags::WRITE) {
                return wrong("a doorbell in a region that cannot be written".to_owned());
            }
            let wide = bell.datamatch.is_some_and(|value| size < 8 && value >> (size * 8) != 0);
            if wide {
                return wrong(format!("doorbell {:#x} matches a wider value", bell.offset));
            }
        }
        Ok(())
    }
}

impl SharedAreas {
    /// Whether an access lies within one area. An empty one lies in none.
    #[inline]
    pub(crate) fn covers(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len).filter(|_| len > 0) else { return false };
        let next = self.areas.partition_point(|area| area.offset <= offset);
        // Areas end within their region: no overflow.
        next.checked_sub(1).is_some_and(|last| {
            let area = &self.areas[last];
            end <= area.offset + area.size
        })
    }
}
