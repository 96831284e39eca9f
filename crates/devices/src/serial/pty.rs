//! A pseudo-terminal on the host: the other end of a port's wire.
//!
//! While no program has it open, what is sent is lost. A program that has it open and does not
//! read stops the sender: the kernel's buffer between them is bounded.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, in_directory, remove_in};
use vfiod_tasks::{Descriptor, Runtime};

/// Where the kernel has its pseudo-terminals.
const TERMINALS: &str = "/dev/pts/";

/// A pseudo-terminal. Dropping it hangs up on the programs that have it open, and removes its link.
#[derive(Debug)]
pub(super) struct Pty {
    // Dropped first, so that no program finds a link to a closed terminal.
    _link: Option<Link>,
    /// The master side, for a task to wait for.
    descriptor: Arc<Descriptor>,
    master: Arc<Master>,
    path: PathBuf,
    /// There may be something to read: from a change until a read finds nothing.
    readable: bool,
    /// It may take something: from a change until a write is refused.
    writable: bool,
    /// A program has it open. Its open makes no event, so this is looked at before sending.
    taken: bool,
}

impl Pty {
    /// Makes one, raw at first, and optionally a symbolic link to it.
    ///
    /// # Errors
    /// `ENOSPC` and others: the kernel has none to give, or too many descriptors are watched; `EBUSY`:
    /// [`MOST_CLOSING`] are being closed;
    /// `EEXIST`: something else than a link to a terminal is where the link should be.
    pub(super) fn open(link: Option<&Path>, runtime: &Runtime) -> Result<Self> {
        if CLOSING.load(Ordering::Relaxed) >= MOST_CLOSING {
            let what =
                "serial: programs that have earlier pseudo-terminals open do not let them close";
            return Err(Error::new(Errno::BUSY, what));
        }
        let (master, path) = make().map_err(|errno| {
            Error::new(errno, format!("serial: cannot make a pseudo-terminal: {errno}"))
        })?;
        let master = Arc::new(Master(Some(master)));
        let descriptor = runtime
            .descriptor(master.clone())
            .map_err(|errno| Error::new(errno, "serial: cannot watch a pseudo-terminal"))?;
        let link = link.map(|link| Link::make(link, &path)).transpose()?;
        Ok(Self {
            _link: link,
            descriptor: Arc::new(descriptor),
            master,
            path,
            readable: true,
            writable: true,
            taken: false,
        })
    }

    /// What a task waits for. Each change is to be followed by [`Pty::changed`].
    pub(super) fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// Where programs open it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Something may have changed.
    pub(super) fn changed(&mut self) {
        self.readable = true;
        self.writable = true;
        self.taken = self.is_taken();
    }

    /// Sends. Returns how many of the bytes have been taken, or lost as no program is there.
    pub(super) fn send(&mut self, bytes: &[u8]) -> usize {
        while self.writable {
            self.taken = self.taken || self.is_taken();
            if !self.taken {
                return bytes.len();
            }
            match rustix::io::write(&*self.master, bytes) {
                Ok(count) if count > 0 => return count,
                Ok(_) | Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => return bytes.len(), // No program will take it.
            }
        }
        0
    }

    /// Receives what there is and fits. Returns the number of bytes.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> usize {
        while self.readable && !buffer.is_empty() {
            match rustix::io::read(&*self.master, &mut *buffer) {
                Ok(count) if count > 0 => return count,
                Err(Errno::INTR) => {}
                // EIO: no program has it open, and all that was written has been read.
                Ok(_) | Err(_) => self.readable = false,
            }
        }
        0
    }

    fn is_taken(&self) -> bool {
        is_taken(&self.master)
    }
}

/// The master side of a pseudo-terminal.
///
/// Its close waits, where no signal ends it, for programs that are amid a read or write at the other side.
/// Such a program may wait itself, for a page of memory that a file system does not deliver. So a thread
/// that may be lost closes what a program has open.
#[derive(Debug)]
struct Master(Option<OwnedFd>);

/// Masters whose close has not returned.
static CLOSING: AtomicUsize = AtomicUsize::new(0);
/// Most of them in the process.
const MOST_CLOSING: usize = 64;

impl AsFd for Master {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("it is taken only by its drop").as_fd()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if !is_taken(&self) {
            return;
        }
        let master = self.0.take();
        CLOSING.fetch_add(1, Ordering::Relaxed);
        let close = move || {
            drop(master);
            CLOSING.fetch_sub(1, Ordering::Relaxed);
        };
        // Without a thread it is closed here: the system drops what it could not start.
        if let Err(error) = thread::Builder::new().name("pty-close".into()).spawn(close) {
            CLOSING.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "a pseudo-terminal was closed without a thread of its own");
        }
    }
}

fn is_taken(master: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&master, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => !fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
        Err(_) => true, // A write will show it.
    }
}

fn make() -> Result<(OwnedFd, PathBuf), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK)?;
    let mut modes = tcgetattr(&master)?;
    modes.make_raw();
    tcsetattr(&master, OptionalActions::Now, &modes)?;
    // The kernel reports that no program has it open only after the first close.
    drop(ioctl_tiocgptpeer(&master, flags)?);
    let path = ptsname(&master, Vec::new())?;
    Ok((master, OsString::from_vec(path.into_bytes()).into()))
}

/// A symbolic link to a terminal. It is made and removed by a thread that may be lost: somebody may hold up
/// its directory.
#[derive(Debug)]
struct Link {
    path: PathBuf,
    target: PathBuf,
}

impl Link {
    /// Replaces a link to a terminal, and nothing else. Waits two seconds at most.
    ///
    /// # Errors
    /// `ETIMEDOUT`: somebody holds up its directory; `EEXIST` and what else the file system says.
    fn make(path: &Path, target: &Path) -> Result<Self> {
        let failed = |errno: Errno| {
            let what = format!("serial: cannot link {} to a pseudo-terminal", path.display());
            Error::new(errno, what)
        };
        let (link, target) = (path.to_owned(), target.to_owned());
        let make = move || -> std::io::Result<Self> {
            if std::fs::read_link(&link).is_ok_and(|old| old.starts_with(TERMINALS)) {
                std::fs::remove_file(&link)?;
            }
            std::os::unix::fs::symlink(&target, &link)?;
            // One that comes too late is dropped, and the link removed.
            Ok(Self { path: link, target })
        };
        let made = in_directory(directory_of(path), make)
            .map_err(|error| failed(error.errno()).because(error))?;
        made.map_err(|error| {
            failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)).because(error)
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Self { path, target } = self;
        let (link, target) = (path.clone(), std::mem::take(target));
        let remove = move || {
            // Unless another one has taken its place.
            if std::fs::read_link(&link).is_ok_and(|now| now == target) {
                let _ = std::fs::remove_file(&link);
            }
        };
        if !remove_in(directory_of(path), remove) {
            let path = path.display();
            tracing::warn!(%path, "a link stays for now: somebody holds up its directory, or no thread can be started");
        }
    }
}
