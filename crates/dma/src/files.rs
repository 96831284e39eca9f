//! Which file is behind a mapping, and how much of it to map.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};

use crate::error::{Errno, Error, Result};

/// Files up to this long are mapped whole, once; of longer ones, each mapping by itself.
pub(crate) const WHOLE: u64 = 1 << 40;
/// How far a mapping reaches past the end of a file for mappings that claim more: the file may
/// grow into it later. Address space only.
const AHEAD: u64 = 64 << 30;

const HUGETLBFS: u64 = 0x958458f6;
const FUSE: u64 = 0x65735546;

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

/// Looks at a descriptor. Two system calls.
///
/// # Errors
/// `ENODEV`: not a regular file (memfd, hugetlbfs and files of disks are regular); devices are
/// refused because their mappings can have effects that nobody here expects.
pub(crate) fn examine(fd: BorrowedFd<'_>) -> Result<Examined> {
    let stat = fstat(fd).map_err(|e| Error::new(e, "cannot look at a client's file"))?;
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
    let mode = fcntl_getfl(fd).map_err(|e| Error::new(e, "cannot look at a client's file"))?;
    Ok(Examined {
        key: FileKey {
            device: stat.st_dev,
            inode: stat.st_ino,
            writable: mode & OFlags::RWMODE == OFlags::RDWR,
        },
        size: u64::try_from(stat.st_size).unwrap_or(0),
        block: u64::try_from(stat.st_blksize).unwrap_or(0),
    })
}

/// Decides what to map for a mapping of `[offset, end)` of a file of which nothing, or too
/// little (`mapped` bytes), is mapped.
///
/// # Errors
/// `EACCES`: the file system is in the hands of a process (FUSE), which could stall every
/// access for ever.
pub(crate) fn extent(
    fd: BorrowedFd<'_>,
    file: &Examined,
    offset: u64,
    end: u64,
    mapped: u64,
) -> Result<Extent> {
    let system = fstatfs(fd).map_err(|e| Error::new(e, "cannot look at a client's file"))?;
    let page = rustix::param::page_size() as u64;
    match system.f_type as u64 {
        FUSE => Err(Error::new(Errno::ACCESS, "a file for DMA must not be on a FUSE file system")),
        // MappedFile past the end would lengthen the file; lengths are in huge pages.
        HUGETLBFS => {
            Ok(Extent { offset: 0, len: round_up(file.size, file.block.max(page)), whole: true })
        }
        _ if file.size > WHOLE => {
            let start = offset - offset % page;
            Ok(Extent { offset: start, len: round_up(end, page) - start, whole: false })
        }
        _ => {
            // A file that grows is mapped anew each time it has doubled, at most.
            let wanted = wanted(file, end).max(if mapped > 0 { mapped * 2 } else { 0 });
            Ok(Extent {
                offset: 0,
                len: round_up(wanted, page).clamp(page, 2 * WHOLE),
                whole: true,
            })
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
