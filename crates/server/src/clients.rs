//! The connections to one device, and what they share.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vfiod_core::{DeviceRef, Owner};
use vfiod_protocol::Dialect;
use vfiod_quota::{Account, Charge, Exceeded, Payer, Resource, User};
use vfiod_sync::{Condvar, Mutex, lock};

use crate::closer::Closer;
use crate::gate::Gate;
use crate::limits::{MAX_LEAVING, MAX_LINES, Quiet};
use crate::opening_queue::OpeningQueue;
use crate::served_devices::ServedDevices;

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

/// Counts what only the thread that has the connection's state locked counts.
pub(crate) fn count(counter: &AtomicU64, more: usize) {
    counter.store(counter.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
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
    /// Connections that are to open the device, one at a time.
    openings: OpeningQueue<dyn Client>,
    /// Connections that wait for a file to be released.
    await_departure: Vec<Weak<dyn Client>>,
    /// Connections that have ended, with their files.
    departures: u64,
}

/// Not with the list locked: the last owner of a connection locks it.
fn wake(newcomers: impl IntoIterator<Item = Weak<dyn Client>>) {
    let newcomers: Vec<_> = newcomers.into_iter().filter_map(|weak| weak.upgrade()).collect();
    newcomers.iter().for_each(|newcomer| newcomer.wake());
}

/// A connection, to the others.
pub(crate) trait Client: Send + Sync {
    /// Whose it is; see [`User::or_unnamed`].
    fn user(&self) -> User;
    /// Whether it has the device open.
    fn has_session(&self) -> bool;
    /// Whether its client has hung up, though what it sent before may not be handled yet.
    fn is_departing(&self) -> bool;
    /// Ends it from outside: the thread that serves it releases the file.
    fn end(&self);
    /// What it waits for may have happened: it is served again.
    fn wake(&self);
    /// Gives up its place, for another connection whose `payer` is charged for it from now on. It is
    /// ended next. `None`: it has none, or the payer's user may not have it.
    fn give_place(&self, payer: &Payer) -> Option<Place>;
    fn info(&self) -> ConnectionInfo;
}

/// A connection's place among those that a user may have, with the descriptor of its socket.
pub(crate) struct Place {
    connection: Charge,
    descriptor: Charge,
}

impl Place {
    fn new(payer: &Payer) -> Result<Self, Exceeded> {
        Ok(Self {
            connection: payer.charge(Resource::Connections, 1)?,
            descriptor: payer.charge(Resource::Descriptors, 1)?,
        })
    }

    /// Has `to` pay for it, who replaces `from`; the place is as before where that is more than the
    /// user may have.
    pub(crate) fn transfer(&mut self, from: &Payer, to: &Payer) -> Result<(), Exceeded> {
        self.connection.transfer(to)?;
        self.descriptor.transfer(to).inspect_err(|_| {
            // Fails only where others have taken all that is common since: then it stays as it is.
            let _ = self.connection.transfer(from);
        })
    }
}

/// Whether a client that has hung up has the device open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Departure {
    /// No.
    None,
    /// Yes: the newcomer is woken when its file is released.
    UnderWay,
    /// A file was released since the attempt to open began.
    Over,
}

/// How many connections to a device its users have, where there is no room for a further one.
///
/// Who connects again and again makes room of its own: a user takes the place of another one only who
/// has as many connections at least, the new one included. So however many one user makes, another one
/// keeps its connection until it has said what it wants.
struct Comparison {
    newcomer: User,
    of: HashMap<User, usize>,
}

impl Comparison {
    fn new(connections: &[(u64, Arc<dyn Client>)], newcomer: User) -> Self {
        let mut of = HashMap::from([(newcomer, 1)]);
        connections.iter().for_each(|(_, client)| *of.entry(client.user()).or_default() += 1);
        Self { newcomer, of }
    }

    fn count(&self, user: User) -> usize {
        self.of.get(&user).copied().unwrap_or(0)
    }

