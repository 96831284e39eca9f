//! A listening socket at a path: prepared, published, removed.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vfiod_directories::{directory_of, in_directory, make_directory, remove_in};
use vfiod_dma::{Error, Result};

use crate::kept::{self, Kept, Left, Record};

/// Longest path in bytes: `sun_path` less the NUL that some clients need.
const MAX_PATH: usize = 107;
/// The end of every first name.
pub(crate) const SUFFIX: &str = ".new";
/// How many clients may wait to be accepted. A non-blocking `connect` beyond it fails with `EAGAIN`;
/// the kernel takes `net.core.somaxconn` (4096) if that is less.
const BACKLOG: i32 = 4096;
/// A longer name is not part of the first name, which must fit a directory and an address.
const MAX_NAME: usize = 40;
/// How many first names are tried. One is taken if a program of the same pid was killed while it had it.
const MAX_TRIES: u32 = 1000;
/// How often a name that others change at the same moment is tried.
const MAX_RACES: u32 = 16;

/// Who may connect to a socket at a path, by the file's permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, e.g. `0o660`; `None` leaves what the umask allows.
    pub mode: Option<u32>,
    /// User id that shall own it.
    pub uid: Option<u32>,
    /// Group id that shall own it.
    pub gid: Option<u32>,
}

/// How a place for a socket is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// A missing directory is made, and nobody may listen there.
    Free,
    /// As [`Site::Free`], but the program itself may still listen there. It has stopped when the
    /// socket is published.
    OwnUntilPublished,
    /// Nothing lasting is made: in place of a missing directory the nearest one that exists is used.
    /// Such a socket is not to be published.
    Trial,
}

/// A listening socket at a path, kept by the process's keeper ([`crate::keep_by`]) if it has one. Dropping it closes it and removes its name. If somebody holds up its
/// directory, the drop waits two seconds at most, and the name is removed later.
#[derive(Debug)]
pub struct NamedSocket {
    fd: OwnedFd,
    name: Arc<Name>,
}

/// The names of a socket. They change by calls in its directory, one after the other.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    /// Where it is until it is published.
    first: Mutex<Option<PathBuf>>,
    identity: Identity,
    /// Where this process has a keeper.
    kept: OnceLock<Kept>,
}

/// Publishes a socket, without being the socket.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Name>);

/// Which file it is.
pub(crate) type Identity = (u64, u64);

impl NamedSocket {
    /// Prepares a socket and publishes it.
    ///
    /// # Errors
    /// As [`NamedSocket::prepare`].
    pub fn bind(path: impl AsRef<Path>, access: SocketAccess) -> Result<Self> {
        let mut socket = Self::prepare(path, access, Site::Free)?;
        socket.publish()?;
        Ok(socket)
    }

    /// Makes a socket that listens under another name, with its mode and owner. It is non-blocking.
    ///
    /// # Errors
    /// `EADDRINUSE`: somebody listens at the path; `EEXIST`: there is a file that is no socket;
    /// `ENAMETOOLONG`: over 107 bytes; `EISDIR`: it is written like a directory's; `ENOTDIR`: a file is in place of a directory; `EPERM`:
    /// somebody put another file in the socket's place meanwhile; `ETIMEDOUT`: somebody holds up the
    /// directory, which is waited for two seconds; what `mkdir`, `bind`, `chmod` or `chown` says.
    pub fn prepare(path: impl AsRef<Path>, access: SocketAccess, site: Site) -> Result<Self> {
        let path = path.as_ref();
        let failed = |errno: Errno, what: &str| failed(path, errno, what);
        if path.as_os_str().len() > MAX_PATH {
            return Err(failed(Errno::NAMETOOLONG, "cannot use as a socket's path:"));
        }
        // `file_name` passes over what ends the path of a directory.
        let ends = path.as_os_str().as_encoded_bytes().rsplit(|byte| *byte == b'/').next();
        let name = path.file_name().filter(|_| !matches!(ends, Some(b"" | b".")));
        let Some(name) = name else {
            return Err(failed(Errno::ISDIR, "cannot use as a socket's path:"));
        };
        let (place, name) = (path.to_owned(), name.to_string_lossy().into_owned());
        let prepare = move || match Self::adopt(&place, access, site) {
            Some(adopted) => Ok(adopted),
            None => Self::prepare_there(&place, &name, access, site),
        };
        in_directory(directory_of(path), prepare).map_err(|error| {
            let what = format!("cannot make the socket {}", path.display());
            Error::new(error.errno(), what).because(error)
        })?
    }

    /// Takes over the socket that a process before this one has left for a path, if it is as wanted. Others
    /// that were left for it are closed.
    fn adopt(path: &Path, access: SocketAccess, site: Site) -> Option<Self> {
        if site == Site::Trial {
            return None;
        }
        let mut left = kept::take_left(path);
        let is_wanted = |left: &Left| left.record.access == access && left.place().is_some();
        let named = left.iter().position(|left| is_wanted(left) && left.place() == Some(path));
        let adopted = named.or_else(|| left.iter().position(is_wanted));
        let adopted = adopted.map(|at| left.swap_remove(at));
        left.into_iter().for_each(Left::close);
        let Left { record, socket: fd, kept } = adopted?;
        let first = named.is_none().then_some(record.first);
        let name = Name {
            path: record.path,
            first: Mutex::new(first),
            identity: record.identity,
            kept: kept.into(),
        };
        tracing::debug!(path = %path.display(), "took over a socket");
        Some(Self { fd, name: Arc::new(name) })
    }

