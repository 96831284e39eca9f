//! Regions: the address spaces of a device (VFIO uAPI `struct vfio_region_info`).

use std::fmt;

use crate::error::{Errno, Error, Result};
pub use crate::memory::Area as SparseArea;

/// The unit of what clients can map.
const PAGE: u64 = 4096;
/// The largest region that can be shared, in bytes.
const LARGEST_SHARED: u64 = 1 << 40;

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
    /// The parts of the region that are plain memory, shared with clients (`struct
    /// vfio_region_sparse_mmap_area`): of whole pages, ascending, disjoint. The core makes the
    /// memory, new for each opening of the device, and lends it to the device
    /// ([`crate::Context::shared_memory`]). An access by message that lies within one area is
    /// served from the memory and never reaches the device; clients may map the areas.
    pub shared: Vec<SparseArea>,
    /// Places where a write says "changed" ([`crate::DataPath`]).
    pub doorbells: Vec<Doorbell>,
    /// While a reset runs that the device itself asked for, accesses wait, up to 100 ms. Those of
    /// other regions do not wait: reads give all ones and writes are dropped.
    pub waits_for_reset: bool,
}

/// A doorbell: a place in a region whose write says "changed".
///
/// A device with the power [`crate::Worker`] gets rings in its data path or tasks, without its lock,
/// with the value if that is known. Any other device gets a write of the doorbell's value, `size`
/// bytes (4 if 0).
///
/// In a shared area, a write by message is stored in the memory and rings; a store through a
/// mapping rings nothing, and is seen by a device that polls the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Offset from the region's start in bytes.
    pub offset: u64,
    /// Access size in bytes: 0 (any), 1, 2, 4 or 8.
    pub size: u8,
    /// Only writes of this value ring; `None` for all.
    pub datamatch: Option<u64>,
    /// How clients ring it.
    pub ways: Ways,
}

/// How clients ring a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// By a write, or by an eventfd that they ask for (KVM's ioeventfd). One without `datamatch`
    /// carries no value, so only a device with the power [`crate::Worker`] may offer it.
    EventFd,
    /// By a write only: clients have room for a few eventfds, and a device may have hundreds of
    /// doorbells.
    Message,
}

impl Doorbell {
    /// A doorbell that clients ring by a write, or by an eventfd that carries no value.
    pub const fn eventfd(offset: u64, size: u8) -> Self {
        Self { offset, size, datamatch: None, ways: Ways::EventFd }
    }

    /// A doorbell that clients ring by a write.
    pub const fn message(offset: u64, size: u8) -> Self {
        Self { offset, size, datamatch: None, ways: Ways::Message }
    }

    /// The doorbell, for writes of this value only.
    #[must_use]
    pub const fn matching(self, value: u64) -> Self {
        Self { datamatch: Some(value), ..self }
    }
}

impl Region {
    /// A region that the device does not have.
    pub const fn absent() -> Self {
        Self {
            size: 0,
            flags: RegionFlags::empty(),
            shared: Vec::new(),
            doorbells: Vec::new(),
            waits_for_reset: false,
        }
    }

    /// A region whose every access is a call of the device.
    pub const fn registers(size: u64) -> Self {
        Self {
            size,
            flags: RegionFlags::READ.union(RegionFlags::WRITE),
            shared: Vec::new(),
            doorbells: Vec::new(),
            waits_for_reset: false,
        }
    }

    /// A region that is all plain memory, mappable by clients. `size` is in bytes, a multiple of
    /// the page size.
    pub fn memory(size: u64) -> Self {
        Self { shared: vec![SparseArea { offset: 0, size }], ..Self::registers(size) }
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

    /// Whether memory serves an access: whether it lies within one shared area. An empty one
    /// lies in none.
    #[inline]
    pub(crate) fn is_shared(&self, offset: u64, len: usize) -> bool {
        let end = offset.checked_add(len as u64).filter(|_| len > 0);
        let Some(end) = end.filter(|_| !self.shared.is_empty()) else { return false };
        let next = self.shared.partition_point(|area| area.offset <= offset);
        // Areas end within their region: no overflow.
        next.checked_sub(1).is_some_and(|last| {
            let area = &self.shared[last];
            end <= area.offset + area.size
        })
    }

    /// The doorbells that clients ring by eventfds, each with its place among all.
    pub fn eventfds(&self) -> impl Iterator<Item = (usize, &Doorbell)> {
        let doorbells = self.doorbells.iter().enumerate();
        doorbells.filter(|(_, bell)| bell.ways == Ways::EventFd)
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

    /// Whether the description of the region agrees with itself, and with whether the device has
    /// the power [`crate::Worker`]: `EINVAL`.
    pub(crate) fn validate(&self, index: RegionIndex, works: bool) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Errno::INVAL, format!("{index}: {what}")));
        if !self.shared.is_empty() && self.size > LARGEST_SHARED {
            return wrong(format!("{} bytes; a region that is shared has 2^40 at most", self.size));
        }
        let mut free_from = 0;
        for SparseArea { offset, size } in self.shared.iter().copied() {
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
            free_from = end;
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
            if bell.ways == Ways::EventFd && bell.datamatch.is_none() && !works {
                return wrong(format!(
                    "doorbell {:#x} offers an eventfd without datamatch, which carries no value; \
                     only a device with the power Worker can take it",
                    bell.offset
                ));
            }
        }
        Ok(())
    }
}
