//! Locks of an image against other processes, on the bytes that QEMU locks, so that QEMU, `qemu-img` and
//! this refuse one another.
//!
//! Each thing that may be done with an image has a number: 0 consistent reads, 1 writes, 3 changes of size.
//! Who does it holds byte 100 + number, and who does not let others do it holds byte 200 + number, both as
//! a shared lock. Then each looks whether anybody holds what contradicts that. Two who come at the same
//! time may both be refused, but never both be let in.
//!
//! The locks are those of the open file description: they end with its last descriptor, also when the
//! process is killed, and two opens of one process exclude each other as well.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{FcntlArg, fcntl};
use vfiod_dma::{Errno, Error};

/// Where the bytes begin of what is done.
const USED: i64 = 100;
/// Where the bytes begin of what others may not do.
const REFUSED: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What others may not do, whether or not we write.
const OURS_ALONE: [i64; 2] = [WRITE, RESIZE];

/// Why an image is not locked.
#[derive(Debug)]
pub(crate) enum NotLocked {
    /// Somebody else has a lock on this byte.
    InUse { byte: i64 },
    /// The file system has no locks, or it fails otherwise.
    Failed(Error),
}

fn flock(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        // Must be 0 for locks of an open file description.
        l_pid: 0,
    }
}

fn failed(errno: nix::errno::Errno) -> NotLocked {
    let errno = Errno::from_raw_os_error(errno as i32);
    NotLocked::Failed(Error::new(errno, "cannot lock the image"))
}

fn hold(file: &OwnedFd, byte: i64) -> Result<(), NotLocked> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte))) {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            Err(NotLocked::InUse { byte })
        }
        Err(errno) => Err(failed(errno)),
    }
}

/// Whether nobody else holds a byte.
fn is_free(file: &OwnedFd, byte: i64) -> Result<(), NotLocked> {
    let mut found = flock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(failed)?;
    let is_free = found.l_type == libc::F_UNLCK as libc::c_short;
    if is_free { Ok(()) } else { Err(NotLocked::InUse { byte }) }
}

/// Locks an image for reading, or for reading and writing, until the last descriptor of this open is
/// closed. Does not wait. What fails leaves no locks.
pub(crate) fn lock_image(file: &OwnedFd, read_only: bool) -> Result<(), NotLocked> {
    // They end with the descriptor in any case; until then they would be found by `holder`.
    lock_bytes(file, read_only).inspect_err(|_| unlock_image(file))
}

/// Gives up all locks of an image.
pub(crate) fn unlock_image(file: &OwnedFd) {
    let all = libc::flock { l_len: 0, ..flock(libc::F_UNLCK, 0) };
    _ = fcntl(file, FcntlArg::F_OFD_SETLK(&all));
}

/// What is done with an image.
fn used(read_only: bool) -> &'static [i64] {
    if read_only { &[CONSISTENT_READ] } else { &[CONSISTENT_READ, WRITE] }
}

fn lock_bytes(file: &OwnedFd, read_only: bool) -> Result<(), NotLocked> {
    for number in used(read_only) {
        hold(file, USED + number)?;
    }
    for number in OURS_ALONE {
        hold(file, REFUSED + number)?;
    }
    could_lock(file, read_only)
}

/// That nobody else has what contradicts a lock for reading, or for reading and writing. Locks nothing.
pub(crate) fn could_lock(file: &OwnedFd, read_only: bool) -> Result<(), NotLocked> {
    for number in used(read_only) {
        is_free(file, REFUSED + number)?;
    }
    for number in OURS_ALONE {
        // One's own locks are no obstacle.
        is_free(file, USED + number)?;
    }
    Ok(())
}

/// Who has an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    /// Its name, as the kernel has it.
    pub(crate) name: String,
}

impl Holder {
    /// This process.
    pub(crate) fn this() -> Self {
        Self { pid: std::process::id(), name: name_of("self") }
    }

    pub(crate) fn is_this(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_this(), self.name.as_str()) {
            (true, _) => write!(f, "process {} (this one)", self.pid),
            (false, "") => write!(f, "process {}", self.pid),
            (false, name) => write!(f, "process {} ({name})", self.pid),
        }
    }
}

