//! Where clients come from: a path, an inherited descriptor, systemd.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use vfiod_core::{Error, Result};
use vfiod_sockets::{NamedSocket, Publisher, Site, SocketAccess};

use crate::closer::Closer;

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    /// Made at a path, and removed at the end.
    Named(NamedSocket),
    /// Passed to this process. Until the drop.
    Passed(Option<OwnedFd>),
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

    /// What gives a prepared socket its name, without being the socket; `None` if it was passed.
    pub fn publisher(&self) -> Option<Publisher> {
        match &self.0 {
            Kind::Named(socket) => Some(socket.publisher()),
            Kind::Passed(_) => None,
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
        Ok(Self(Kind::Passed(Some(fd))))
    }

    /// The path, where we made it.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Named(socket) => Some(socket.path()),
            Kind::Passed(_) => None,
        }
    }

    /// The next client, without waiting.
    ///
    /// # Errors
    /// `EAGAIN`: there is none; else those of `accept`.
    pub fn accept(&self) -> Result<OwnedFd, Errno> {
        accept(self.as_fd())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Named(socket) => socket.as_fd(),
            Kind::Passed(fd) => fd.as_ref().expect("there until the drop").as_fd(),
        }
    }
}

/// Clients that wait to be accepted may have sent descriptors, whose close may not return: so these
/// connections, which the last close of a listening socket ends, are not closed by the calling thread.
impl Drop for Listener {
    fn drop(&mut self) {
        let closer = Closer::new("");
        match &mut self.0 {
            Kind::Named(socket) => {
                // From here on nobody connects.
                let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
                while let Ok(waiting) = accept(socket.as_fd()) {
                    closer.close_socket(waiting, None);
                }
            }
            // Others may have the socket, too, and clients wait for them.
            Kind::Passed(fd) => drop(fd.take().map(|fd| closer.close_elsewhere(fd, None))),
        }
    }
}

fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
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

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::testing::{Lingering, eventually};

    #[test]
    fn descriptors_of_clients_that_wait_do_not_hold_up_the_close() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let named = Listener::bind(path("named"), SocketAccess::default()).unwrap();
        let passed = UnixListener::bind(path("passed")).unwrap();
        let passed = Listener::from_fd(passed.into()).unwrap();
        for (listener, name) in [(named, "named"), (passed, "passed")] {
            let client = UnixStream::connect(path(name)).unwrap();
            let lingering = Lingering::new();
            lingering.send_by(&client);
            let closing = std::thread::spawn(move || drop(listener));
            eventually("the listening socket is closed", || closing.is_finished());
            // Another thread closes the one that was passed.
            eventually("nobody can connect", || UnixStream::connect(path(name)).is_err());
            drop(lingering);
            // A reset if what it sent was not read.
            eventually("the connection has ended", || {
                rustix::net::send(&client, b"x", rustix::net::SendFlags::NOSIGNAL).is_err()
            });
        }
    }

    #[test]
    fn clients_that_wait_at_a_socket_of_several_processes_wait_on() {
        let directory = tempfile::tempdir().unwrap();
        let theirs = UnixListener::bind(directory.path().join("x")).unwrap();
        let ours = Listener::from_fd(theirs.try_clone().unwrap().into()).unwrap();
        let _client = UnixStream::connect(directory.path().join("x")).unwrap();
        drop(ours);
        theirs.set_nonblocking(true).unwrap();
        theirs.accept().unwrap();
    }
}
