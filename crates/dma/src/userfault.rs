//! Holes in clients' files are not filled by looking at them.
//!
//! Memory that is mapped and not there is allocated when it is touched, even if it is only read, and
//! charged to the memory group of whoever touches it first: us, not the client. A range that is
//! registered here raises SIGBUS instead, and makes the kernel's own accesses fail with `EFAULT`. What
//! is there is accessed as before.
//!
//! `userfaultfd` is asked for faults of user space only (`UFFD_USER_MODE_ONLY`, Linux 5.11), which
//! needs no privilege, and for no messages (`UFFD_FEATURE_SIGBUS`): so nobody waits, and nobody has to
//! answer.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode::read_write};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, userfaultfd};

use crate::error::Errno;

/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: u32 = 1;
/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFD_FEATURE_MISSING_HUGETLBFS`, `UFFD_FEATURE_MISSING_SHMEM`, `UFFD_FEATURE_SIGBUS`.
const FEATURES: u64 = 1 << 4 | 1 << 5 | 1 << 7;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;

const UFFDIO_API: Opcode = read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = read_write::<Register>(0xaa, 0x00);
const UFFDIO_COPY: Opcode = read_write::<CopyPage>(0xaa, 0x03);
const UFFDIO_ZEROPAGE: Opcode = read_write::<ZeroPage>(0xaa, 0x04);

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct CopyPage {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// The process's descriptor; `None`: userfaultfd is forbidden or missing.
fn descriptor() -> Option<&'static OwnedFd> {
    static DESCRIPTOR: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let made = DESCRIPTOR.get_or_init(|| {
        open()
            .inspect_err(|error| {
                tracing::info!(
                    %error,
                    "no userfaultfd: reading memory that a client has not touched allocates it, \
                     charged to this process"
                );
            })
            .ok()
    });
    made.as_ref()
}

fn open() -> Result<OwnedFd, Errno> {
    let user_mode_only = UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: what the descriptor is used for is below: on ranges of callers who agree to it.
    let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | user_mode_only) }?;
    let mut api = Api { api: API, features: FEATURES, ioctls: 0 };
    // SAFETY: the structure and the number are those of UFFDIO_API.
    unsafe { ioctl(&fd, Updater::<UFFDIO_API, _>::new(&mut api)) }?;
    Ok(fd)
}

/// Whether holes can be kept in this process at all.
pub(crate) fn is_available() -> bool {
    descriptor().is_some()
}

/// Makes accesses to what is missing in a mapping of shared memory or huge pages fail. `false`: it
/// cannot be done, and they allocate.
///
/// # Safety
/// The range is one mapping, which only code accesses that survives SIGBUS.
pub(crate) unsafe fn register(base: NonNull<u8>, len: usize) -> bool {
    let Some(fd) = descriptor() else { return false };
    let (start, len) = (base.as_ptr().addr() as u64, len as u64);
    let mut register = Register { start, len, mode: MISSING, ioctls: 0 };
    // SAFETY: the structure and the number are those of UFFDIO_REGISTER; the caller agrees to what
    // becomes of the range, and a `munmap` ends it.
    let done = unsafe { ioctl(fd.as_fd(), Updater::<UFFDIO_REGISTER, _>::new(&mut register)) };
    if let Err(error) = done {
        tracing::debug!(%error, "holes of a mapping cannot be kept");
    }
    done.is_ok()
}

/// Fills a hole with zeros, and those that follow it directly, up to `len` bytes. What is there
/// already stays as it is, and ends this. `start` and `len` are whole pages.
///
/// # Errors
/// `EFAULT`: past the end of the file; `ENOMEM`: no memory; `ENOENT`: not registered.
pub(crate) fn fill(start: usize, len: usize) -> Result<(), Errno> {
    let fd = descriptor().ok_or(Errno::NOENT)?;
    let mut zero = ZeroPage { start: start as u64, len: len as u64, mode: 0, done: 0 };
    // SAFETY: the structure and the number are those of UFFDIO_ZEROPAGE, which changes nothing but
    // pages that are missing in a registered range.
    filled(unsafe { ioctl(fd.as_fd(), Updater::<UFFDIO_ZEROPAGE, _>::new(&mut zero)) })
}

/// Fills a hole of one huge page of `len` bytes with zeros.
///
/// # Errors
/// As [`fill`].
pub(crate) fn fill_huge(start: usize, len: usize) -> Result<(), Errno> {
    let fd = descriptor().ok_or(Errno::NOENT)?;
    let zeros = Zeros::new(len)?;
    let from = zeros.at.as_ptr().addr() as u64;
    let mut copy = CopyPage { to: start as u64, from, len: len as u64, mode: 0, done: 0 };
    // SAFETY: as in `fill`, of UFFDIO_COPY; the source is `len` bytes that live until after the call.
    filled(unsafe { ioctl(fd.as_fd(), Updater::<UFFDIO_COPY, _>::new(&mut copy)) })
}

/// That something is there already is no error, and neither is that some was filled.
fn filled(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::EXIST | Errno::AGAIN) => Ok(()),
        done => done,
    }
}

/// Zeros to be copied, which take no memory.
struct Zeros {
    at: NonNull<u8>,
    len: usize,
}

impl Zeros {
    fn new(len: usize) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ, flags) }?;
        Ok(Self { at: NonNull::new(at.cast()).ok_or(Errno::NOMEM)?, len })
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}
