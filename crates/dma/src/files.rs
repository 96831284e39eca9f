//! Which file is behind a mapping, whether it may be mapped, and how much of it to map.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, Stat, fcntl_get_seals, fcntl_getfl, fstat, fstatfs};

use crate::error::{Errno, Error, Result};

/// Files up to this long are mapped whole, once; of longer ones, each mapping by itself.
pub(crate) const WHOLE: u64 = 1 << 40;
/// How far a mapping reaches past the end of a file for mappings that claim more: the file may
/// grow into it later. Address space only.
const AHEAD: u64 = 64 << 30;

const HUGETLBFS: u64 = 0x958458f6;
const FUSE: u64 = 0x65735546;

/// What kind of memory a descriptor stands for.
///
/// Calls on a file of another kind may ask whoever serves its file system, as `fstat`, a page fault
/// and the last `close` of a FUSE file do, and never return if that stops answering. Files of these
/// kinds are served by the kernel alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// A memfd, or a regular file of a tmpfs.
    Shared,
    /// A file of a hugetlbfs, or a memfd with huge pages.
    Huge,
    /// Anything else: a file on a disk or in the hands of a process, a directory, a pipe, a socket,
    /// a device. Also a file of an overlay on a tmpfs.
    Other,
}

impl MemoryKind {
    /// Judges a descriptor, by system calls that never ask a file system that can block: files of the
    /// first two kinds have seals, and no others have.
    pub fn of(fd: impl AsFd) -> Self {
        let stat = stat_of_memory(fd.as_fd());
        stat.ok().flatten().map_or(Self::Other, |stat| Self::judge(fd.as_fd(), &stat))
    }

    /// Whether no call on the descriptor, nor an access to its mapped memory, can wait for another
    /// process.
    pub fn cannot_block(self) -> bool {
        self != Self::Other
    }

    /// The kind of a file that has seals.
    fn judge(fd: BorrowedFd<'_>, stat: &Stat) -> Self {
        // Huge pages are larger than pages; but a tmpfs may also advise larger blocks.
        if u64::try_from(stat.st_blksize) == Ok(rustix::param::page_size() as u64) {
            return Self::Shared;
        }
        match fstatfs(fd) {
            Ok(system) if system.f_type as u64 == HUGETLBFS => Self::Huge,
            Ok(_) => Self::Shared,
            Err(_) => Self::Other,
        }
    }
}

/// The state of a file that has seals; `None`: it has none.
///
/// # Errors
/// `EBADF`: the descriptor is a path.
fn stat_of_memory(fd: BorrowedFd<'_>) -> Result<Option<Stat>> {
    match fcntl_get_seals(fd) {
        Ok(_) => Ok(Some(fstat(fd).map_err(cannot_look)?)),
        Err(Errno::INVAL) => Ok(None),
        Err(Errno::BADF) => {
            let what = "a descriptor for DMA must be an open file, which one with O_PATH is not";
            Err(Error::new(Errno::BADF, what))
        }
        Err(errno) => Err(cannot_look(errno)),
    }
}

/// Which files of clients may be mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceptedFiles {
    /// Memory that cannot block: a [`MemoryKind`] other than [`MemoryKind::Other`].
    #[default]
    Memory,
    /// Any regular file but one of a FUSE file system that says so. A client can then pass a file
    /// whose server does not answer (FUSE below an overlay, NFS), and block for ever the threads
    /// that look at it or access its memory.
    Any,
}

/// A file's identity. A mapping keeps the file alive, so while one exists the kernel gives its
/// number to no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    device: u64,
    inode: u64,
    /// Whether it is open for writing: mapped accordingly.
    pub(crate) writable: bool,
}

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Examined {
    pub(crate) key: FileKey,
    pub(crate) kind: MemoryKind,
    /// Length in bytes, now.
    pub(crate) size: u64,
    block: u64,
}

/// What to map of a file: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Fit to be shared by all mappings of the file.
    pub(crate) whole: bool,
}

/// Looks at a descriptor. Does not block if `accepted` is [`AcceptedFiles::Memory`]. To be called
/// without locks.
///
/// # Errors
/// `ENODEV`: not memory, or not a regular file; devices are refused because their mappings can have
/// effects that nobody here expects. `EACCES`: a file on FUSE, whose server could block every access
/// for ever. `EBADF`: the descriptor is a path.
pub(crate) fn examine(fd: BorrowedFd<'_>, accepted: AcceptedFiles) -> Result<Examined> {
    let (kind, stat) = match stat_of_memory(fd)? {
        Some(stat) => (MemoryKind::judge(fd, &stat), stat),
        None if accepted == AcceptedFiles::Any => (MemoryKind::Other, stat_of_other(fd)?),
        None => {
            return Err(Error::new(
                Errno::NODEV,
                "a descriptor for DMA must be memory (a memfd, or a file of a tmpfs or \
                 hugetlbfs), unless the operator accepts other files",
            ));
        }
    };
    let mode = fcntl_getfl(fd).map_err(cannot_look)?;
    Ok(Examined {
        key: FileKey {
            device: stat.st_dev,
            inode: stat.st_ino,
            writable: mode & OFlags::RWMODE == OFlags::RDWR,
        },
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        block: u64::try_from(stat.st_blksize).unwrap_or(0),
    })
}

/// The state of a regular file that is not memory. May block.
fn stat_of_other(fd: BorrowedFd<'_>) -> Result<Stat> {
    let stat = fstat(fd).map_err(cannot_look)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        _ => Some("no file"),
    };
    if let Some(kind) = kind {
        return Err(Error::new(
            Errno::NODEV,
            format!("a descriptor for DMA must be a regular file that can be mapped, not {kind}"),
        ));
    }
    let system = fstatfs(fd).map_err(cannot_look)?;
    if system.f_type as u64 == FUSE {
        return Err(Error::new(Errno::ACCESS, "a file for DMA must not be on a FUSE file system"));
    }
    Ok(stat)
}

#[cold]
fn cannot_look(errno: Errno) -> Error {
    Error::new(errno, "cannot look at a client's file")
}

/// Decides what to map for a mapping of `[offset, end)` of a file of which nothing, or too
/// little (`mapped` bytes), is mapped.
pub(crate) fn extent(file: &Examined, offset: u64, end: u64, mapped: u64) -> Extent {
    let page = rustix::param::page_size() as u64;
    match file.kind {
        // A mapping past the end would lengthen the file; lengths are in huge pages.
        MemoryKind::Huge => {
            Extent { offset: 0, len: round_up(file.size, file.block.max(page)), whole: true }
        }
        _ if file.size > WHOLE => {
            let start = offset - offset % page;
            Extent { offset: start, len: round_up(end, page) - start, whole: false }
        }
        _ => {
            // A file that grows is mapped anew each time it has doubled, at most.
            let wanted = wanted(file, end).max(if mapped > 0 { mapped * 2 } else { 0 });
            let len = round_up(wanted, page).clamp(page, 2 * WHOLE);
            Extent { offset: 0, len, whole: true }
        }
    }
}

/// How far a shared mapping of a file should reach for a mapping that ends at `end`.
pub(crate) fn wanted(file: &Examined, end: u64) -> u64 {
    file.size.max(end.min(file.size.saturating_add(AHEAD)))
}

fn round_up(value: u64, to: u64) -> u64 {
    value.checked_next_multiple_of(to).unwrap_or(u64::MAX - u64::MAX % to)
}
