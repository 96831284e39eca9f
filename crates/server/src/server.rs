//! The server: devices and the sockets that they are served on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfiod_core::{DeviceRef, Errno, Error, Result};
use vfiod_quota::{Ledger, Limits, Opened, Resource, Shortfall, Usage};
use vfiod_tasks::{Runtime, Task};

use crate::acceptor::{Acceptor, Reserve};
use crate::clients::{Clients, ConnectionInfo, ConnectionTotals};
use crate::connection::Connection;
use crate::embedded::serve_in_tasks;
use crate::limits::{MAX_CONNECTIONS, MAX_THREADS_PER_DEVICE, Quiet};
use crate::listener::{Listener, check_stream};
use crate::pool::{Interest, Pool, Source, Watch};
use crate::served_devices::ServedDevices;

/// How a server works.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Threads beyond those that each device has for itself ([`Resource::Threads`] of `limits`). A thread
    /// is needed for each connection that is busy at the same moment, and up to 8 for each device that is
    /// stalled. One user has half of them at most.
    pub max_threads: usize,
    /// How long a thread polls a connection that has gone quiet before it sleeps. Saves the
    /// time of waking up where the client is on another processor; burns that time otherwise.
    pub poll: Duration,
    /// Most connections to one device at a time. Where there is no room for another, one that
    /// has not negotiated yet makes it, or else the new one is closed.
    pub max_connections: usize,
    /// The smallest `max_data_xfer_size` that a client may announce, bytes: one with less is refused
    /// (`EINVAL`). A device's transfers by message are cut to that size, so that it decides how many
    /// messages they take.
    pub min_transfer: u64,
    /// What the devices share, and how much of it each has for its own clients. Of the rest one user (an
    /// account, or a connection whose account the kernel cannot name) has half at most.
    pub limits: Limits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_threads: 256,
            poll: Duration::ZERO,
            max_connections: MAX_CONNECTIONS,
            min_transfer: 4096,
            limits: Limits::of_process(1),
        }
    }
}

/// A vfio-user server: a few threads, or tasks of a runtime, that serve any number of devices.
///
/// Dropping it ends every connection, which releases their files, and waits for the threads, and
/// so for every callback of a device that is running.
pub struct Server {
    pool: Pool,
    options: ServerOptions,
    reserve: Arc<Reserve>,
    ledger: Arc<Ledger>,
    served: Arc<ServedDevices<Clients>>,
    shortfalls: Quiet,
    /// Of an embedded server: the task that serves.
    _serving: Option<Task<()>>,
}

/// A device being served. Dropping it stops listening and ends its connections; their files are
/// released by the server's threads, soon after.
pub struct Served {
    clients: Arc<Clients>,
    accept: Option<Watch>,
}

/// What takes clients of a device. Dropping it removes the socket, if it was made here.
pub struct Listening(Watch);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.forget();
    }
}

/// The clients of a device that have hung up. Does not keep the device served.
#[derive(Clone)]
pub struct Departures(Arc<Clients>);