/// The name of a process.
fn name_of(process: &str) -> String {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// The process that holds a byte of a file, where `/proc` tells: of processes of the same user, or to root, and
/// not in a sandbox. It is looked for until `deadline`.
pub(crate) fn holder(file: &OwnedFd, byte: i64, deadline: Instant) -> Option<Holder> {
    let stat = rustix::fs::fstat(file).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let id = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let pid = holder_among(Path::new("/proc"), &id, byte, deadline)?;
    Some(Holder { pid, name: name_of(&pid.to_string()) })
}

/// Which of the processes of a directory like `/proc` holds a byte of the file of a device and inode number.
fn holder_among(processes: &Path, id: &str, byte: i64, deadline: Instant) -> Option<u32> {
    for process in std::fs::read_dir(processes).ok()?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        if Instant::now() >= deadline {
            return None;
        }
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let infos = process.path().join("fdinfo");
        for descriptor in descriptors.flatten() {
            // Most descriptors of a host of many are sockets and eventfds, whose information takes longer to read.
            let is_file = std::fs::read_link(descriptor.path()).is_ok_and(|to| to.has_root());
            let info = is_file.then(|| std::fs::read_to_string(infos.join(descriptor.file_name())));
            let Some(Ok(info)) = info else { continue };
            if info.lines().any(|line| is_lock_of(line, id, byte)) {
                return Some(pid);
            }
        }
    }
    None
}

/// Whether a line of `fdinfo` is a lock of this file that covers this byte.
fn is_lock_of(line: &str, id: &str, byte: i64) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut words = lock.split_whitespace().rev();
    let end =
        words.next().and_then(|end| if end == "EOF" { Some(i64::MAX) } else { end.parse().ok() });
    let start = words.next().and_then(|start| start.parse().ok());
    let (Some(start), Some(end)) = (start, end) else { return false };
    words.next() == Some(id) && (start..=end).contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    /// A process of a directory like `/proc`, whose one descriptor leads to `to`, and has a lock of byte 100.
    fn process(processes: &Path, pid: u32, to: &str) {
        let process = processes.join(pid.to_string());
        for part in ["fd", "fdinfo"] {
            create_dir_all(process.join(part)).unwrap();
        }
        symlink(to, process.join("fd/3")).unwrap();
        write(process.join("fdinfo/3"), "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:2345 100 101\n")
            .unwrap();
    }

    #[test]
    fn holder_is_looked_for_among_files_only_and_until_the_deadline() {
        let processes = tempfile::tempdir().unwrap();
        let long = Instant::now() + Duration::from_secs(600);
        let find = |deadline| holder_among(processes.path(), "fe:00:2345", 100, deadline);
        for (pid, to) in [(4, "socket:[71]"), (5, "anon_inode:[eventfd]"), (6, "pipe:[72]")] {
            process(processes.path(), pid, to);
        }
        assert_eq!(find(long), None, "information of what is no file was read");
        process(processes.path(), 7, "/images/disk (deleted)");
        assert_eq!(find(long), Some(7));
        assert_eq!(find(Instant::now()), None, "it was looked for beyond the deadline");
    }

    #[test]
    fn locks_are_found_in_fdinfo() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:2345 100 101";
        for (id, byte, expected) in [
            ("fe:00:2345", 100, true),
            ("fe:00:2345", 101, true),
            ("fe:00:2345", 102, false),
            ("fe:00:234", 100, false),
        ] {
            assert_eq!(is_lock_of(line, id, byte), expected, "{id} {byte}");
        }
        assert!(is_lock_of("lock:\t1: FLOCK  ADVISORY  WRITE 7 fe:00:1 0 EOF", "fe:00:1", 203));
        for line in ["", "pos:\t0", "lock:", "lock:\t1: OFDLCK", "lock: fe:00:1 x y"] {
            assert!(!is_lock_of(line, "fe:00:1", 100), "{line:?}");
        }
    }
}