    /// The connections that may make room for the new one: they do not have the device open. First those of
    /// the user who has most of all, of each user the oldest first.
    fn in_place_of<'a>(&self, connections: &'a [(u64, Arc<dyn Client>)]) -> Vec<&'a dyn Client> {
        let new = self.count(self.newcomer);
        let may = |user| user == self.newcomer || self.count(user) >= new;
        let silent = connections.iter().map(|(_, client)| &**client);
        let mut silent: Vec<_> = silent.filter(|c| may(c.user()) && !c.has_session()).collect();
        // Stable: they are in the order in which they came.
        silent.sort_by_key(|client| {
            let user = client.user();
            (Reverse(self.count(user)), user != self.newcomer)
        });
        silent
    }

    /// Whether another user has more connections than that of the new one.
    fn has_fewer(&self) -> bool {
        let new = self.count(self.newcomer);
        self.of.values().any(|count| *count > new)
    }
}

/// The right to open the device, for one connection at a time.
pub(crate) struct Opening {
    clients: Arc<Clients>,
    /// [`List::departures`] when it began.
    departures: u64,
}

impl Opening {
    /// See [`Clients::await_departure`].
    pub(crate) fn await_departure(&self, number: u64, newcomer: &Weak<dyn Client>) -> Departure {
        self.clients.await_departure(number, newcomer, self.departures)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut list = lock(&self.clients.connections);
        let next = list.openings.end();
        drop(list);
        wake(next);
    }
}

/// What the connections to one device share.
pub(crate) struct Clients {
    pub(crate) device: DeviceRef,
    pub(crate) poll: Duration,
    /// The smallest `max_data_xfer_size` that a client may announce, bytes.
    pub(crate) min_transfer: u64,
    pub(crate) gate: Arc<Gate>,
    pub(crate) closer: Arc<Closer>,
    pub(crate) quiet: Quiet,
    /// For the ends of connections.
    pub(crate) ends: Quiet,
    /// For what is refused to connections that do not have the device open.
    pub(crate) refusals: Quiet,
    max_connections: usize,
    pub(crate) account: Arc<Account>,
    /// This device and the others of the server.
    pub(crate) served: Arc<ServedDevices<Self>>,
    connections: Mutex<List>,
    count: AtomicUsize,
    /// Signalled when a connection and its file are gone, if somebody waits for that.
    departed: Condvar,
    awaiting: AtomicUsize,
    stopped: AtomicBool,
}

/// One connection in the count.
pub(crate) struct Counted {
    clients: Arc<Clients>,
    number: u64,
}

impl Counted {
    /// Counts the connection with this number.
    pub(crate) fn new(clients: &Arc<Clients>, number: u64) -> Self {
        clients.count.fetch_add(1, Ordering::Relaxed);
        Self { clients: clients.clone(), number }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut list = lock(&self.clients.connections);
        let List { connections, ended, .. } = &mut *list;
        // No other one: whose connection has no owner any more may still have its file.
        connections.retain(|listed| {
            let there = listed.number != self.number;
            if !there {
                ended.add(listed.counters.totals());
            }
            there
        });
        list.departures += 1;
        // The one that has ended may have been woken to open the device.
        let next = list.openings.next();
        let newcomers = std::mem::take(&mut list.await_departure);
        drop(list);
        wake(newcomers.into_iter().chain(next));
        self.clients.count.fetch_sub(1, Ordering::SeqCst);
        if self.clients.awaiting.load(Ordering::SeqCst) > 0 {
            self.clients.departed.notify_all();
        }
    }
}

