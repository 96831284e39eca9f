//! Memory that a device shares with its clients (memfd; sealed, so it can never shrink).

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pread;
use rustix::net::SendFlags;

use crate::error::{Errno, Error, Result};
use crate::fault::Scalar;
use crate::mapped_file::{Access, Account, Costs, MappedFile, pages_in_use};
use crate::sparse::Holes;
use vfiod_sync::Arc;
use vfiod_sync::atomic::{AtomicBool, Ordering};

/// How much of a file is read at once to find what is not zero.
const PIECE: usize = 64 << 10;
/// How much of a file is looked at as one to find out whether anything is there.
const LOOK: u64 = 2 << 20;

/// Memory of fixed size that clients can map: a memfd of its own, or the part of a
/// [`DeviceMemory`](crate::DeviceMemory) that belongs to one region.
///
/// Clients write it at any moment, so what was read once need not be there the next time;
/// there is no way to get a slice of it. To send it without a copy in this process, there is
/// [`SharedMemory::send`].
#[derive(Debug)]
pub struct SharedMemory {
    size: u64,
    fd: Arc<OwnedFd>,
    place: Place,
    /// What may be accessed, ascending by offset; empty: all of it.
    areas: Vec<Area>,
    mapping: MappedFile,
    open: Arc<AtomicBool>,
}

/// A part of a region that clients can map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Offset in the region, in bytes: a multiple of the page size.
    pub offset: u64,
    /// Size in bytes: a multiple of the page size, not 0.
    pub size: u64,
}

/// Where a region is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it begins. What is outside `mappable` may be another region's, or past the file's end.
    pub(crate) offset: u64,
    /// Which part of it is in the file, by offsets in the region.
    pub(crate) mappable: Range<u64>,
}

/// Makes a memfd of zeroes that nobody can resize.
pub(crate) fn sealed_memfd(name: &str, size: u64) -> Result<OwnedFd> {
    let fails = |what: &'static str| move |errno| Error::new(errno, what);
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(fails("cannot create shared memory"))?;
    ftruncate(&fd, size).map_err(|errno| match errno {
        Errno::FBIG => {
            let what = "shared memory of this size is a longer file than RLIMIT_FSIZE allows";
            Error::new(errno, format!("{what}: {size} bytes"))
        }
        _ => Error::new(errno, "cannot size shared memory"),
    })?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(fails("cannot seal shared memory"))?;
    Ok(fd)
}

impl SharedMemory {
    /// Creates zeroed memory. `size` is in bytes, a multiple of the page size.
    ///
    /// # Errors
    /// `EINVAL`: a size of 0, or not a multiple of the page size; what the kernel fails with.
    pub fn new(name: &str, size: u64) -> Result<Arc<Self>> {
        let page = rustix::param::page_size() as u64;
        if size == 0 || !size.is_multiple_of(page) {
            return Err(Error::new(
                Errno::INVAL,
                format!("shared memory of {size} bytes: not a multiple of {page}"),
            ));
        }
        let fd = Arc::new(sealed_memfd(name, size)?);
        let place = Place { offset: 0, mappable: 0..size };
        Self::view(fd, &place, size, Vec::new(), Arc::new(AtomicBool::new(true)))
    }