    /// [`NamedSocket::prepare`], on a thread that may be lost.
    fn prepare_there(path: &Path, name: &str, access: SocketAccess, site: Site) -> Result<Self> {
        let failed = |errno: Errno, what: &str| failed(path, errno, what);
        let directory = site_directory(path, site)?;
        match stale(path) {
            Err(error) if error.errno() == Errno::ADDRINUSE && site == Site::OwnUntilPublished => {}
            looked => drop(looked?),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&directory, flags, Mode::empty())
            .map_err(|errno| failed(errno, "cannot use the directory of"))?;
        let fd = stream_socket().map_err(|errno| failed(errno, "cannot make a socket for"))?;
        let first = bind_first(&fd, &opened, &directory, name)
            .map_err(|errno| failed(errno, "cannot bind"))?;
        let file = open_bound(&opened, &first).map_err(|errno| failed(errno, "cannot look at"))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno, "cannot look at"))?;
        // From here on the file is removed if anything fails.
        let name = Name {
            path: path.to_owned(),
            first: Mutex::new(Some(directory.join(&first))),
            identity: (stat.st_dev, stat.st_ino),
            kept: OnceLock::new(),
        };
        let socket = Self { fd, name: Arc::new(name) };
        if let Some(mode) = access.mode {
            // No kernel before Linux 6.6 changes the mode by such a descriptor itself.
            let place = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::chmodat(CWD, place, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(|errno| failed(errno, "cannot set the mode of"))?;
        }
        if access.uid.is_some() || access.gid.is_some() {
            let (uid, gid) = (access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw));
            rustix::fs::chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH)
                .map_err(|errno| failed(errno, "cannot set the owner of"))?;
        }
        // Before it has its name: a connection that is refused would look like a dead server's.
        rustix::net::listen(&socket.fd, BACKLOG)
            .map_err(|errno| failed(errno, "cannot listen on"))?;
        if site != Site::Trial {
            let (path, first) = (path.to_owned(), directory.join(first));
            let record = Record { path, first, access, identity: socket.name.identity };
            if let Some(kept) = kept::keep(socket.fd.as_fd(), &record) {
                let _ = socket.name.kept.set(kept);
            }
        }
        Ok(socket)
    }

    /// Gives the socket its name, once. Does nothing if it has it.
    ///
    /// # Errors
    /// `EADDRINUSE`: somebody listens at the path; `EEXIST`: there is a file that is no socket; `ETIMEDOUT`:
    /// somebody holds up the directory, which is waited for two seconds; what `rename` says. The socket
    /// can be published later.
    pub fn publish(&mut self) -> Result<()> {
        self.publisher().publish()
    }

    /// What publishes the socket where that is somewhere else.
    pub fn publisher(&self) -> Publisher {
        Publisher(self.name.clone())
    }

    /// Where clients connect once it is published.
    pub fn path(&self) -> &Path {
        &self.name.path
    }
}

impl Publisher {
    /// [`NamedSocket::publish`]. The name of a socket that has been dropped does not stay.
    ///
    /// # Errors
    /// As [`NamedSocket::publish`].
    pub fn publish(&self) -> Result<()> {
        let name = self.0.clone();
        if name.first().is_none() {
            return Ok(());
        }
        in_directory(directory_of(&self.0.path), move || name.publish()).map_err(|error| {
            let what = format!("cannot give the socket {} its name", self.0.path.display());
            Error::new(error.errno(), what).because(error)
        })?
    }
}

impl Name {
    /// The lock is not held over a call.
    fn first(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) -> Result<()> {
        let Some(first) = self.first().clone() else { return Ok(()) };
        rename(&first, &self.path, self.identity)?;
        *self.first() = None;
        Ok(())
    }

    fn remove(&self) {
        let first = self.first().clone();
        let path = first.as_ref().unwrap_or(&self.path);
        // Another program may have taken the path in the meantime: that file is not ours.
        let ours = identity(path).is_ok_and(|found| found == self.identity);
        if ours && let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
        }
    }
}

impl AsFd for NamedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for NamedSocket {
    fn drop(&mut self) {
        let name = self.name.clone();
        if !remove_in(directory_of(&self.name.path), move || name.remove()) {
            let path = self.name.path.display();
            tracing::warn!(%path, "a socket keeps its name for now: somebody holds up its directory, or no thread can be started");
        }
    }
}

fn failed(path: &Path, errno: Errno, what: &str) -> Error {
    Error::new(errno, format!("{what} {}", path.display()))
}

