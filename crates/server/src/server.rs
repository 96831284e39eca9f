//! The server: devices and the sockets that they are served on.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vfiod_core::{DeviceRef, Error, Result};

use crate::acceptor::{Acceptor, Reserve};
use crate::connection::{Connection, ConnectionInfo};
use crate::gate::Gate;
use crate::limits::{MAX_CONNECTIONS, MAX_LEAVING, MAX_THREADS_PER_DEVICE, Quiet};
use crate::listener::{Listener, check_stream};
use crate::pool::{Interest, LINGER, Pool, Source, Watch};
use crate::sync::lock;
use crate::transport::Socket;

/// How a server works.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Most threads, at least 2. A thread is needed for each connection that is busy at the same
    /// moment, and up to 8 for each device that is stalled.
    pub max_threads: usize,
    /// How long a thread polls a connection that has gone quiet before it sleeps. Saves the
    /// time of waking up where the client is on another processor; burns that time otherwise.
    pub poll: Duration,
    /// Most connections to one device at a time. Where there is no room for another, one that
    /// has not negotiated yet makes it, or else the new one is closed.
    pub max_connections: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { max_threads: 256, poll: Duration::ZERO, max_connections: MAX_CONNECTIONS }
    }
}

/// A vfio-user server: a few threads that serve any number of devices.
///
/// Dropping it ends every connection, which releases their files, and waits for the threads, and
/// so for every callback of a device that is running.
pub struct Server {
    pool: Pool,
    options: ServerOptions,
    reserve: Arc<Reserve>,
}

/// What the connections to one device share.
pub(crate) struct Shared {
    pub(crate) device: DeviceRef,
    pub(crate) poll: Duration,
    pub(crate) gate: Gate,
    pub(crate) reserve: Arc<Reserve>,
    max_connections: usize,
    connections: Mutex<Vec<Weak<Connection>>>,
    count: AtomicUsize,
    /// Signalled when a connection and its file are gone, if somebody waits for that.
    departed: Condvar,
    awaiting: AtomicUsize,
    stopped: AtomicBool,
    pub(crate) quiet: Quiet,
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
        lock(&self.0.connections).retain(|connection| connection.strong_count() > 0);
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        if self.0.awaiting.load(Ordering::SeqCst) > 0 {
            self.0.departed.notify_all();
        }
    }
}

impl Shared {
    /// Every connection there is. Not to be dropped with `connections` locked: the last owner of
    /// one locks that itself.
    fn connections(&self) -> Vec<Arc<Connection>> {
        lock(&self.connections).iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes a connection of a socket.
    pub(crate) fn adopt(self: &Arc<Self>, socket: OwnedFd) -> Result<Arc<Connection>, Errno> {
        let connection = Arc::new(Connection::new(Socket::new(socket, LINGER)?, self.clone())?);
        lock(&self.connections).push(Arc::downgrade(&connection));
        if self.stopped.load(Ordering::SeqCst) {
            connection.end();
        }
        Ok(connection)
    }

    /// Whether a further client can be served, if need be in place of one that has been there
    /// longest without having said what it wants.
    pub(crate) fn has_room(&self) -> bool {
        if self.count.load(Ordering::Relaxed) < self.max_connections {
            return true;
        }
        let connections = self.connections();
        // Those that were told to go still have their descriptors, for some milliseconds.
        if connections.len() >= self.max_connections * 2 + MAX_LEAVING {
            return false;
        }
        let silent = connections.iter().find(|c| c.session().is_none() && !c.is_departing());
        if let Some(silent) = silent {
            silent.end();
        }
        silent.is_some()
    }

    /// Waits until a client that has hung up has been let go of; `false` if there is none, or
    /// when it takes too long.
    pub(crate) fn await_departure(&self, newcomer: &Connection, deadline: Instant) -> bool {
        let others = self.connections();
        // A connection counts until its file is released, when it is in the list no more.
        let departing = self.count.load(Ordering::Relaxed) > others.len()
            || others.iter().any(|other| {
                let newcomer = std::ptr::eq(&**other, newcomer);
                !newcomer && other.session().is_some() && other.is_departing()
            });
        drop(others);
        departing && self.await_change(deadline)
    }

    /// Waits a little for a connection to go; `false` past the deadline.
    fn await_change(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let before = self.count.load(Ordering::SeqCst);
        self.awaiting.fetch_add(1, Ordering::SeqCst);
        let connections = lock(&self.connections);
        if self.count.load(Ordering::SeqCst) == before {
            // In slices, as nothing is locked while a connection signals.
            drop(self.departed.wait_timeout(connections, left.min(Duration::from_millis(5))));
        }
        self.awaiting.fetch_sub(1, Ordering::SeqCst);
        true
    }
}

/// A device being served. Dropping it stops listening and ends its connections; their files are
/// released by the server's threads, soon after.
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
        let failed = |errno| Error::new(errno, "cannot start the server's threads");
        let pool = Pool::new(options.max_threads).map_err(failed)?;
        let reserve = Arc::new(Reserve::new().map_err(failed)?);
        Ok(Self { pool, options, reserve })
    }

    /// Serves a device to every client that connects.
    ///
    /// # Errors
    /// What `epoll` says (`ENOSPC`: too many descriptors watched).
    pub fn serve(&self, listener: Listener, device: DeviceRef) -> Result<Served> {
        let shared = self.share(device);
        let watch = self.pool.reserve();
        let source: Arc<dyn Source> = Arc::new(Acceptor::new(listener, shared.clone()));
        watch
            .arm(&source, Interest::Read)
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
        let connection: Arc<dyn Source> = shared.adopt(socket).map_err(failed)?;
        self.pool.reserve().arm(&connection, Interest::Read).map_err(failed)?;
        Ok(Served { shared, accept: None })
    }

    fn share(&self, device: DeviceRef) -> Arc<Shared> {
        // With few threads in all, even fewer for one device; but two, so that a client that has
        // gone can be let go of while another waits for that.
        let threads = (self.options.max_threads / 4).clamp(2, MAX_THREADS_PER_DEVICE);
        Arc::new(Shared {
            device,
            poll: self.options.poll,
            gate: Gate::new(threads),
            reserve: self.reserve.clone(),
            max_connections: self.options.max_connections.max(1),
            connections: Mutex::default(),
            count: AtomicUsize::new(0),
            departed: Condvar::new(),
            awaiting: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
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
    /// The device.
    pub fn device(&self) -> &DeviceRef {
        &self.shared.device
    }

    /// How many connections there are. One counts until its file is released.
    pub fn connections(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// The connections that there are, oldest first.
    pub fn clients(&self) -> Vec<ConnectionInfo> {
        self.shared.connections().iter().map(|connection| connection.info()).collect()
    }

    /// Takes no further clients and removes the socket, if it was made here; those who are
    /// connected stay.
    pub fn stop_listening(&mut self) {
        if let Some(accept) = self.accept.take() {
            accept.forget();
        }
    }

    /// Stops listening, ends every connection, and waits, no longer than `patience`, until their
    /// files are released. Returns whether they are.
    pub fn finish(mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.stop();
        while self.shared.count.load(Ordering::Relaxed) > 0 {
            if !self.shared.await_change(deadline) {
                return false;
            }
        }
        true
    }

    fn stop(&mut self) {
        self.stop_listening();
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Their threads see the end of the stream and let go of them.
        self.shared.connections().iter().for_each(|connection| connection.end());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}