    /// A region of `size` bytes in a sealed file, of which `areas` may be accessed while `open`.
    pub(crate) fn view(
        fd: Arc<OwnedFd>,
        place: &Place,
        size: u64,
        areas: Vec<Area>,
        open: Arc<AtomicBool>,
    ) -> Result<Arc<Self>> {
        let account = Arc::new(Account::default());
        let costs = Costs { account: &account, limit: u64::MAX, payer: None };
        let Range { start, end } = place.mappable;
        let from = place.offset + start;
        let mapping = MappedFile::new(&fd, from, end - start, true, Holes::Fill, costs)?;
        Ok(Arc::new(Self { size, fd, place: place.clone(), areas, mapping, open }))
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor that clients map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where in the file of [`SharedMemory::fd`] this memory begins, in bytes: what clients can map of it is
    /// at this offset and that of its area together.
    pub fn offset(&self) -> u64 {
        self.place.offset
    }

    /// Where an access is in the mapping.
    ///
    /// # Errors
    /// `EINVAL`: outside the areas that clients can map; `ENODEV`: the opening that this memory
    /// was made for has ended.
    #[inline]
    fn check(&self, offset: u64, len: u64) -> Result<u64> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(ended());
        }
        if self.areas.is_empty() {
            return Ok(offset);
        }
        if len == 0 {
            return Ok(0);
        }
        let at = self.areas.partition_point(|area| area.offset <= offset);
        let inside = at.checked_sub(1).and_then(|at| self.areas.get(at)).is_some_and(|area| {
            let from = offset - area.offset;
            from < area.size && len <= area.size - from
        });
        if inside { Ok(offset - self.place.mappable.start) } else { Err(failed(Access::Gone)) }
    }

    /// Copies out; 1, 2, 4 or 8 aligned bytes in one piece.
    ///
    /// # Errors
    /// `EINVAL`: outside the memory, or the areas of it that clients can map; `ENODEV`: the
    /// opening of the device that this memory was made for has ended.
    pub fn read(&self, offset: u64, dst: &mut [u8]) -> Result<()> {
        let at = self.check(offset, dst.len() as u64)?;
        self.mapping.read(at, dst).map_err(failed)
    }

    /// Copies in; 1, 2, 4 or 8 aligned bytes in one piece.
    ///
    /// # Errors
    /// As [`SharedMemory::read`].
    pub fn write(&self, offset: u64, src: &[u8]) -> Result<()> {
        let at = self.check(offset, src.len() as u64)?;
        self.mapping.write(at, src).map_err(failed)
    }

    /// Receives what has arrived at a stream socket, at most `len` bytes, straight into the memory
    /// at `offset`, without waiting. Returns how many bytes; 0 at the end of the stream.
    /// Descriptors that came with them are added to `fds`, close-on-exec.
    ///
    /// # Errors
    /// `EINVAL`, `ENODEV`: as [`SharedMemory::read`], nothing was received; else those of `recv`:
    /// `EAGAIN`, nothing has arrived.
    pub fn receive(
        &self,
        offset: u64,
        len: usize,
        socket: BorrowedFd<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> std::result::Result<usize, Errno> {
        let at = self.check(offset, len as u64).map_err(|error| error.errno())?;
        self.mapping.receive(at, len, socket, fds)
    }

    /// Sends `head`, then `len` bytes of the memory at `offset`, to a stream socket, with one system
    /// call. Returns how many bytes of both the socket took. Blocks as `flags` and the socket say.
    ///
    /// # Errors
    /// `EINVAL`, `ENODEV`: as [`SharedMemory::read`]; else those of `sendmsg`.
    pub fn send(
        &self,
        head: &[u8],
        offset: u64,
        len: usize,
        socket: BorrowedFd<'_>,
        flags: SendFlags,
    ) -> std::result::Result<usize, Errno> {
        let at = self.check(offset, len as u64).map_err(|error| error.errno())?;
        self.mapping.send(head, at, len, socket, flags)
    }

    /// Fills a range with a byte.
    ///
    /// # Errors
    /// As [`SharedMemory::read`].
    pub fn fill(&self, offset: u64, len: u64, byte: u8) -> Result<()> {
        const PIECE: usize = 4096;
        self.check(offset, len)?;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(failed(Access::Gone));
        }
        let piece = [byte; PIECE];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(PIECE as u64) as usize;
            self.write(offset + done, &piece[..part])?;
            done += part as u64;
        }
        Ok(())
    }

    /// Zeroes all of it: for a device's reset. Pages that are there stay, holes stay holes.
    ///
    /// What is not zero is found by reading the file, and written through the mapping: neither takes the
    /// lock of the inode. A client, which has the file, can hold that for ever, by a `write` to the file
    /// from memory whose page fault does not return; then `fallocate` would not return either.
    ///
    /// # Errors
    /// `ENODEV`: as [`SharedMemory::read`]; what the kernel says to `pread`.
    pub fn clear(&self) -> Result<()> {
        let zeros = vec![0; rustix::param::page_size()];
        let mut clear = |at, piece: &[u8]| self.write(at, &zeros[..piece.len()]);
        self.all_areas().into_iter().try_for_each(|area| self.each_page(area, &mut clear))
    }

    /// The pages that are not zero, with their offsets: at most `most` of them. Found by reading the file, as by
    /// [`SharedMemory::clear`]: holes stay holes, and no client is waited for.
    ///
    /// # Errors
    /// `EFBIG`: more pages are not zero. `ENODEV`: as [`SharedMemory::read`]; what the kernel says to `pread`.
    pub fn pages_in_use(&self, most: usize) -> Result<Vec<(u64, Vec<u8>)>> {
        self.check(self.areas.first().map_or(0, |area| area.offset), 0)?;
        let mut pages = Vec::new();
        let mut keep = |at, piece: &[u8]| {
            if pages.len() == most {
                let what = format!("more than {most} pages of shared memory are not zero");
                return Err(Error::new(Errno::FBIG, what));
            }
            pages.push((at, piece.to_vec()));
            Ok(())
        };
        self.all_areas().into_iter().try_for_each(|area| self.each_page(area, &mut keep))?;
        Ok(pages)
    }

    fn all_areas(&self) -> Vec<Area> {
        match &self.areas[..] {
            [] => vec![Area { offset: 0, size: self.size }],
            areas => areas.to_vec(),
        }
    }

    /// Calls `each` for every page of an area that is not zero.
    fn each_page(&self, area: Area, each: &mut impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let Area { offset, size } = area;
        if pages_in_use(&self.fd, self.place.offset + offset, size) == Some(0) {
            return Ok(());
        }
        if size > LOOK {
            // What has few pages is not looked at in all its pieces.
            let half = (size / 2).next_multiple_of(LOOK);
            self.each_page(Area { offset, size: half }, each)?;
            return self.each_page(Area { offset: offset + half, size: size - half }, each);
        }
        let page = rustix::param::page_size();
        let (mut bytes, zeros) = (vec![0; PIECE], vec![0; page]);
        let mut done = 0;
        while done < size {
            let room = &mut bytes[..PIECE.min((size - done) as usize)];
            let at = offset + done;
            let read = match pread(&self.fd, room, self.place.offset + at) {
                Ok(0) => return Err(failed(Access::Gone)),
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::new(errno, "cannot look at shared memory")),
            };
            for (at, piece) in (at..).step_by(page).zip(bytes[..read].chunks(page)) {
                if *piece != zeros[..piece.len()] {
                    each(at, piece)?;
                }
            }
            done += read as u64;
        }
        Ok(())
    }

    /// Loads an integer in one piece, with acquire ordering.
    ///
    /// # Errors
    /// As [`SharedMemory::read`]; `EINVAL`: not aligned.
    pub fn load<T: Scalar>(&self, offset: u64) -> Result<T> {
        let at = self.check(offset, T::SIZE as u64)?;
        self.mapping.load(at).map_err(failed)
    }

    /// Stores an integer in one piece.
    ///
    /// # Errors
    /// As [`SharedMemory::load`].
    pub fn store<T: Scalar>(&self, offset: u64, value: T, ordering: Ordering) -> Result<()> {
        let at = self.check(offset, T::SIZE as u64)?;
        self.mapping.store(at, value, ordering).map_err(failed)
    }
}