/// The directory where the socket is made.
fn site_directory(path: &Path, site: Site) -> Result<PathBuf> {
    let mut directory = directory_of(path);
    if site != Site::Trial {
        return match make_directory(directory) {
            Ok(()) => Ok(directory.to_owned()),
            Err(errno) => Err(failed(path, errno, "cannot make the directory of")),
        };
    }
    loop {
        match rustix::fs::stat(directory) {
            Err(Errno::NOENT) => match directory.parent() {
                Some(above) if !above.as_os_str().is_empty() => directory = above,
                _ => return Ok(PathBuf::from(".")),
            },
            Err(errno) => return Err(failed(path, errno, "cannot use the directory of")),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Ok(directory.to_owned());
            }
            Ok(_) => {
                let what = format!("{} is no directory; it is to hold", directory.display());
                return Err(failed(path, Errno::NOTDIR, &what));
            }
        }
    }
}

fn stream_socket() -> std::result::Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Binds to a name that nobody has. Returns it.
fn bind_first(
    fd: &OwnedFd,
    opened: &OwnedFd,
    directory: &Path,
    name: &str,
) -> std::result::Result<String, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = if name.len() <= MAX_NAME { name } else { "" };
    for _ in 0..MAX_TRIES {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let first = format!(".{name}.{}-{number}{SUFFIX}", std::process::id());
        // An address is short; a name in a directory that is open has a short one.
        let address = SocketAddrUnix::new(directory.join(&first)).or_else(|_| {
            SocketAddrUnix::new(format!("/proc/self/fd/{}/{first}", opened.as_raw_fd()))
        })?;
        match rustix::net::bind(fd, &address) {
            Err(Errno::ADDRINUSE) => {}
            bound => return bound.map(|()| first),
        }
    }
    Err(Errno::ADDRINUSE)
}

/// Opens the file of a socket that was just bound. Whoever owns the directory may have put another file
/// in its place, such as a link to a file whose mode they may not change: what this returns is a socket
/// of this process's user, which has no other name.
///
/// # Errors
/// `EPERM`: it is something else; what `open` or `fstat` says.
fn open_bound(directory: &OwnedFd, name: &str) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_nlink == 1;
    if is_socket && is_ours { Ok(file) } else { Err(Errno::PERM) }
}

pub(crate) fn identity(path: &Path) -> std::result::Result<Identity, Errno> {
    rustix::fs::lstat(path).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Looks for a socket that nobody listens on. `None`: there is no file.
///
/// # Errors
/// `EADDRINUSE`: somebody listens, or this process may not find out; `EEXIST`: it is no socket; what `lstat` or `connect` says.
pub(crate) fn stale(path: &Path) -> Result<Option<Identity>> {
    let failed = |errno: Errno, what: &str| Error::new(errno, format!("{} {what}", path.display()));
    let found = match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno, "cannot be looked at")),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(failed(Errno::EXIST, "exists and is not a socket"));
        }
        Ok(stat) => (stat.st_dev, stat.st_ino),
    };
    let probe = stream_socket().map_err(|errno| failed(errno, "cannot be probed"))?;
    let address = SocketAddrUnix::new(path).map_err(|errno| failed(errno, "cannot be probed"))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Ok(()) | Err(Errno::AGAIN) => {
            Err(failed(Errno::ADDRINUSE, "has a server listening on it already"))
        }
        // As in a sandbox.
        Err(Errno::PERM | Errno::ACCESS) => Err(failed(
            Errno::ADDRINUSE,
            "may have a server listening on it, and this process is not allowed to connect to it; if \
             there is none, remove the file",
        )),
        Err(errno) => Err(failed(errno, "cannot be probed")),
    }
}

/// Whether a file system or a kernel does not know a flag of `renameat2`.
fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// Renames the socket `first`, whose file is `ours`. A stale socket at `path` is replaced, nothing else.
fn rename(first: &Path, path: &Path, ours: Identity) -> Result<()> {
    let failed = |errno: Errno| failed(path, errno, "cannot give a socket its name:");
    for _ in 0..MAX_RACES {
        let renamed = rustix::fs::renameat_with(CWD, first, CWD, path, RenameFlags::NOREPLACE);
        let renamed = match renamed {
            // A link replaces nothing either.
            Err(errno) if is_unknown(errno) => {
                rustix::fs::link(first, path).and_then(|()| rustix::fs::unlink(first))
            }
            renamed => renamed,
        };
        match renamed {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let Some(found) = stale(path)? else { continue };
        match rustix::fs::renameat_with(CWD, first, CWD, path, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => continue,
            Err(errno) if is_unknown(errno) => {
                rustix::fs::unlink(path).map_err(failed)?;
                continue;
            }
            Err(errno) => return Err(failed(errno)),
        }
        // What was taken must be what was found stale: another server may have replaced it.
        if identity(first) == Ok(found) {
            return rustix::fs::unlink(first).map_err(failed);
        }
        let back = rustix::fs::renameat_with(CWD, first, CWD, path, RenameFlags::EXCHANGE);
        if back.is_err() && identity(path) == Ok(ours) {
            // Nothing is at the first name any more: the name is ours.
            return Ok(());
        }
    }
    Err(failed(Errno::BUSY))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
