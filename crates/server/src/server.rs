//! The server: devices and the sockets that they are served on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::io::Errno;
use vfiod_core::{DeviceRef, Error, Result};

use crate::connection::Connection;
use crate::limits::{MAX_CONNECTIONS, Quiet};
use crate::listener::{Listener, check_stream};
use crate::pool::{Interest, LINGER, Pool, Source, Watch, Worker};
use crate::sync::lock;
use crate::transport::Socket;

/// How a server works.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Most threads. A thread is needed for each connection that is busy at the same moment,
    /// and for each device that is stalled.
    pub max_threads: usize,
    /// How long a thread polls a connection that has gone quiet before it sleeps. Saves the
    /// time of waking up where the client is on another processor; burns that time otherwise.
    pub poll: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { max_threads: 256, poll: Duration::ZERO }
    }
}

/// A vfio-user server: a few threads that serve any number of devices.
///
/// Dropping it ends every connection, which releases their files, and waits for the threads.
pub struct Server {
    pool: Pool,
    options: ServerOptions,
}

/// What the connections to one device share.
pub(crate) struct Shared {
    pub(crate) device: DeviceRef,
    pub(crate) poll: Duration,
    connections: Mutex<Vec<Weak<Connection>>>,
    count: AtomicUsize,
    quiet: Quiet,
}

/// One connection in the count.
pub(crate) struct Counted(Arc<Shared>);

impl Counted {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.count.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A device being served. Dropping it stops listening and ends its connections.
pub struct Served {
    shared: Arc<Shared>,
    accept: Option<Watch>,
}

impl Server {
    /// Starts a server with no devices.
    ///
    /// # Errors
    /// What the kernel says to a first thread or an `epoll` (`EMFILE`, `EAGAIN`).
    pub fn new(options: ServerOptions) -> Result<Self> {
        let pool = Pool::new(options.max_threads)
            .map_err(|errno| Error::new(errno, "cannot start the server's threads"))?;
        Ok(Self { pool, options })
    }

    /// Serves a device to every client that connects.
    ///
    /// # Errors
    /// What `epoll` says (`ENOSPC`: too many descriptors watched).
    pub fn serve(&self, listener: Listener, device: DeviceRef) -> Result<Served> {
        let shared = self.share(device);
        let watch = self.pool.reserve();
        let source: Arc<dyn Source> = Arc::new(Acceptor { listener, shared: shared.clone() });
        watch
            .arm(&source, Interest::Accept)
            .map_err(|errno| Error::new(errno, "cannot watch the listening socket"))?;
        Ok(Served { shared, accept: Some(watch) })
    }

    /// Serves a device to the client at the other end of a connected socket, and to no other.
    ///
    /// # Errors
    /// `EINVAL`, `ENOTSOCK`: not a connected UNIX stream socket; what `epoll` says.
    pub fn serve_connected(&self, socket: OwnedFd, device: DeviceRef) -> Result<Served> {
        check_stream(&socket)?;
        let shared = self.share(device);
        let failed = |errno| Error::new(errno, "cannot serve the connected socket");
        let connection = adopt(socket, &shared).map_err(failed)?;
        let source: Arc<dyn Source> = connection;
        self.pool.reserve().arm(&source, Interest::Read).map_err(failed)?;
        Ok(Served { shared, accept: None })
    }

    fn share(&self, device: DeviceRef) -> Arc<Shared> {
        Arc::new(Shared {
            device,
            poll: self.options.poll,
            connections: Mutex::default(),
            count: AtomicUsize::new(0),
            quiet: Quiet::default(),
        })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.pool.stop();
    }
}

impl Served {
    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Messages and errors answered so far on the connections that there are.
    pub fn counters(&self) -> (u64, u64) {
        let connections = lock(&self.shared.connections);
        connections.iter().filter_map(Weak::upgrade).fold((0, 0), |(messages, errors), c| {
            (
                messages + c.counters.messages.load(Ordering::Relaxed),
                errors + c.counters.errors.load(Ordering::Relaxed),
            )
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(accept) = self.accept.take() {
            accept.forget();
        }
        for connection in lock(&self.shared.connections).drain(..) {
            if let Some(connection) = connection.upgrade() {
                // Its thread sees the end of the stream and lets go of it.
                connection.link().end();
            }
        }
    }
}

/// Makes a connection of a socket.
fn adopt(socket: OwnedFd, shared: &Arc<Shared>) -> std::result::Result<Arc<Connection>, Errno> {
    let connection = Arc::new(Connection::new(Socket::new(socket, LINGER)?, shared.clone())?);
    let mut connections = lock(&shared.connections);
    connections.retain(|connection| connection.strong_count() > 0);
    connections.push(Arc::downgrade(&connection));
    Ok(connection)
}

struct Acceptor {
    listener: Listener,
    shared: Arc<Shared>,
}

impl Acceptor {
    /// The next client's connection; `None` where there is none now.
    fn accept(&self) -> Option<Arc<Connection>> {
        loop {
            let fd = match self.listener.accept() {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => {
                    self.shared.quiet.warn(|more| {
                        let device = self.shared.device.name();
                        tracing::error!(device, %errno, more, "cannot accept a client; trying on");
                    });
                    // Out of descriptors or memory: that can only pass.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            if self.shared.count.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                self.shared.quiet.warn(|more| {
                    let device = self.shared.device.name();
                    tracing::warn!(device, more, "too many connections: one was closed");
                });
                continue;
            }
            match adopt(fd, &self.shared) {
                Ok(connection) => return Some(connection),
                Err(errno) => {
                    tracing::warn!(%errno, "a client's socket cannot be used");
                }
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
        while let Some(connection) = self.accept() {
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
