//! Where clients come from: a path, an inherited descriptor, systemd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vfiod_core::{Error, Result};
use vfiod_sockets::{NamedSocket, Site, SocketAccess};

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    /// Made at a path, and removed at the end.
    Named(NamedSocket),
    /// Passed to this process.
    Passed(OwnedFd),
}

impl Listener {
    /// Makes a socket at a path. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `EADDRINUSE`: somebody listens there; `EEXIST`: there is a file that is no socket;
    /// `ENAMETOOLONG`: over 107 bytes; what `bind`, `chmod` or `chown` says.
    pub fn bind(path: impl AsRef<Path>, access: SocketAccess) -> Result<Self> {
        Ok(Self(Kind::Named(NamedSocket::bind(path, access)?)))
    }

    /// Makes a socket for a path, whose name appears with [`Listener::publish`].
    ///
    /// # Errors
    /// As [`NamedSocket::prepare`].
    pub fn prepare(path: impl AsRef<Path>, access: SocketAccess, site: Site) -> Result<Self> {
        Ok(Self(Kind::Named(NamedSocket::prepare(path, access, site)?)))
    }

    /// Gives a prepared socket its name. Every other one has been there all the time.
    ///
    /// # Errors
    /// As [`NamedSocket::publish`].
    pub fn publish(&mut self) -> Result<()> {
        match &mut self.0 {
            Kind::Named(socket) => socket.publish(),
            Kind::Passed(_) => Ok(()),
        }
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
        Ok(Self(Kind::Passed(fd)))
    }

    /// The path, where we made it.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Named(socket) => Some(socket.path()),
            Kind::Passed(_) => None,
        }
    }

    /// The next client; `EAGAIN` where there is none.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        rustix::net::accept_with(self, SocketFlags::CLOEXEC)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Named(socket) => socket.as_fd(),
            Kind::Passed(fd) => fd.as_fd(),
        }
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
