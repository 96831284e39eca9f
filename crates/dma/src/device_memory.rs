//! The memory that a device shares with its clients in one opening: one sparse file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::pread;
use vfiod_sync::Arc;
use vfiod_sync::atomic::{AtomicBool, Ordering};

use crate::error::{Errno, Error, Result};
use crate::memory::{Area, SharedMemory, sealed_memfd};

/// The bytes between the beginnings of two regions: no region that is shared is larger.
const STRIDE: u64 = 1 << 40;

/// Where a region begins in a device's file, in bytes; also the offset that a client maps to get
/// there. `None`: past 2^63.
///
/// Region *i* is at *i* · 2^40, as in the kernel, but region 0 at 16 · 2^40, for an offset of 0 is
/// what a client passes that has not asked. Regions from 16 on, which PCI does not have, follow
/// behind that.
pub fn region_offset(index: u32) -> Option<u64> {
    let place = match index {
        0 => 16,
        1..16 => u64::from(index),
        _ => u64::from(index) + 1,
    };
    place.checked_mul(STRIDE).filter(|offset| *offset <= i64::MAX as u64 - STRIDE)
}

/// What a region shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRegion {
    /// Index of the region.
    pub index: u32,
    /// Size of the region in bytes.
    pub size: u64,
    /// What clients can map of it, ascending by offset; must not be empty.
    pub areas: Vec<Area>,
}

/// The memory that a device shares with its clients in one opening: one sparse memfd, sealed
/// against shrinking and growing, with each region at its [`region_offset`].
///
/// The file holds only pages that a client may read and write anyway, and is given to clients
/// whole. The core makes it new at each first open, from the description of the device: a client
/// that has left keeps the old file, and sees nothing of what comes after. Something else can keep
/// the descriptor while the server is away ([`DeviceMemory::from_fd`]).
#[derive(Debug)]
pub struct DeviceMemory {
    fd: Arc<OwnedFd>,
    /// By region index.
    views: Vec<(u32, Arc<SharedMemory>)>,
    open: Arc<AtomicBool>,
}

impl DeviceMemory {
    /// Creates the memory of a device, zeroed.
    ///
    /// # Errors
    /// `EINVAL`: an area that is empty, not of whole pages, outside its region or not ascending; a
    /// region of more than 2^40 bytes, named twice, or without areas; what the kernel fails with.
    pub fn new(name: &str, regions: &[SharedRegion]) -> Result<Self> {
        let size = file_size(regions)?;
        Self::with(sealed_memfd(name, size)?, regions)
    }

