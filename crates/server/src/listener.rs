//! Where clients come from: a path, an inherited descriptor, systemd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vfiod_core::{Error, Result};

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

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// The path that we made, to be removed at the end, and which file it was.
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Listener {
    /// Makes a socket at a path. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `EADDRINUSE`: somebody listens there; `EEXIST`: there is a file that is no socket;
    /// `ENAMETOOLONG`: over 107 bytes; what `bind`, `chmod` or `chown` says.
    pub fn bind(path: impl AsRef<Path>, access: SocketAccess) -> Result<Self> {
        let path = path.as_ref();
        let failed =
            |errno: Errno, what: &str| Error::new(errno, format!("{what} {}", path.display()));
        let address = SocketAddrUnix::new(path)
            .map_err(|errno| failed(errno, "cannot use as a socket's path:"))?;
        remove_stale(path, &address)?;
        let fd = stream_socket().map_err(|errno| failed(errno, "cannot make a socket for"))?;
        rustix::net::bind(&fd, &address).map_err(|errno| failed(errno, "cannot bind"))?;
        let stat = rustix::fs::stat(path).map_err(|errno| failed(errno, "cannot look at"))?;
        let made = Some(Made { path: path.to_owned(), dev: stat.st_dev, ino: stat.st_ino });
        // From here on the path is removed if anything fails.
        let listener = Self { fd, made };
        if let Some(mode) = access.mode {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode))
                .map_err(|errno| failed(errno, "cannot set the mode of"))?;
        }
        if access.uid.is_some() || access.gid.is_some() {
            let (uid, gid) = (access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw));
            rustix::fs::chownat(CWD, path, uid, gid, AtFlags::empty())
                .map_err(|errno| failed(errno, "cannot set the owner of"))?;
        }
        // Only now, so that nobody gets in before the permissions are right.
        rustix::net::listen(&listener.fd, 128)
            .map_err(|errno| failed(errno, "cannot listen on"))?;
        Ok(listener)
    }

    /// Takes a descriptor that is listening already.
    ///
    /// # Errors
    /// `EINVAL`: not a listening UNIX stream socket; `ENOTSOCK`: no socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let failed = |errno| Error::new(errno, "the descriptor is not a socket");
        check_stream(&fd)?;
        if !rustix::net::sockopt::socket_acceptconn(&fd).map_err(failed)? {
            return Err(Error::new(Errno::INVAL, "the socket is not listening"));
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(failed)?;
        Ok(Self { fd, made: None })
    }

    /// The path, where we made it.
    pub fn path(&self) -> Option<&Path> {
        self.made.as_ref().map(|made| made.path.as_path())
    }

    /// The next client; `EAGAIN` where there is none.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(made) = &self.made {
            // Another server may have taken the path in the meantime: that one is not ours.
            let ours = rustix::fs::stat(&made.path)
                .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (made.dev, made.ino));
            if ours && let Err(error) = std::fs::remove_file(&made.path) {
                tracing::warn!(path = %made.path.display(), %error, "cannot remove the socket");
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

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let failed = |errno: Errno, what: &str| Error::new(errno, format!("{} {what}", path.display()));
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno, "cannot be looked at")),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(failed(Errno::EXIST, "exists and is not a socket"));
        }
        Ok(_) => {}
    }
    let probe = stream_socket().map_err(|errno| failed(errno, "cannot be probed"))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            failed(errno, "is a stale socket that cannot be removed").because(error)
        }),
        Ok(()) | Err(Errno::AGAIN) => {
            Err(failed(Errno::ADDRINUSE, "has a server listening on it already"))
        }
        Err(errno) => Err(failed(errno, "cannot be probed")),
    }
}

/// That a descriptor is a UNIX stream socket.
pub(crate) fn check_stream(fd: &OwnedFd) -> Result<()> {
    let kind = rustix::net::sockopt::socket_type(fd)
        .map_err(|errno| Error::new(errno, "the descriptor is not a socket"))?;
    let domain = rustix::net::sockopt::socket_domain(fd)
        .map_err(|errno| Error::new(errno, "the descriptor is not a socket"))?;
    if kind != SocketType::STREAM || domain != AddressFamily::UNIX {
        return Err(Error::new(Errno::INVAL, "the descriptor is not a UNIX stream socket"));
    }
    Ok(())
}
