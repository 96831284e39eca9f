//! The memory that a device shares with its clients in one opening: one sparse file.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::pread;
use vfiod_sync::Arc;
use vfiod_sync::atomic::{AtomicBool, Ordering};

use crate::error::{Errno, Error, Result};
use crate::memory::{Area, Place, SharedMemory, sealed_memfd};

/// The largest region that can be shared, in bytes.
const LARGEST: u64 = 1 << 40;

/// Where a region begins in a device's file: that depends on the device's other regions, so it does not
/// follow from the index. `None`, always.
#[deprecated(note = "see `SharedMemory::offset` of a region of a `DeviceMemory`")]
pub fn region_offset(_index: u32) -> Option<u64> {
    None
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
/// against shrinking and growing, with the regions one behind the other
/// ([`SharedMemory::offset`]).
///
/// The file is given to clients whole, and whoever has it can fill all of it (`fallocate`). So it has no
/// room but for what clients can map: of each region the pages from its first area to the end of its
/// last one, those between two areas included. The core makes it new at each first open, from the description of the device: a client
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
        let layout = Layout::of(regions)?;
        Self::with(sealed_memfd(name, layout.size)?, regions, &layout)
    }

    /// The memory of a device that was made before, by its descriptor.
    ///
    /// # Errors
    /// `EINVAL`: the file has another size than these regions need, or is not sealed; otherwise
    /// as [`DeviceMemory::new`].
    pub fn from_fd(fd: OwnedFd, regions: &[SharedRegion]) -> Result<Self> {
        let layout = Layout::of(regions)?;
        let want = layout.size;
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
        Self::with(fd, regions, &layout)
    }

    fn with(fd: OwnedFd, regions: &[SharedRegion], layout: &Layout) -> Result<Self> {
        let (fd, open) = (Arc::new(fd), Arc::new(AtomicBool::new(true)));
        let views = regions.iter().zip(&layout.places).map(|(region, place)| {
            let size = region.size.next_multiple_of(page());
            let whole = place.mappable == (0..size) && region.areas.len() == 1;
            let areas = if whole { Vec::new() } else { region.areas.clone() };
            let view = SharedMemory::view(fd.clone(), place, size, areas, open.clone())?;
            Ok((region.index, view))
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

/// Where the regions are in a device's file, in their order.
struct Layout {
    places: Vec<Place>,
    /// Length of the file in bytes.
    size: u64,
}

impl Layout {
    fn of(regions: &[SharedRegion]) -> Result<Self> {
        let (mut places, mut size) = (Vec::new(), 0_u64);
        for (at, region) in regions.iter().enumerate() {
            let invalid = |what: String| {
                Error::new(
                    Errno::INVAL,
                    format!("region {} cannot be shared: {what}", region.index),
                )
            };
            if regions[..at].iter().any(|known| known.index == region.index) {
                return Err(invalid("it is named twice".to_owned()));
            }
            let mappable = mappable(region).map_err(invalid)?;
            // Clients add the offset of an area to that of the region, which is not below 0.
            let offset = size.saturating_sub(mappable.start);
            let end = offset.checked_add(mappable.end).filter(|end| *end <= i64::MAX as u64);
            size = end.ok_or_else(|| invalid("there are too many before it".to_owned()))?;
            places.push(Place { offset, mappable });
        }
        if size == 0 {
            return Err(Error::new(Errno::INVAL, "shared memory of a device that shares nothing"));
        }
        Ok(Self { places, size })
    }
}

/// The part of a region from its first area to the end of its last one, or what is wrong with it.
fn mappable(region: &SharedRegion) -> std::result::Result<Range<u64>, String> {
    let SharedRegion { size, areas, .. } = region;
    if *size == 0 || *size > LARGEST {
        return Err(format!("it has {size} bytes; 1 to 2^40 can be shared"));
    }
    let Some(first) = areas.first() else { return Err("it has no areas".to_owned()) };
    let (page, mut end) = (page(), 0);
    let bytes = size.next_multiple_of(page);
    for Area { offset, size } in areas {
        let whole = offset.is_multiple_of(page) && size.is_multiple_of(page);
        if !whole || *size == 0 {
            return Err(format!(
                "its area of {size:#x} bytes at {offset:#x} is not of whole pages"
            ));
        }
        if *offset < end {
            return Err("its areas overlap, or are not ascending".to_owned());
        }
        match offset.checked_add(*size).filter(|end| *end <= bytes) {
            Some(next) => end = next,
            None => return Err("an area of it reaches past its end".to_owned()),
        }
    }
    Ok(first.offset..end)
}

#[cfg(test)]
mod tests {
    use rustix::fs::fstat;

    use super::*;

    fn region(index: u32, size: u64, areas: &[(u64, u64)]) -> SharedRegion {
        let areas = areas.iter().map(|&(offset, size)| Area { offset, size }).collect();
        SharedRegion { index, size, areas }
    }

    fn length(memory: &DeviceMemory) -> u64 {
        fstat(memory.fd()).unwrap().st_size as u64
    }

    #[test]
    fn regions_are_one_behind_the_other_in_one_sparse_sealed_file() {
        let regions = [region(0, 0x2000, &[(0, 0x2000)]), region(2, 0x4000, &[(0x1000, 0x1000)])];
        let memory = DeviceMemory::new("test", &regions).unwrap();
        let (bar0, bar2) = (memory.region(0).unwrap(), memory.region(2).unwrap());
        assert!(memory.region(1).is_none());
        bar0.write(0x1ffe, b"ab").unwrap();
        bar2.store(0x1008, 0x1122_3344u32, Ordering::SeqCst).unwrap();
        // What a client maps is at the sum of both offsets.
        assert_eq!((bar0.offset(), bar2.offset(), bar2.size()), (0, 0x1000, 0x4000));
        let mut bytes = [0; 4];
        rustix::io::pread(memory.fd(), &mut bytes[..2], 0x1ffe).unwrap();
        assert_eq!(&bytes[..2], b"ab");
        rustix::io::pread(memory.fd(), &mut bytes, 0x1000 + 0x1008).unwrap();
        assert_eq!(bytes, 0x1122_3344u32.to_ne_bytes());
        assert_eq!(length(&memory), 0x3000);
        let blocks = fstat(memory.fd()).unwrap().st_blocks;
        assert!(blocks * 512 <= 2 * 4096, "sparse");
        assert_eq!(rustix::fs::ftruncate(memory.fd(), 1 << 40), Err(Errno::PERM));
        memory.clear().unwrap();
        assert_eq!(fstat(memory.fd()).unwrap().st_blocks, blocks, "holes are not filled");
        assert_eq!(bar2.load::<u32>(0x1008).unwrap(), 0);
        bar0.read(0x1ffe, &mut bytes[..2]).unwrap();
        assert_eq!(&bytes[..2], [0, 0]);
    }

    #[test]
    fn whoever_has_the_file_can_fill_no_more_than_is_mappable() {
        let regions = [
            region(4, 0x8000, &[(0x3000, 0x1000), (0x5000, 0x1000)]),
            region(0, 1 << 40, &[(0x1000, 0x1000)]),
            region(9, 0x800, &[(0, 0x1000)]),
        ];
        let memory = DeviceMemory::new("test", &regions).unwrap();
        // Clients add the offsets, so what is before the first area of the first region is there.
        assert_eq!(length(&memory), 0x6000 + 0x1000 + 0x1000);
        let offsets = [4, 0, 9].map(|index| memory.region(index).unwrap().offset());
        assert_eq!(offsets, [0, 0x5000, 0x7000]);
        let fill = |from, bytes| {
            rustix::fs::fallocate(memory.fd(), rustix::fs::FallocateFlags::empty(), from, bytes)
        };
        assert_eq!(fill(0, length(&memory)), Ok(()));
        assert_eq!(fill(length(&memory), 1), Err(Errno::PERM));
        assert_eq!(rustix::io::pwrite(memory.fd(), b"x", 1 << 40), Err(Errno::PERM));
        // No region reaches into another one.
        for (at, index) in [4, 0, 9].into_iter().enumerate() {
            let view = memory.region(index).unwrap();
            let areas = &regions[at].areas;
            areas.iter().for_each(|area| view.fill(area.offset, area.size, at as u8 + 1).unwrap());
        }
        for (at, index) in [4, 0, 9].into_iter().enumerate() {
            for area in &regions[at].areas {
                let mut bytes = vec![0; area.size as usize];
                memory.region(index).unwrap().read(area.offset, &mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == at as u8 + 1), "region {index}");
                let from = memory.region(index).unwrap().offset() + area.offset;
                rustix::io::pread(memory.fd(), &mut bytes, from).unwrap();
                assert!(bytes.iter().all(|byte| *byte == at as u8 + 1), "region {index}");
            }
        }
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
        rustix::io::pread(&client, &mut bytes, 0).unwrap();
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
        rustix::fs::ftruncate(&unsealed, 0x2000).unwrap();
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
        ];
        for case in cases {
            let refused = DeviceMemory::new("test", case).map(drop).unwrap_err();
            assert_eq!(refused.errno(), Errno::INVAL, "{case:?}");
        }
    }
}