impl Departures {
    /// Waits, no longer than `deadline`, until the files of clients that have hung up are released.
    /// Returns whether there was such a client, and is none now.
    pub fn settle(&self, deadline: Instant) -> bool {
        self.0.settle(deadline)
    }
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
        Ok(Self::with(pool, options, reserve, None))
    }

    /// Makes a server without threads and without devices: whoever runs `runtime` serves its
    /// clients. With the runtime of a [`Registry`](vfiod_core::Registry), one thread does
    /// everything that devices and their server have to do. It never waits for a client, but a
    /// reset or a last close waits, within its limit, for tasks of the device, which run meanwhile.
    ///
    /// The first interrupt starts a watchdog thread of the core, unless the program has called
    /// [`forgo_watchdog`](vfiod_core::irq::forgo_watchdog).
    ///
    /// # Errors
    /// Those of `epoll` and `eventfd` (`EMFILE`).
    pub fn embedded(options: ServerOptions, runtime: &Runtime) -> Result<Self> {
        let failed = |errno| Error::new(errno, "cannot start an embedded server");
        let pool = Pool::embedded().map_err(failed)?;
        let reserve = Arc::new(Reserve::new().map_err(failed)?);
        let serving = Some(serve_in_tasks(&pool, runtime).map_err(failed)?);
        let options = ServerOptions { poll: Duration::ZERO, ..options };
        Ok(Self::with(pool, options, reserve, serving))
    }

    fn with(
        pool: Pool,
        options: ServerOptions,
        reserve: Arc<Reserve>,
        serving: Option<Task<()>>,
    ) -> Self {
        let mut limits = options.limits;
        limits.set_common(Resource::Threads, options.max_threads as u64);
        Self {
            pool,
            options,
            reserve,
            ledger: Ledger::new(limits),
            served: Arc::default(),
            shortfalls: Quiet::default(),
            _serving: serving,
        }
    }

    /// Serves a device to every client that connects. What it lacks of a share that was not demanded is
    /// logged.
    ///
    /// # Errors
    /// `EDQUOT`: a share that was demanded cannot be had; what `epoll` says (`ENOSPC`: too many
    /// descriptors watched).
    pub fn serve(&self, listener: Listener, device: DeviceRef) -> Result<Served> {
        let clients = self.clients_of(device)?;
        let watch = self.pool.reserve();
        let acceptor = Acceptor::new(listener, clients.clone(), self.reserve.clone());
        let source: Arc<dyn Source> = Arc::new(acceptor);
        watch
            .arm(&source, Interest::Read)
            .map_err(|errno| Error::new(errno, "cannot watch the listening socket"))?;
        Ok(Served { clients, accept: Some(watch) })
    }

    /// Serves a device to the client at the other end of a connected socket, and to no other.
    ///
    /// # Errors
    /// `EINVAL`, `ENOTSOCK`: not a connected UNIX stream socket; `EDQUOT`: the connection's user has as
    /// many as it may have, or a share that was demanded cannot be had; what `epoll` says.
    pub fn serve_connected(&self, socket: OwnedFd, device: DeviceRef) -> Result<Served> {
        check_stream(&socket)?;
        let clients = self.clients_of(device)?;
        let failed = |errno| Error::new(errno, "cannot serve the connected socket");
        let watch = self.pool.reserve();
        let connection = Connection::new(socket, &clients, watch.clone()).map_err(failed)?;
        let connection: Arc<dyn Source> =
            connection.map_err(|full| Error::new(Errno::DQUOT, full.to_string()))?;
        watch.arm(&connection, Interest::Read).map_err(failed)?;
        Ok(Served { clients, accept: None })
    }

    fn clients_of(&self, device: DeviceRef) -> Result<Arc<Clients>> {
        let refused = |short: Shortfall| Error::new(Errno::DQUOT, short.to_string());
        let Opened { account, shortfalls } = self.ledger.open(device.name()).map_err(refused)?;
        for short in shortfalls {
            let (device, resource) = (device.name(), short.resource.name());
            self.shortfalls.warn(|suppressed| {
                tracing::warn!(
                    device,
                    resource,
                    suppressed,
                    "a device lacks some of its share: {short}"
                );
            });
        }
        // With few threads in all, even fewer for one device; but two, so that the file of a
        // client that has gone can be released while another client waits for that.
        let threads = (self.options.max_threads / 4).clamp(2, MAX_THREADS_PER_DEVICE);
        if self._serving.is_none() {
            let threads = usize::try_from(self.ledger.total(Resource::Threads));
            self.pool.allow_threads(threads.unwrap_or(usize::MAX));
        }
        let ServerOptions { poll, min_transfer, max_connections, .. } = self.options;
        Ok(Clients::new(
            device,
            poll,
            min_transfer,
            threads,
            max_connections,
            account,
            &self.served,
        ))
    }

    /// Logs how many lines about each user were not logged, and counted in none after them: before the end of
    /// the process.
    pub fn log_suppressed(&self) {
        self.ledger.log_suppressed();
    }

    /// What the devices have of a resource beyond their shares.
    pub fn usage(&self, resource: Resource) -> Usage {
        self.ledger.usage(resource)
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
        &self.clients.device
    }

    /// How many connections there are. One counts until its file is released.
    pub fn connections(&self) -> usize {
        self.clients.count()
    }

    /// What the device has of its share of a resource.
    pub fn usage(&self, resource: Resource) -> Usage {
        self.clients.account.usage(resource)
    }

    /// The connections that there are, oldest first.
    pub fn clients(&self) -> Vec<ConnectionInfo> {
        self.clients.infos()
    }

    /// What was counted on all connections so far, those that have ended included.
    pub fn totals(&self) -> ConnectionTotals {
        self.clients.totals()
    }

    /// Its clients that have hung up, so that none of them counts as a user of the device.
    pub fn departures(&self) -> Departures {
        Departures(self.clients.clone())
    }

    /// Takes no further clients and removes the socket, if it was made here; those who are
    /// connected stay.
    pub fn stop_listening(&mut self) {
        drop(self.take_listening());
    }

    /// What takes clients, which ends when it is dropped, as [`Served::stop_listening`] does: for
    /// whoever holds a lock meanwhile, as the drop may wait two seconds for the socket's directory.
    pub fn take_listening(&mut self) -> Option<Listening> {
        self.accept.take().map(Listening)
    }

    /// Stops listening, ends every connection, and waits, no longer than `patience`, until their
    /// files are released. Returns whether they are.
    pub fn finish(mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.stop();
        while self.clients.count() > 0 {
            if !self.clients.await_change(deadline) {
                return false;
            }
        }
        true
    }

    fn stop(&mut self) {
        self.stop_listening();
        self.clients.stop();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}