#[cold]
fn ended() -> Error {
    Error::new(Errno::NODEV, "shared memory of an opening of the device that has ended")
}

#[cold]
fn failed(access: Access) -> Error {
    let what = match access {
        // Its file is sealed: nobody can cut it, so this can only be the offset.
        Access::Gone | Access::Missing | Access::ReadOnly => "an access outside the shared memory",
        // Its holes are not kept, so that none is filled by hand.
        Access::NoMemory => "an access to shared memory that cannot be had",
        Access::Misaligned => "an atomic access that is not aligned",
        Access::Unsupported => "an atomic access that this architecture does not have",
    };
    Error::new(Errno::INVAL, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written() {
        let memory = SharedMemory::new("test", 8192).unwrap();
        memory.write(4090, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let mut bytes = [0; 10];
        memory.read(4089, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
        memory.fill(1, 8190, 0xff).unwrap();
        memory.read(8182, &mut bytes).unwrap();
        assert_eq!(bytes, [255, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(memory.load::<u32>(0).unwrap(), 0xffff_ff00u32.to_le());
        memory.store(4, 7u32, Ordering::SeqCst).unwrap();
        assert_eq!(memory.load::<u32>(4).unwrap(), 7);
    }

    #[test]
    fn cleared_it_is_zero_for_all_and_its_holes_stay_holes() {
        const SIZE: u64 = 1 << 30;
        let memory = SharedMemory::new("test", SIZE).unwrap();
        memory.fill(5 << 20, 3 << 20, 0xff).unwrap();
        // As a client that never maps it: the pages are not in our page table.
        let places = [0, 4095, 4096, LOOK - 1, LOOK, (5 << 20) + 9, SIZE / 2 - 1, SIZE - 1];
        for place in places {
            rustix::io::pwrite(memory.fd(), &[1], place).unwrap();
        }
        let blocks = || rustix::fs::fstat(memory.fd()).unwrap().st_blocks;
        let before = blocks();
        memory.clear().unwrap();
        assert_eq!(blocks(), before, "blocks of the file");
        let mut bytes = vec![1; 3 << 20];
        memory.read(5 << 20, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        for place in places {
            let mut byte = [1];
            rustix::io::pread(memory.fd(), &mut byte, place).unwrap();
            assert_eq!(byte, [0], "a client's byte at {place:#x}");
        }
        memory.store(8, 7u64, Ordering::SeqCst).unwrap();
        assert_eq!(memory.load::<u64>(8).unwrap(), 7);
    }

    #[test]
    fn pages_that_are_not_zero_are_found_and_holes_stay_holes() {
        const SIZE: u64 = 1 << 30;
        let memory = SharedMemory::new("test", SIZE).unwrap();
        memory.fill(0x3000, 0x1000, 0).unwrap();
        memory.write(0x5ffe, b"abcd").unwrap();
        rustix::io::pwrite(memory.fd(), b"z", SIZE - 1).unwrap();
        let blocks = || rustix::fs::fstat(memory.fd()).unwrap().st_blocks;
        let before = blocks();
        let pages = memory.pages_in_use(3).unwrap();
        let at: Vec<u64> = pages.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [0x5000, 0x6000, SIZE - 0x1000]);
        assert!(pages.iter().all(|(_, page)| page.len() == 0x1000));
        assert_eq!((&pages[0].1[0xffe..], &pages[1].1[..2]), (&b"ab"[..], &b"cd"[..]));
        assert_eq!((pages[2].1[0xfff], blocks()), (b'z', before));
        assert_eq!(memory.pages_in_use(2).unwrap_err().errno(), Errno::FBIG);
    }

    #[test]
    fn pages_are_counted_whoever_has_filled_them() {
        let memory = SharedMemory::new("test", 1 << 20).unwrap();
        let count = |offset, len| pages_in_use(&memory.fd, offset, len);
        // `None` before Linux 6.5: then all of it is read.
        let Some(pages) = count(0, 1 << 20) else { return };
        assert_eq!(pages, 0);
        rustix::io::pwrite(memory.fd(), &[0], 8192).unwrap();
        memory.write(65536, &[0]).unwrap();
        assert_eq!(
            (count(0, 1 << 20), count(0, 8192), count(8192, 4096)),
            (Some(2), Some(0), Some(1))
        );
    }

    #[test]
    fn a_client_sees_it_and_cannot_resize_it() {
        let memory = SharedMemory::new("test", 4096).unwrap();
        memory.write(100, b"hello").unwrap();
        let mut bytes = [0; 5];
        rustix::io::pread(memory.fd(), &mut bytes, 100).unwrap();
        assert_eq!(&bytes, b"hello");
        for size in [0, 4095, 8192] {
            assert_eq!(ftruncate(memory.fd(), size), Err(Errno::PERM));
        }
        let more = fcntl_add_seals(memory.fd(), SealFlags::WRITE);
        assert_eq!(more, Err(Errno::PERM));
    }

    #[test]
    fn a_socket_receives_into_it_and_sends_from_it() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let stream = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(stream.0, stream.1, stream.2, None).unwrap();
        let memory = SharedMemory::new("test", 8192).unwrap();
        let fds = &mut Vec::new();
        assert_eq!(memory.receive(0, 8, ours.as_fd(), fds), Err(Errno::AGAIN));
        rustix::io::write(&theirs, b"0123456789").unwrap();
        assert_eq!(memory.receive(8185, 8, ours.as_fd(), fds), Err(Errno::INVAL));
        assert_eq!(memory.receive(8184, 8, ours.as_fd(), fds), Ok(8));
        assert_eq!(memory.receive(0, 8, ours.as_fd(), fds), Ok(2), "no more than has arrived");
        assert_eq!(memory.load::<u16>(0).unwrap().to_ne_bytes(), *b"89");
        assert!(fds.is_empty());
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        assert_eq!(memory.send(b"", 8185, 8, ours.as_fd(), flags), Err(Errno::INVAL));
        assert_eq!(memory.send(b"head", 8184, 8, ours.as_fd(), flags), Ok(12));
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::read(&theirs, &mut bytes), Ok(12));
        assert_eq!(&bytes[..12], b"head01234567");
        drop(theirs);
        assert_eq!(memory.receive(0, 8, ours.as_fd(), fds), Ok(0));
        assert_eq!(memory.send(b"head", 0, 8, ours.as_fd(), flags), Err(Errno::PIPE));
    }

    #[test]
    fn bounds_and_sizes() {
        for size in [0, 1, 4095, 4097] {
            assert_eq!(SharedMemory::new("test", size).unwrap_err().errno(), Errno::INVAL);
        }
        let memory = SharedMemory::new("test", 4096).unwrap();
        let mut two = [0; 2];
        for offset in [4095, 4096, 4097, u64::MAX - 1, u64::MAX] {
            assert_eq!(memory.read(offset, &mut two).unwrap_err().errno(), Errno::INVAL);
            assert_eq!(memory.write(offset, &two).unwrap_err().errno(), Errno::INVAL);
            assert_eq!(memory.fill(offset, 2, 1).unwrap_err().errno(), Errno::INVAL);
            assert_eq!(memory.load::<u16>(offset).unwrap_err().errno(), Errno::INVAL);
        }
        assert_eq!(memory.load::<u16>(1).unwrap_err().errno(), Errno::INVAL);
        memory.read(4096, &mut []).unwrap();
    }
}
