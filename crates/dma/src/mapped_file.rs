//! Files mapped into this process, and access to them that survives their truncation and leaves their
//! holes as they are.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::net::SendFlags;

use super::fault::{self, CHUNK, Fault, Scalar};
use crate::error::{Errno, Error, Result};
use crate::files::MemoryKind;
use crate::page_tables::PageTables;
use crate::sparse::{Holes, Sparse, TRIES};
use crate::userfault;
use crate::watched::{Watch, watch};
use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::Arc;
use vfiod_sync::atomic::Ordering;

/// Mappings that the process may hold at once, whoever pays for them: half of the kernel's default for
/// a whole process (`vm.max_map_count`).
const PROCESS_MAPPINGS: u64 = 32_768;
/// Bytes of address space that the process may spend on them: of 128 TiB.
const PROCESS_BYTES: u64 = 96 << 40;

/// Bytes of control data with as many descriptors as Linux passes with one message.
const CONTROL: usize = 1040;

// Not the facade's: they are process-wide, and no order depends on them.
static MAPPINGS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// How much address space an owner's mappings take.
#[derive(Debug, Default)]
pub(crate) struct Account(AtomicU64);

impl Account {
    /// Bytes mapped now.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(StdOrdering::Relaxed)
    }
}

/// Whom a mapping is charged to.
#[derive(Clone, Copy)]
pub(crate) struct Costs<'a> {
    pub(crate) account: &'a Arc<Account>,
    /// Most bytes on that account.
    pub(crate) limit: u64,
    /// The client that pays for what of the process it takes up; `None`: it is the process's own.
    pub(crate) payer: Option<&'a Payer>,
}

/// A piece of the account and of what the process may map, given back when dropped.
#[derive(Debug)]
struct Piece {
    account: Arc<Account>,
    bytes: u64,
}

impl Piece {
    fn new(account: &Arc<Account>, bytes: u64, limit: u64) -> Result<Self> {
        let piece = Self { account: account.clone(), bytes };
        let space = account.0.fetch_add(bytes, StdOrdering::Relaxed).saturating_add(bytes);
        let all = BYTES.fetch_add(bytes, StdOrdering::Relaxed).saturating_add(bytes);
        let count = MAPPINGS.fetch_add(1, StdOrdering::Relaxed);
        // From here on a drop of the piece undoes the three.
        let refuse = |what| Err(Error::new(Errno::NOMEM, what));
        if space > limit {
            return refuse(format!(
                "mapping {bytes} bytes more would take {space} of {limit} bytes of address space \
                 that one device may spend on its clients' memory"
            ));
        }
        if all > PROCESS_BYTES || count >= PROCESS_MAPPINGS {
            return refuse("the process has mapped as much as it may for its clients".to_owned());
        }
        Ok(piece)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.account.0.fetch_sub(self.bytes, StdOrdering::Relaxed);
        BYTES.fetch_sub(self.bytes, StdOrdering::Relaxed);
        MAPPINGS.fetch_sub(1, StdOrdering::Relaxed);
    }
}

/// Pages of a range of a file that are in memory or in swap (`cachestat`, Linux 6.5); `None`: the kernel does
/// not say. Takes no lock of the inode.
pub(crate) fn pages_in_use(fd: &OwnedFd, offset: u64, len: u64) -> Option<u64> {
    // Since 5.1 a new call has the same number on every architecture.
    const CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    /// `struct cachestat`: in the cache, dirty, under writeback, evicted, recently evicted.
    #[repr(C)]
    #[derive(Default)]
    struct Found([u64; 5]);
    let (range, mut found) = (Range { offset, len }, Found::default());
    // SAFETY: the structures are those of `cachestat`, which reads the one and fills the other.
    let done = unsafe {
        libc::syscall(CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut found, 0_u32)
    };
    (done == 0).then(|| found.0[0].saturating_add(found.0[3]))
}

/// A part of a file, mapped shared. Everything in it may change, and go away, at any moment.
#[derive(Debug)]
pub(crate) struct MappedFile {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    /// `None`: accesses fill holes.
    sparse: Option<Sparse>,
    /// `None`: those of our own memory, and of huge pages, which take few.
    tables: Option<PageTables>,
    watch: Option<Watch>,
    _piece: Piece,
    /// What the client is charged for it.
    _charges: Option<[Charge; 2]>,
}

