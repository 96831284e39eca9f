//! The connections to one device, and what they share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vfiod_core::{DeviceRef, Owner};
use vfiod_protocol::Dialect;
use vfiod_sync::{Condvar, Mutex, lock};

use crate::gate::Gate;
use crate::limits::{MAX_LEAVING, Quiet};

/// One connection as it is at a moment, for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Who is at the other end, as the kernel says.
    pub owner: Owner,
    /// The deviations from the specification that it needs; `None` before negotiation.
    pub dialect: Option<Dialect>,
    /// Messages received.
    pub messages: u64,
    /// Bytes received in whole or partial messages.
    pub bytes_received: u64,
    /// Bytes of replies.
    pub bytes_sent: u64,
    /// Commands refused.
    pub errors: u64,
}

/// A connection, to the others.
pub(crate) trait Client: Send + Sync {
    /// Whether it has the device open.
    fn has_session(&self) -> bool;
    /// Whether its client has hung up, though what it sent before may not be handled yet.
    fn is_departing(&self) -> bool;
    /// Ends it from outside: the thread that serves it releases the file.
    fn end(&self);
    fn info(&self) -> ConnectionInfo;
}

/// What the connections to one device share.
pub(crate) struct Clients {
    pub(crate) device: DeviceRef,
    pub(crate) poll: Duration,
    pub(crate) gate: Arc<Gate>,
    pub(crate) quiet: Quiet,
    max_connections: usize,
    connections: Mutex<Vec<(u64, Weak<dyn Client>)>>,
    count: AtomicUsize,
    /// Signalled when a connection and its file are gone, if somebody waits for that.
    departed: Condvar,
    awaiting: AtomicUsize,
    stopped: AtomicBool,
}

/// One connection in the count.
pub(crate) struct Counted(Arc<Clients>);

impl Counted {
    pub(crate) fn new(clients: &Arc<Clients>) -> Self {
        clients.count.fetch_add(1, Ordering::Relaxed);
        Self(clients.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        lock(&self.0.connections).retain(|(_, connection)| connection.strong_count() > 0);
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        if self.0.awaiting.load(Ordering::SeqCst) > 0 {
            self.0.departed.notify_all();
        }
    }
}

impl Clients {
    pub(crate) fn new(
        device: DeviceRef,
        poll: Duration,
        max_threads: usize,
        max_connections: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            device,
            poll,
            gate: Arc::new(Gate::new(max_threads)),
            quiet: Quiet::default(),
            max_connections: max_connections.max(1),
            connections: Mutex::default(),
            count: AtomicUsize::new(0),
            departed: Condvar::new(),
            awaiting: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    /// Every connection there is. Not to be dropped with `connections` locked: the last owner of
    /// one locks that itself.
    fn connections(&self) -> Vec<(u64, Arc<dyn Client>)> {
        let upgrade = |(number, weak): &(u64, Weak<dyn Client>)| Some((*number, weak.upgrade()?));
        lock(&self.connections).iter().filter_map(upgrade).collect()
    }

    /// Adds a connection, which ends at once if the device is not served any more.
    pub(crate) fn add(&self, number: u64, connection: &Arc<dyn Client>) {
        lock(&self.connections).push((number, Arc::downgrade(connection)));
        if self.stopped.load(Ordering::SeqCst) {
            connection.end();
        }
    }

    /// How many connections there are. One counts until its file is released.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The connections that there are, oldest first.
    pub(crate) fn infos(&self) -> Vec<ConnectionInfo> {
        self.connections().iter().map(|(_, connection)| connection.info()).collect()
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
        let silent = connections.iter().find(|(_, c)| !c.has_session() && !c.is_departing());
        if let Some((_, silent)) = silent {
            silent.end();
        }
        silent.is_some()
    }

    /// Waits a little for a connection to end whose client has hung up; `false` if there is none,
    /// or past the deadline. `newcomer` is the number of the connection that asks.
    pub(crate) fn await_departure(&self, newcomer: u64, deadline: Instant) -> bool {
        let others = self.connections();
        // A connection counts until its file is released, when it is in the list no more.
        let departing = self.count.load(Ordering::Relaxed) > others.len()
            || others.iter().any(|(number, other)| {
                *number != newcomer && other.has_session() && other.is_departing()
            });
        drop(others);
        departing && self.await_change(deadline)
    }

    /// Waits a little for a connection to go; `false` past the deadline.
    pub(crate) fn await_change(&self, deadline: Instant) -> bool {
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

    /// Ends every connection, and those to come.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // The threads that serve them see the end of the stream and release the files.
        self.connections().iter().for_each(|(_, connection)| connection.end());
    }
}