impl Clients {
    pub(crate) fn new(
        device: DeviceRef,
        poll: Duration,
        min_transfer: u64,
        max_threads: usize,
        max_connections: usize,
        account: Arc<Account>,
        served: &Arc<ServedDevices<Self>>,
    ) -> Arc<Self> {
        let closer = Closer::new(device.name());
        let clients = Arc::new(Self {
            device,
            closer,
            poll,
            min_transfer,
            gate: Gate::new(max_threads),
            quiet: Quiet::default(),
            ends: Quiet::up_to(MAX_LINES),
            refusals: Quiet::up_to(MAX_LINES),
            max_connections: max_connections.max(1),
            account,
            served: served.clone(),
            connections: Mutex::default(),
            count: AtomicUsize::new(0),
            departed: Condvar::new(),
            awaiting: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        served.add(clients.device.id(), &clients);
        clients
    }

    /// How many connections have ended, with their files.
    pub(crate) fn departures(&self) -> u64 {
        lock(&self.connections).departures
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

    /// Whether a further client of `newcomer` can be served, if need be in place of another one
    /// ([`Comparison::in_place_of`]).
    pub(crate) fn has_room(&self, newcomer: User) -> bool {
        if self.count.load(Ordering::Relaxed) < self.max_connections {
            return true;
        }
        let connections = self.connections();
        // Those that were told to go still have their descriptors, for some milliseconds.
        if connections.len() >= self.max_connections * 2 + MAX_LEAVING {
            return false;
        }
        let compared = Comparison::new(&connections, newcomer);
        let mut replaced = compared.in_place_of(&connections).into_iter();
        if let Some(silent) = replaced.find(|client| !client.is_departing()) {
            silent.end();
            return true;
        }
        // Those of a user who has more of them are about to go.
        compared.has_fewer()
    }

    /// Who pays for what a connection of `user` takes up.
    pub(crate) fn payer(&self, user: User) -> Payer {
        Payer::new(self.account.clone(), user)
    }

    /// A place for a further connection, if need be that of another one to this device
    /// ([`Comparison::in_place_of`]).
    ///
    /// # Errors
    /// The user has as many as it may have.
    pub(crate) fn place(&self, payer: &Payer) -> Result<Place, Exceeded> {
        let full = match Place::new(payer) {
            Ok(place) => return Ok(place),
            Err(full) => full,
        };
        let connections = self.connections();
        let compared = Comparison::new(&connections, payer.user().or_unnamed());
        let mut replaced = compared.in_place_of(&connections).into_iter();
        let given = replaced.find_map(|client| Some((client, client.give_place(payer)?)));
        given.map(|(silent, place)| (silent.end(), place).1).ok_or(full)
    }

    /// Lets connection `number` open the device, unless another does that already: then `newcomer` is
    /// woken when that is over, if it can wait. An open may wait, and one thread that waits is enough.
    pub(crate) fn begin_open(
        self: &Arc<Self>,
        number: u64,
        newcomer: &Weak<dyn Client>,
        can_wait: bool,
    ) -> Option<Opening> {
        let mut list = lock(&self.connections);
        if !list.openings.begin(number, newcomer, can_wait) {
            return None;
        }
        Some(Opening { clients: self.clone(), departures: list.departures })
    }

    /// After the open of connection `number`, or its reset of the set, was refused: whether that is worth
    /// another attempt, because a client that has hung up has the device open. `departures` is from before.
    pub(crate) fn await_departure(
        &self,
        number: u64,
        newcomer: &Weak<dyn Client>,
        departures: u64,
    ) -> Departure {
        let others = self.connections();
        let departs = |(other, client): &(u64, Arc<dyn Client>)| {
            *other != number && client.has_session() && client.is_departing()
        };
        let departing = others.iter().any(departs);
        drop(others);
        let mut list = lock(&self.connections);
        if list.departures != departures {
            return Departure::Over;
        }
        // One without an owner releases its file right now.
        let released = |listed: &Listed| listed.connection.strong_count() == 0;
        if !departing && !list.connections.iter().any(released) {
            return Departure::None;
        }
        list.await_departure.push(newcomer.clone());
        Departure::UnderWay
    }

    /// Waits until no connection is left whose client has hung up, no longer than `deadline`. Returns
    /// whether there was one, and is none now.
    pub(crate) fn settle(&self, deadline: Instant) -> bool {
        let mut waited = false;
        loop {
            let connections = self.connections();
            // A connection counts until its file is released, when it is in the list no more.
            let departing = self.count.load(Ordering::Relaxed) > connections.len()
                || connections.iter().any(|(_, connection)| connection.is_departing());
            drop(connections);
            if !departing {
                return waited;
            }
            waited = true;
            if !self.await_change(deadline) {
                return false;
            }
        }
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

impl Drop for Clients {
    /// Nobody is a client any more. What one has left unread, or a descriptor that cannot be closed, is
    /// charged to the account for as long as it is there; the rest is for other devices.
    fn drop(&mut self) {
        self.served.forget_dropped(self.device.id());
        self.account.close();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use vfiod_quota::{Ledger, Limit, Limits, Share, Size};

    use super::*;

    #[test]
    fn place_that_is_given_up_is_charged_to_who_has_it_then() {
        let mut limits = Limits::of_process(1);
        limits.set(Resource::Connections, Limit::new(Size::Common(4), Share::Demanded(1)));
        limits.set(Resource::Descriptors, Limit::new(Size::Common(1000), Share::Demanded(0)));
        let account = Ledger::new(limits).open("x").unwrap().account;
        let [silent, new] = [1, 2].map(|id| Payer::new(account.clone(), User::Account(id)));
        let all = |payer| std::iter::from_fn(|| Place::new(payer).ok()).collect::<Vec<_>>();
        let mut places = all(&silent);
        assert_eq!(places.len(), 1 + 2);
        for place in &mut places {
            place.transfer(&silent, &new).unwrap();
        }
        assert!(Place::new(&new).is_err(), "it has all that its user may have");
        assert_eq!(all(&silent).len(), 2);
        assert_eq!(account.ledger().usage(Resource::Descriptors).used, 3);
    }

    struct Fake {
        user: User,
        has_session: bool,
    }

    impl Client for Fake {
        fn user(&self) -> User {
            self.user
        }

        fn has_session(&self) -> bool {
            self.has_session
        }

        fn is_departing(&self) -> bool {
            false
        }

        fn end(&self) {}

        fn wake(&self) {}

        fn give_place(&self, _: &Payer) -> Option<Place> {
            None
        }

        fn info(&self) -> ConnectionInfo {
            unreachable!("nobody looks at it")
        }
    }

    /// Which of these connections may make room for one of `newcomer`, in which order. In capitals: the
    /// device is open.
    fn replaced(connections: &str, newcomer: char) -> String {
        let user = |name: char| User::Account(name.to_ascii_lowercase().into());
        let fake = |name: char| Fake { user: user(name), has_session: name.is_uppercase() };
        let clients: Vec<(u64, Arc<dyn Client>)> =
            (0..).zip(connections.chars().map(|name| Arc::new(fake(name)) as _)).collect();
        let compared = Comparison::new(&clients, user(newcomer));
        let name = |client: &dyn Client| match client.user() {
            User::Account(name) => char::from_u32(name).unwrap(),
            User::Connection(_) => unreachable!("all have accounts"),
        };
        compared.in_place_of(&clients).into_iter().map(name).collect()
    }

    #[test]
    fn user_with_more_connections_than_another_takes_none_of_its() {
        assert_eq!(replaced("aab", 'a'), "aa");
        assert_eq!(replaced("aaab", 'b'), "aaab", "first of whom has most");
        assert_eq!(replaced("aab", 'b'), "baa", "its own, where both have as many then");
        assert_eq!(replaced("ab", 'c'), "ab", "the oldest, where each has one");
        assert_eq!(replaced("AAAb", 'a'), "", "it has others than those that are silent");
        assert_eq!(replaced("AAab", 'a'), "a");
        assert_eq!(replaced("AAab", 'b'), "ab");
        assert_eq!(replaced("", 'a'), "");
    }

    #[test]
    fn place_stays_where_the_other_user_may_not_have_it() {
        let mut limits = Limits::of_process(1);
        limits.set(Resource::Connections, Limit::new(Size::Common(100), Share::Demanded(0)));
        limits.set(Resource::Descriptors, Limit::new(Size::Common(2), Share::Demanded(0)));
        let account = Ledger::new(limits).open("x").unwrap().account;
        let [silent, new] = [1, 2].map(|id| Payer::new(account.clone(), User::Account(id)));
        let mut place = Place::new(&silent).unwrap();
        let _other = Place::new(&new).unwrap();
        let refused = place.transfer(&silent, &new).unwrap_err();
        assert_eq!(refused.resource, Resource::Descriptors);
        assert!(Place::new(&silent).is_err(), "it has its descriptors");
        // One that goes gives back what its own user paid.
        drop(place);
        assert!(Place::new(&new).is_err() && Place::new(&silent).is_ok());
    }
}