    /// The memory of a device that was made before, by its descriptor.
    ///
    /// # Errors
    /// `EINVAL`: the file has another size than these regions need, or is not sealed; otherwise
    /// as [`DeviceMemory::new`].
    pub fn from_fd(fd: OwnedFd, regions: &[SharedRegion]) -> Result<Self> {
        let want = file_size(regions)?;
        let seals = fcntl_get_seals(&fd)
            .map_err(|e| Error::new(Errno::INVAL, "shared memory that is no memfd").because(e))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            let what = "shared memory that is not sealed against shrinking and growing";
            return Err(Error::new(Errno::INVAL, what));
        }
        // It cannot change its size any more. Not by `fstat` or `lseek`: a client has the file, and can
        // hold what some kernels lock for that.
        let reads = |offset| {
            let read = pread(&fd, &mut [0], offset);
            read.map_err(|e| Error::new(e, "cannot look at shared memory"))
        };
        if reads(want - 1)? == 0 || reads(want)? == 1 {
            let what = format!("shared memory that is not of {want} bytes");
            return Err(Error::new(Errno::INVAL, what));
        }
        Self::with(fd, regions)
    }

    fn with(fd: OwnedFd, regions: &[SharedRegion]) -> Result<Self> {
        let (fd, open) = (Arc::new(fd), Arc::new(AtomicBool::new(true)));
        let views = regions.iter().map(|region| {
            let SharedRegion { index, size, areas } = region;
            let offset = region_offset(*index).ok_or_else(|| misplaced(*index))?;
            let size = size.next_multiple_of(page());
            let whole = areas.first().is_some_and(|area| area.size == size);
            let areas = if whole { Vec::new() } else { areas.clone() };
            Ok((*index, SharedMemory::view(fd.clone(), offset, size, areas, open.clone())?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        Ok(Self { fd, views, open })
    }

    /// The memory of a region. Its accesses fail with `ENODEV` after [`DeviceMemory::close`].
    pub fn region(&self, index: u32) -> Option<&Arc<SharedMemory>> {
        self.views.iter().find(|(known, _)| *known == index).map(|(_, view)| view)
    }

    /// The descriptor that clients map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Ends the opening that this memory was made for: every later access by the device fails
    /// with `ENODEV`. Clients keep what they have mapped.
    pub fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Zeroes all of it. Does not wait for a client that has the file: see [`SharedMemory::clear`].
    ///
    /// # Errors
    /// As [`SharedMemory::clear`].
    pub fn clear(&self) -> Result<()> {
        self.views.iter().try_for_each(|(_, view)| view.clear())
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.close();
    }
}

fn page() -> u64 {
    rustix::param::page_size() as u64
}

fn misplaced(index: u32) -> Error {
    Error::new(Errno::INVAL, format!("region {index} cannot be shared: its index is too large"))
}

/// The size of the file that has these regions.
fn file_size(regions: &[SharedRegion]) -> Result<u64> {
    let mut size = 0;
    for (at, region) in regions.iter().enumerate() {
        let SharedRegion { index, size: bytes, areas } = region;
        let invalid = |what: &str| {
            Err(Error::new(Errno::INVAL, format!("region {index} cannot be shared: {what}")))
        };
        let offset = region_offset(*index).ok_or_else(|| misplaced(*index))?;
        if regions[..at].iter().any(|known| known.index == *index) {
            return invalid("it is named twice");
        }
        if *bytes == 0 || *bytes > STRIDE {
            return invalid(&format!("it has {bytes} bytes; 1 to 2^40 can be shared"));
        }
        if areas.is_empty() {
            return invalid("it has no areas");
        }
        let (page, mut end) = (page(), 0);
        let bytes = bytes.next_multiple_of(page);
        for Area { offset, size } in areas {
            let whole = offset.is_multiple_of(page) && size.is_multiple_of(page);
            if !whole || *size == 0 {
                return invalid(&format!(
                    "its area of {size:#x} bytes at {offset:#x} is not of whole pages"
                ));
            }
            if *offset < end {
                return invalid("its areas overlap, or are not ascending");
            }
            match offset.checked_add(*size).filter(|end| *end <= bytes) {
                Some(next) => end = next,
                None => return invalid("an area of it reaches past its end"),
            }
        }
        size = size.max(offset + bytes);
    }
    if size == 0 {
        return Err(Error::new(Errno::INVAL, "shared memory of a device that shares nothing"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use rustix::fs::fstat;

    use super::*;

    fn region(index: u32, size: u64, areas: &[(u64, u64)]) -> SharedRegion {
        let areas = areas.iter().map(|&(offset, size)| Area { offset, size }).collect();
        SharedRegion { index, size, areas }
    }

    #[test]
    fn region_offsets_are_those_of_the_kernel_but_for_region_0() {
        let offsets = [(0, 16), (1, 1), (7, 7), (15, 15), (16, 17), (17, 18)];
        for (index, place) in offsets {
            assert_eq!(region_offset(index), Some(place << 40), "region {index}");
        }
        assert_eq!(region_offset(u32::MAX), None);
    }

    #[test]
    fn regions_are_at_their_offsets_in_one_sparse_sealed_file() {
        let regions = [region(0, 0x2000, &[(0, 0x2000)]), region(2, 0x4000, &[(0x1000, 0x1000)])];
        let memory = DeviceMemory::new("test", &regions).unwrap();
        let (bar0, bar2) = (memory.region(0).unwrap(), memory.region(2).unwrap());
        assert!(memory.region(1).is_none());
        bar0.write(0x1ffe, b"ab").unwrap();
        bar2.store(0x1008, 0x1122_3344u32, Ordering::SeqCst).unwrap();
        let mut bytes = [0; 4];
        rustix::io::pread(memory.fd(), &mut bytes[..2], (16 << 40) + 0x1ffe).unwrap();
        assert_eq!(&bytes[..2], b"ab");
        rustix::io::pread(memory.fd(), &mut bytes, (2 << 40) + 0x1008).unwrap();
        assert_eq!(bytes, 0x1122_3344u32.to_ne_bytes());
        assert_eq!((bar2.offset(), bar2.size()), (2 << 40, 0x4000));
        let stat = fstat(memory.fd()).unwrap();
        assert_eq!(stat.st_size as u64, (16 << 40) + 0x2000);
        assert!(stat.st_blocks * 512 <= 2 * 4096, "sparse");
        assert_eq!(rustix::fs::ftruncate(memory.fd(), 1 << 40), Err(Errno::PERM));
        memory.clear().unwrap();
        assert_eq!(fstat(memory.fd()).unwrap().st_blocks, stat.st_blocks, "holes are not filled");
        assert_eq!(bar2.load::<u32>(0x1008).unwrap(), 0);
        bar0.read(0x1ffe, &mut bytes[..2]).unwrap();
        assert_eq!(&bytes[..2], [0, 0]);
    }

    #[test]
    fn access_outside_the_areas_is_refused() {
        let areas = [(0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x1000)];
        let memory = DeviceMemory::new("test", &[region(1, 0x6000, &areas)]).unwrap();
        let bar = memory.region(1).unwrap();
        for (offset, len) in
            [(0, 1), (0xfff, 2), (0x2fff, 2), (0x3000, 1), (0x5000, 1), (u64::MAX, 2)]
        {
            let refused = bar.write(offset, &vec![1; len]).unwrap_err();
            assert_eq!(refused.errno(), Errno::INVAL, "{offset:#x} {len}");
        }
        assert_eq!(bar.load::<u64>(0x5000).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(bar.fill(0x4800, 0x1000, 1).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(fstat(memory.fd()).unwrap().st_blocks, 0, "nothing was touched");
        for (offset, len) in [(0x1000, 8), (0x1ff8, 8), (0x4000, 0x1000), (0x2fff, 1), (0, 0)] {
            bar.read(offset, &mut vec![0; len]).unwrap();
        }
    }

    #[test]
    fn memory_of_an_earlier_opening_is_of_no_use() {
        let regions = [region(0, 0x1000, &[(0, 0x1000)])];
        let first = DeviceMemory::new("test", &regions).unwrap();
        let old = first.region(0).unwrap().clone();
        old.write(0, b"secret").unwrap();
        let client = rustix::io::dup(first.fd()).unwrap();
        drop(first);
        assert_eq!(old.write(0, b"x").unwrap_err().errno(), Errno::NODEV);
        assert_eq!(old.load::<u8>(0).unwrap_err().errno(), Errno::NODEV);
        let second = DeviceMemory::new("test", &regions).unwrap();
        second.region(0).unwrap().write(0, b"others").unwrap();
        let mut bytes = [0; 6];
        rustix::io::pread(&client, &mut bytes, 16 << 40).unwrap();
        assert_eq!(&bytes, b"secret", "an old client sees its own memory only");
    }

    #[test]
    fn memory_is_found_again_by_its_descriptor() {
        let regions = [region(3, 0x2000, &[(0, 0x2000)])];
        let first = DeviceMemory::new("test", &regions).unwrap();
        first.region(3).unwrap().write(5, b"kept").unwrap();
        let kept = || rustix::io::dup(first.fd()).unwrap();
        let second = DeviceMemory::from_fd(kept(), &regions).unwrap();
        let mut bytes = [0; 4];
        second.region(3).unwrap().read(5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"kept");
        let errno = |fd, regions: &[SharedRegion]| {
            DeviceMemory::from_fd(fd, regions).map(drop).unwrap_err().errno()
        };
        assert_eq!(errno(kept(), &[region(3, 0x1000, &[(0, 0x1000)])]), Errno::INVAL);
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let unsealed = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&unsealed, (3 << 40) + 0x2000).unwrap();
        assert_eq!(errno(unsealed, &regions), Errno::INVAL);
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert_eq!(errno(pipe, &regions), Errno::INVAL);
    }

    #[test]
    fn malformed_descriptions_are_refused() {
        let cases: &[&[SharedRegion]] = &[
            &[],
            &[region(0, 0x1000, &[])],
            &[region(0, 0, &[(0, 0x1000)])],
            &[region(0, (1 << 40) + 1, &[(0, 0x1000)])],
            &[region(0, 0x2000, &[(0, 0x800)])],
            &[region(0, 0x2000, &[(0x800, 0x1000)])],
            &[region(0, 0x2000, &[(0, 0)])],
            &[region(0, 0x2000, &[(0x1000, 0x2000)])],
            &[region(0, 0x2000, &[(0x1000, u64::MAX - 0xfff)])],
            &[region(0, 0x2000, &[(0x1000, 0x1000), (0, 0x1000)])],
            &[region(0, 0x2000, &[(0, 0x2000), (0x1000, 0x1000)])],
            &[region(1, 0x1000, &[(0, 0x1000)]), region(1, 0x1000, &[(0, 0x1000)])],
            &[region(u32::MAX, 0x1000, &[(0, 0x1000)])],
        ];
        for case in cases {
            let refused = DeviceMemory::new("test", case).map(drop).unwrap_err();
            assert_eq!(refused.errno(), Errno::INVAL, "{case:?}");
        }
    }
}
