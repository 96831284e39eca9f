//! Taking clients in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::connection::Connection;
use crate::listener::Listener;
use crate::pool::{Interest, Source, Watch, Worker};
use crate::server::Shared;
use crate::sync::lock;

/// How long to wait where the kernel has no memory for a connection.
const PAUSE: Duration = Duration::from_millis(10);

/// A descriptor kept for the moment when there are no others: with it, a client can still be
/// accepted, to be told that it cannot be served.
pub(crate) struct Reserve(Mutex<Option<OwnedFd>>);

impl Reserve {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self(Mutex::new(Some(eventfd(0, EventfdFlags::CLOEXEC)?))))
    }

    /// Accepts a client and closes the connection.
    fn turn_away(&self, listener: &Listener) {
        let mut reserve = lock(&self.0);
        reserve.take();
        drop(listener.accept());
        *reserve = eventfd(0, EventfdFlags::CLOEXEC).ok();
    }
}

/// A listening socket as a source of connections.
pub(crate) struct Acceptor {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Acceptor {
    pub(crate) fn new(listener: Listener, shared: Arc<Shared>) -> Self {
        Self { listener, shared }
    }

    /// The next client's connection; `None` where there is none now.
    fn accept(&self, watch: &Watch) -> Option<Arc<Connection>> {
        let device = self.shared.device.name();
        loop {
            let fd = match self.listener.accept() {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno @ (Errno::MFILE | Errno::NFILE)) => {
                    self.shared.quiet.warn(|more| {
                        tracing::error!(device, %errno, more, "no descriptors: a client was turned away");
                    });
                    self.shared.reserve.turn_away(&self.listener);
                    continue;
                }
                Err(errno) => {
                    self.shared.quiet.warn(|more| {
                        tracing::error!(device, %errno, more, "cannot accept a client; trying on");
                    });
                    std::thread::sleep(PAUSE);
                    // Tells again of whoever still waits. Fails only for a listener that goes.
                    let _ = watch.rearm(self, Interest::Accept);
                    return None;
                }
            };
            if !self.shared.has_room() {
                self.shared.quiet.warn(|more| {
                    tracing::warn!(device, more, "too many connections: one was closed");
                });
                continue;
            }
            match self.shared.adopt(fd) {
                Ok(connection) => return Some(connection),
                Err(errno) => self.shared.quiet.warn(|more| {
                    tracing::warn!(device, %errno, more, "a client's socket cannot be used");
                }),
            }
        }
    }
}

impl Source for Acceptor {
    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Accepts whoever waits. One of them is served by this very thread, at once.
    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        let mut mine = None;
        while let Some(connection) = self.accept(watch) {
            if let Some(before) = mine.replace(connection) {
                let other = watch.pool().reserve();
                let before: Arc<dyn Source> = before;
                if let Err(errno) = other.arm(&before, Interest::Read) {
                    tracing::warn!(%errno, "a client's socket cannot be watched");
                }
            }
        }
        // For as long as this thread serves the client, the listener may have to go.
        drop(self);
        if let Some(connection) = mine {
            connection.serve(&watch.pool().reserve(), worker);
        }
    }
}
