//! Taking clients in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{DupFlags, Errno, dup3, fcntl_dupfd_cloexec};
use vfiod_sync::{Mutex, lock};

use crate::clients::Clients;
use crate::closer::Closer;
use crate::connection::Connection;
use crate::listener::Listener;
use crate::message_log::errno_name;
use crate::peer;
use crate::pool::{Alarm, Interest, Pool, Source, Watch, Worker};

/// How long to wait where the kernel has no memory, or no descriptor, for a connection.
const PAUSE: Duration = Duration::from_millis(10);

/// A descriptor kept for the moment when there are no others: with it, a client can still be
/// accepted, to be told that it cannot be served.
pub(crate) struct Reserve {
    event: OwnedFd,
    /// A duplicate of `event`, whose place a client's socket can have. `None`: another thread took
    /// that place for a descriptor of its own.
    spare: Mutex<Option<OwnedFd>>,
}

impl Reserve {
    pub(crate) fn new() -> Result<Self, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        let spare = Mutex::new(Some(fcntl_dupfd_cloexec(&event, 0)?));
        Ok(Self { event, spare })
    }

    /// Accepts a client and closes the connection.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`: the client waits on, as the descriptor was lost to another thread, or to
    /// a client before it whose connection `closer` has not closed yet.
    fn reject(&self, listener: &Listener, closer: &Arc<Closer>) -> Result<(), Errno> {
        let mut spare = lock(&self.spare);
        spare.take();
        match listener.accept() {
            Ok(fd) => closer.close_socket_with(fd, None, |mut fd| {
                // Closes the connection and takes its place in one step: no other thread may have it.
                *spare = dup3(&self.event, &mut fd, DupFlags::CLOEXEC).ok().map(|()| fd);
            }),
            Err(errno) => {
                *spare = fcntl_dupfd_cloexec(&self.event, 0).ok();
                if matches!(errno, Errno::MFILE | Errno::NFILE) {
                    return Err(errno);
                }
            }
        }
        Ok(())
    }
}

/// A listening socket as a source of connections.
pub(crate) struct Acceptor {
    listener: Listener,
    clients: Arc<Clients>,
    reserve: Arc<Reserve>,
    /// Set while it pauses.
    alarm: Mutex<Option<Alarm>>,
}

/// What a listening socket had.
enum Accepted {
    /// The client that has waited longest.
    Client(Arc<Connection>),
    /// Nobody who can be served.
    Nobody,
    /// Somebody, for whom the kernel has no memory or no descriptor now.
    Pause,
}

impl Acceptor {
    pub(crate) fn new(listener: Listener, clients: Arc<Clients>, reserve: Arc<Reserve>) -> Self {
        Self { listener, clients, reserve, alarm: Mutex::default() }
    }

    fn accept(&self, pool: &Pool) -> Accepted {
        let device = self.clients.device.name();
        let fd = match self.listener.accept() {
            Ok(fd) => fd,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Accepted::Nobody,
            Err(errno @ (Errno::MFILE | Errno::NFILE)) => {
                self.clients.quiet.warn(|suppressed| {
                    let errno = errno_name(errno);
                    tracing::error!(
                        device,
                        ?errno,
                        suppressed,
                        "no descriptors left: a client was rejected"
                    );
                });
                let rejected = self.reserve.reject(&self.listener, &self.clients.closer);
                return if rejected.is_err() { Accepted::Pause } else { Accepted::Nobody };
            }
            Err(errno) => {
                self.clients.quiet.warn(|suppressed| {
                    let errno = errno_name(errno);
                    tracing::error!(
                        device,
                        ?errno,
                        suppressed,
                        "cannot accept a client; trying on"
                    );
                });
                return Accepted::Pause;
            }
        };
        let has_room = peer::user_of(&fd).map(|user| self.clients.has_room(user));
        if has_room == Ok(false) {
            self.clients.quiet.warn(|suppressed| {
                tracing::warn!(device, suppressed, "too many connections: one was closed");
            });
            self.clients.closer.close_socket(fd, None);
            return Accepted::Nobody;
        }
        // Watched from now on, though it is served first: where the kernel watches no more descriptors
        // (fs.epoll.max_user_watches), that ends a new connection, and never one that has the device open.
        let connection = Connection::new(fd, &self.clients, pool.reserve());
        let watched = connection.and_then(|made| {
            if let Ok(connection) = &made {
                let source: Arc<dyn Source> = connection.clone();
                connection.watch().arm(&source, Interest::Closed)?;
            }
            Ok(made)
        });
        match watched {
            Ok(Ok(connection)) => return Accepted::Client(connection),
            Ok(Err(full)) => self.clients.quiet.warn(|suppressed| {
                tracing::warn!(device, suppressed, "a new connection was closed: {full}");
            }),
            Err(errno) => self.clients.quiet.warn(|suppressed| {
                let errno = errno_name(errno);
                tracing::warn!(device, ?errno, suppressed, "a client's socket cannot be used");
            }),
        }
        Accepted::Nobody
    }
}

impl Source for Acceptor {
    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Accepts a client and serves it at once.
    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        if self.clients.closer.is_saturated() {
            let (watch, acceptor) = (watch.clone(), Arc::downgrade(&self));
            let resume = move || {
                if let Some(acceptor) = acceptor.upgrade() {
                    let _ = watch.rearm(&*acceptor, Interest::Read);
                }
            };
            if self.clients.closer.when_relieved(resume) {
                return;
            }
        }
        let connection = match self.accept(watch.pool()) {
            Accepted::Client(connection) => Some(connection),
            Accepted::Nobody => None,
            Accepted::Pause => {
                let source: Arc<dyn Source> = self.clone();
                let alarm = watch.pool().wake_after(PAUSE, watch, &source);
                let before = lock(&self.alarm).replace(alarm);
                drop(before);
                return;
            }
        };
        // Another thread takes the next, if one waits already. (To accept once more only to see
        // that there is none costs ten times as much.) Fails only for a listener that goes.
        let _ = watch.rearm(&*self, Interest::Read);
        // For as long as this thread serves the client, the listener may have to go.
        drop(self);
        if let Some(connection) = connection {
            let watch = connection.watch().clone();
            connection.serve(&watch, worker);
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::testing::{Lingering, eventually};

    #[test]
    fn descriptors_of_a_rejected_client_do_not_hold_up_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let listener = Arc::new(Listener::bind(&path, Default::default()).unwrap());
        let (reserve, closer) = (Arc::new(Reserve::new().unwrap()), Closer::new("x"));
        let client = UnixStream::connect(&path).unwrap();
        let lingering = Lingering::new();
        lingering.send_by(&client);
        let rejecting = std::thread::spawn({
            let (reserve, listener, closer) = (reserve.clone(), listener.clone(), closer.clone());
            move || reserve.reject(&listener, &closer)
        });
        eventually("the client is rejected", || rejecting.is_finished());
        rejecting.join().unwrap().unwrap();
        let rejected = rustix::net::send(&client, b"x", rustix::net::SendFlags::NOSIGNAL);
        assert_eq!(rejected, Err(Errno::PIPE));
        // Its place was taken by the connection that is not closed yet; the next one has it.
        assert!(lock(&reserve.spare).is_none());
        let _next = UnixStream::connect(&path).unwrap();
        reserve.reject(&listener, &closer).unwrap();
        assert!(lock(&reserve.spare).is_some());
    }
}
