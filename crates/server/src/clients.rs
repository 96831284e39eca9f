//! The connections to one device, and what they share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vfiod_core::{DeviceRef, Owner};
use vfiod_protocol::Dialect;
use vfiod_sync::{Condvar, Mutex, lock};

use crate::closer::Closer;
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

/// What was counted on all connections to a device since it is served, those that have ended
/// included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionTotals {
    /// Reads and writes of regions by message.
    pub accesses: u64,
    /// Messages received, accesses included.
    pub messages: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes of replies.
    pub bytes_sent: u64,
    /// Commands refused.
    pub errors: u64,
    /// Bytes that the device has asked for by DMA_READ.
    pub dma_bytes_read: u64,
    /// Bytes that the device has sent by DMA_WRITE.
    pub dma_bytes_written: u64,
}

/// Counters of a connection. All but `errors` and those of DMA are written by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accesses: AtomicU64,
    /// Messages that are no accesses.
    pub(crate) others: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) dma_read: AtomicU64,
    pub(crate) dma_written: AtomicU64,
    /// Replies to nothing before negotiation.
    pub(crate) early_replies: AtomicU64,
}

impl Counters {
    pub(crate) fn totals(&self) -> ConnectionTotals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let accesses = read(&self.accesses);
        ConnectionTotals {
            accesses,
            messages: accesses + read(&self.others),
            bytes_received: read(&self.received),
            bytes_sent: read(&self.sent),
            errors: read(&self.errors),
            dma_bytes_read: read(&self.dma_read),
            dma_bytes_written: read(&self.dma_written),
        }
    }
}

impl ConnectionTotals {
    fn add(&mut self, other: Self) {
        self.accesses += other.accesses;
        self.messages += other.messages;
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.errors += other.errors;
        self.dma_bytes_read += other.dma_bytes_read;
        self.dma_bytes_written += other.dma_bytes_written;
    }
}

/// A connection in the list.
struct Listed {
    number: u64,
    connection: Weak<dyn Client>,
    counters: Arc<Counters>,
}

/// The connections, and what was counted on those that are not in the list any more.
#[derive(Default)]
struct List {
    connections: Vec<Listed>,
    ended: ConnectionTotals,
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
    pub(crate) closer: Arc<Closer>,
    pub(crate) quiet: Quiet,
    max_connections: usize,
    connections: Mutex<List>,
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
        let mut list = lock(&self.0.connections);
        let List { connections, ended } = &mut *list;
        connections.retain(|listed| {
            let there = listed.connection.strong_count() > 0;
            if !there {
                ended.add(listed.counters.totals());
            }
            there
        });
        drop(list);
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
        let closer = Closer::new(device.name());
        Arc::new(Self {
            device,
            closer,
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
        let upgrade = |listed: &Listed| Some((listed.number, listed.connection.upgrade()?));
        lock(&self.connections).connections.iter().filter_map(upgrade).collect()
    }

    /// Adds a connection, which ends at once if the device is not served any more.
    pub(crate) fn add(&self, number: u64, connection: &Arc<dyn Client>, counters: &Arc<Counters>) {
        let (weak, counters) = (Arc::downgrade(connection), counters.clone());
        lock(&self.connections).connections.push(Listed { number, connection: weak, counters });
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

    /// What was counted on all connections, those that have ended included. Never less than before.
    pub(crate) fn totals(&self) -> ConnectionTotals {
        let list = lock(&self.connections);
        let mut totals = list.ended;
        list.connections.iter().for_each(|listed| totals.add(listed.counters.totals()));
        totals
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