// SAFETY: the address is valid until the drop, from any thread; what is there is only touched
// by the routines of `fault`, which are made for concurrent change.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps `len` bytes of a file from `offset`, both in whole pages, for a client that pays for it;
    /// the range may reach past the file's end. Where writing is refused for the whole file (a seal), it is mapped for
    /// reading. Where userfaultfd is forbidden, accesses fill holes whatever `holes` says.
    ///
    /// # Errors
    /// `ENOMEM`: more than `costs.limit` bytes on that account, or too much in the process; `ENOSPC`,
    /// `ENOMEM`: more mappings or bytes than the payer's user may have; else
    /// what `mmap` says: `ENODEV` cannot be mapped, `EACCES` not open for reading.
    pub(crate) fn new(
        fd: &Arc<OwnedFd>,
        offset: u64,
        len: u64,
        writable: bool,
        holes: Holes,
        costs: Costs<'_>,
    ) -> Result<Self> {
        let charge = |payer: &Payer| -> Result<_> {
            let mapping = payer.charge(Resource::Mappings, 1)?;
            Ok([mapping, payer.charge(Resource::AddressSpace, len)?])
        };
        let charges = costs.payer.map(charge).transpose()?;
        let piece = Piece::new(costs.account, len, costs.limit)?;
        let size = usize::try_from(len)
            .map_err(|_| Error::new(Errno::NOMEM, "a mapping larger than the address space"))?;
        fault::install();
        let keep = match holes {
            Holes::Keep(kind) if userfault::is_available() => Some(kind),
            _ => None,
        };
        let map = |prot, sharing| {
            let flags = sharing | MapFlags::NORESERVE;
            // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
            unsafe { mmap(std::ptr::null_mut(), size, prot, flags, fd.as_fd(), offset) }
        };
        // The holes of a shared mapping that may not become writable cannot be kept, and a private
        // one that is never written shows the same pages.
        let map_for_reading = || {
            let sharing = if keep.is_some() { MapFlags::PRIVATE } else { MapFlags::SHARED };
            map(ProtFlags::READ, sharing)
        };
        let mut writable = writable;
        let mut mapped = if writable {
            map(ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        } else {
            map_for_reading()
        };
        if writable && matches!(mapped, Err(Errno::PERM | Errno::ACCESS)) {
            writable = false;
            mapped = map_for_reading();
        }
        let base = mapped
            .map_err(|e| Error::new(e, format!("cannot map {len} bytes of a client's file")))?;
        // SAFETY: exactly our new mapping. A failure costs a bigger core dump, nothing else.
        _ = unsafe { madvise(base, size, Advice::LinuxDontDump) };
        let base = NonNull::new(base.cast())
            .ok_or_else(|| Error::new(Errno::NOMEM, "a mapping at address 0"))?;
        let watch = watch(base.as_ptr(), size);
        let mut mapped = Self {
            base,
            len: size,
            writable,
            sparse: None,
            tables: None,
            watch,
            _piece: piece,
            _charges: charges,
        };
        if mapped.watch.is_none() {
            return Err(Error::new(Errno::NOMEM, "the process has mapped too much memory"));
        }
        if let Some(kind) = keep {
            let sparse = Sparse::new(fd, offset, kind)
                .map_err(|e| Error::new(e, "cannot look at a client's file"))?;
            // SAFETY: exactly our new mapping, which the routines of `fault` and the kernel access.
            if unsafe { userfault::register(base, size) } {
                mapped.sparse = Some(sparse);
            }
        }
        if let Some(payer) = costs.payer
            && holes != Holes::Keep(MemoryKind::Huge)
        {
            let keeps_holes = mapped.sparse.is_some();
            // SAFETY: our mapping of a file, which is unmapped when `mapped` is dropped.
            mapped.tables = Some(unsafe { PageTables::new(base, size, keeps_holes, payer) }?);
        }
        Ok(mapped)
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether writes are possible at all.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// Its page tables, where they are counted.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(crate) fn tables(&self) -> Option<&PageTables> {
        self.tables.as_ref()
    }

    /// Whether `len` bytes at `offset` are in the mapping.
    #[inline]
    pub(crate) fn contains(&self, offset: u64, len: usize) -> bool {
        let size = self.len as u64;
        offset <= size && len as u64 <= size - offset
    }

    /// The address of `len` bytes at `offset`, which are about to be accessed; `None` outside the mapping.
    /// Valid as an address while the mapping lives; what is there may go away, which only the kernel and
    /// the routines of `fault` survive.
    #[inline]
    pub(crate) fn at(&self, offset: u64, len: usize) -> Option<NonNull<u8>> {
        if !self.contains(offset, len) {
            return None;
        }
        if let Some(tables) = &self.tables {
            tables.touch(offset, len);
        }
        // SAFETY: `offset` is at most the mapping's length.
        Some(unsafe { self.base.add(offset as usize) })
    }

    #[inline]
    fn at_aligned<T: Scalar>(&self, offset: u64) -> Result<NonNull<u8>, Access> {
        let at = self.at(offset, T::SIZE).ok_or(Access::Gone)?;
        if at.as_ptr().addr() % T::SIZE != 0 {
            return Err(Access::Misaligned);
        }
        Ok(at)
    }

    #[inline]
    fn at_writable<T: Scalar>(&self, offset: u64) -> Result<NonNull<u8>, Access> {
        let at = self.at_aligned::<T>(offset)?;
        if self.writable { Ok(at) } else { Err(Access::ReadOnly) }
    }

    /// Copies out.
    #[inline]
    pub(crate) fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), Access> {
        let at = self.at(offset, dst.len()).ok_or(Access::Gone)?;
        // SAFETY: within the mapping, and `dst` is a slice.
        match unsafe { fault::copy_in(dst.as_mut_ptr(), at.as_ptr(), dst.len()) } {
            Ok(()) => Ok(()),
            Err(fault) => self.read_holes(fault, offset, dst),
        }
    }

    /// Copies in.
    #[inline]
    pub(crate) fn write(&self, offset: u64, src: &[u8]) -> Result<(), Access> {
        let at = self.at(offset, src.len()).ok_or(Access::Gone)?;
        if !self.writable {
            return Err(Access::ReadOnly);
        }
        // SAFETY: within the mapping, which is writable, and `src` is a slice.
        match unsafe { fault::copy_out(at.as_ptr(), src.as_ptr(), src.len()) } {
            Ok(()) => Ok(()),
            Err(fault) => self.write_holes(fault, offset, src),
        }
    }

    /// Finishes a read that has failed at what may be a hole.
    #[cold]
    fn read_holes(&self, fault: Fault, offset: u64, dst: &mut [u8]) -> Result<(), Access> {
        let (sparse, address) = self.hole(fault)?;
        let done = self.copied(address, offset);
        let (offset, dst) = (offset + done as u64, &mut dst[done..]);
        // SAFETY: within the mapping, as `offset` and `dst` were given to `read`.
        let copy = |dst: &mut [u8], skip: usize| unsafe {
            let at = self.base.add(offset as usize + skip);
            fault::copy_in(dst.as_mut_ptr(), at.as_ptr(), dst.len())
        };
        let integer = matches!(dst.len(), 1 | 2 | 4 | 8) && offset.is_multiple_of(dst.len() as u64);
        for _ in 0..TRIES {
            let read = sparse.read(offset, dst).map_err(|_| Access::Gone)?;
            if read == dst.len() {
                // An integer that is there by now is read in one piece.
                let is_there = integer && dst.iter().any(|byte| *byte != 0);
                if !is_there || copy(dst, 0).is_ok() {
                    return Ok(());
                }
                continue;
            }
            // The mapping reaches to the end of the page that the file ends in.
            let last = (offset + dst.len() as u64 - 1) & !(sparse.page() as u64 - 1);
            let reaches_past = |offset| sparse.reaches_past(offset).map_err(|_| Access::Gone);
            if !reaches_past(last)? {
                return Err(Access::Gone);
            }
            if !reaches_past(offset + read as u64)? {
                if copy(&mut dst[read..], read).is_err() {
                    dst[read..].fill(0);
                }
                return Ok(());
            }
            // It has grown meanwhile.
        }
        Err(Access::Gone)
    }

    /// Finishes a write that has failed at what may be a hole: fills holes, and goes on where it
    /// failed.
    #[cold]
    fn write_holes(&self, mut fault: Fault, offset: u64, src: &[u8]) -> Result<(), Access> {
        let end = self.base.as_ptr().addr() + offset as usize + src.len();
        let (mut highest, mut tries) = (0, 0);
        loop {
            let (sparse, address) = self.hole(fault)?;
            tries = if address > highest { 0 } else { tries + 1 };
            highest = highest.max(address | (sparse.page() - 1));
            if tries == TRIES {
                return Err(Access::still_missing(sparse));
            }
            sparse.fill(address, end).map_err(Access::of_fill)?;
            let done = self.copied(address, offset);
            let rest = &src[done..];
            // SAFETY: within the mapping, as `offset` and `src` were given to `write`.
            let copied = unsafe {
                let at = self.base.add(offset as usize + done);
                fault::copy_out(at.as_ptr(), rest.as_ptr(), rest.len())
            };
            match copied {
                Ok(()) => return Ok(()),
                Err(again) => fault = again,
            }
        }
    }

    /// Finishes an access to one integer that has failed at what may be a hole: fills it first.
    #[cold]
    fn fill_and<R>(
        &self,
        mut fault: Fault,
        access: impl Fn() -> Result<R, Fault>,
    ) -> Result<R, Access> {
        let mut tries = 0;
        loop {
            let (sparse, address) = self.hole(fault)?;
            if tries == TRIES {
                return Err(Access::still_missing(sparse));
            }
            tries += 1;
            sparse.fill(address, address + 1).map_err(Access::of_fill)?;
            match access() {
                Ok(value) => return Ok(value),
                Err(again) => fault = again,
            }
        }
    }

    /// What is missing at a fault, if it may be a hole that is kept.
    fn hole(&self, fault: Fault) -> Result<(&Sparse, usize), Access> {
        match (fault, &self.sparse) {
            (Fault::Missing(address), Some(sparse)) => Ok((sparse, address)),
            (fault, _) => Err(fault.into()),
        }
    }

    /// How many bytes of a copy at `offset` have been copied for certain when it failed at
    /// `address`.
    fn copied(&self, address: usize, offset: u64) -> usize {
        let page = address & !(rustix::param::page_size() - 1);
        page.saturating_sub(self.base.as_ptr().addr() + offset as usize).saturating_sub(CHUNK)
    }

    /// Receives what has arrived at a socket, at most `len` bytes, without waiting. Returns 0 at the
    /// end of the stream. Descriptors that came with it are added to `fds`.
    ///
    /// # Errors
    /// `EINVAL`: outside the mapping, or not writable; else those of `recv`.
    pub(crate) fn receive(
        &self,
        offset: u64,
        len: usize,
        socket: BorrowedFd<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<usize, Errno> {
        let at = self.at(offset, len).filter(|_| self.writable).ok_or(Errno::INVAL)?;
        let mut piece = libc::iovec { iov_base: at.as_ptr().cast(), iov_len: len };
        let mut control = [MaybeUninit::<u64>::uninit(); CONTROL / 8];
        // SAFETY: all zeros is a message without an address and without control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: within the mapping, which is writable, and within `control`. The kernel survives
        // that others change the mapping meanwhile, or that it is gone.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
        let received = usize::try_from(received).map_err(|_| last_errno())?;
        // SAFETY: the kernel has written whole headers, of which `message` says where they are, and
        // descriptors that nobody else owns.
        unsafe {
            let mut next = libc::CMSG_FIRSTHDR(&message);
            while let Some(header) = next.as_ref() {
                if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                    let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
                    let first = libc::CMSG_DATA(header).cast::<RawFd>();
                    for at in 0..bytes / size_of::<RawFd>() {
                        fds.push(OwnedFd::from_raw_fd(first.add(at).read_unaligned()));
                    }
                }
                next = libc::CMSG_NXTHDR(&message, header);
            }
        }
        Ok(received)
    }

    /// Sends `head`, then `len` bytes at `offset`, to a socket. Returns how much it took.
    ///
    /// # Errors
    /// `EINVAL`: outside the mapping; else those of `sendmsg`.
    pub(crate) fn send(
        &self,
        head: &[u8],
        offset: u64,
        len: usize,
        socket: BorrowedFd<'_>,
        flags: SendFlags,
    ) -> Result<usize, Errno> {
        let at = self.at(offset, len).ok_or(Errno::INVAL)?;
        let mut pieces = [
            libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() },
            libc::iovec { iov_base: at.as_ptr().cast(), iov_len: len },
        ];
        // SAFETY: all zeros is a message without an address and without control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len();
        // SAFETY: the kernel only reads, from a slice and from within the mapping. It survives that
        // others change that meanwhile, or that it is gone.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags.bits() as i32) };
        usize::try_from(sent).map_err(|_| last_errno())
    }

    /// Loads an aligned integer in one piece. Acquire at least; sequentially consistent with
    /// [`MappedFile::store`] of that ordering.
    #[inline]
    pub(crate) fn load<T: Scalar>(&self, offset: u64) -> Result<T, Access> {
        let at = self.at_aligned::<T>(offset)?;
        // SAFETY: within the mapping, aligned.
        match unsafe { fault::load(at.as_ptr()) } {
            Ok(value) => Ok(value),
            Err(fault) => {
                let mut bytes = [0; 8];
                self.read_holes(fault, offset, &mut bytes[..T::SIZE])?;
                Ok(T::from_memory(bytes))
            }
        }
    }

    /// Stores an aligned integer in one piece. Release at least.
    #[inline]
    pub(crate) fn store<T: Scalar>(
        &self,
        offset: u64,
        value: T,
        ordering: Ordering,
    ) -> Result<(), Access> {
        let at = self.at_writable::<T>(offset)?.as_ptr();
        // SAFETY: within the mapping, aligned, writable.
        self.access(|| unsafe {
            if ordering == Ordering::SeqCst {
                match fault::swap(at, value) {
                    Err(Fault::Unsupported) => {}
                    done => return done.map(drop),
                }
                std::sync::atomic::fence(StdOrdering::SeqCst);
                fault::store(at, value)?;
                std::sync::atomic::fence(StdOrdering::SeqCst);
                return Ok(());
            }
            fault::store(at, value)
        })
    }

    /// Performs an access that writes one integer.
    #[inline]
    fn access<R>(&self, access: impl Fn() -> Result<R, Fault>) -> Result<R, Access> {
        match access() {
            Ok(value) => Ok(value),
            Err(fault) => self.fill_and(fault, access),
        }
    }

    /// Exchanges an aligned integer; what was there. Sequentially consistent.
    #[inline]
    pub(crate) fn swap<T: Scalar>(&self, offset: u64, value: T) -> Result<T, Access> {
        let at = self.at_writable::<T>(offset)?;
        // SAFETY: within the mapping, aligned, writable.
        self.access(|| unsafe { fault::swap(at.as_ptr(), value) })
    }

    /// Stores `new` over `old`; what was there. Sequentially consistent.
    #[inline]
    pub(crate) fn compare_exchange<T: Scalar>(
        &self,
        offset: u64,
        old: T,
        new: T,
    ) -> Result<T, Access> {
        let at = self.at_writable::<T>(offset)?;
        // SAFETY: within the mapping, aligned, writable.
        self.access(|| unsafe { fault::compare_exchange(at.as_ptr(), old, new) })
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // First: the address may be mapped again for another owner at once.
        self.watch = None;
        // SAFETY: our mapping, and nobody holds it any more.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "cannot unmap a client's memory");
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Why an access to a mapping failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Outside the mapping, or cut off by the peer.
    Gone,
    /// Cut off by the peer, or the kernel has no memory for it: it does not say which.
    Missing,
    /// The kernel has no memory to fill a hole with.
    NoMemory,
    /// The file is not open for writing.
    ReadOnly,
    /// An atomic access that is not aligned to its size.
    Misaligned,
    /// Not possible on this architecture.
    Unsupported,
}

impl Access {
    /// Why a hole could not be filled.
    fn of_fill(errno: Errno) -> Self {
        if errno == Errno::NOMEM { Self::NoMemory } else { Self::Gone }
    }

    /// What is missing although it was filled again and again: the client makes a hole of it each time.
    /// Where no huge page is free, the kernel says that there is one already (seen with 6.18).
    fn still_missing(sparse: &Sparse) -> Self {
        if sparse.is_huge() { Self::NoMemory } else { Self::Gone }
    }
}

impl From<Fault> for Access {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing(_) => Self::Missing,
            Fault::Unsupported => Self::Unsupported,
        }
    }
}
