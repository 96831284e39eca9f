//! How many threads may be with one device at a time.
//!
//! A device that stalls holds up every thread that calls it. The gate lets only a few in, so that
//! the connections of one device, however many they are, cannot take all threads of the server;
//! the others wait their turn without one. The threads inside are charged to their clients' users, so that
//! no user takes them all with the devices that it has.
//!
//! Turns are taken in the order of arrival. A thread that has served a source serves the one that has
//! waited longest next, inside the gate, so that nobody who comes meanwhile is in front of that. As long
//! as others wait, a source is served for a bounded time and waits behind them then.
//!
//! No turn is lost: a device's share is one thread at least, so whoever is not let in waits for one that
//! is inside, and which looks after those who wait when it leaves.

use std::collections::VecDeque;
use std::sync::Arc;

use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::pool::{Watch, Worker};

/// Lets threads in to a device.
pub(crate) struct Gate {
    limit: usize,
    state: Mutex<State>,
    /// Whether anybody is queueing.
    crowded: AtomicBool,
}

#[derive(Default)]
struct State {
    inside: usize,
    queue: VecDeque<(Watch, Arc<dyn Visitor>)>,
}

/// A source that is served inside a gate.
pub(crate) trait Visitor: Send + Sync {
    /// Who pays for the thread that serves it.
    fn payer(&self) -> Option<&Payer>;
    /// Serves the source and watches it again, or returns it to have it served once more, behind those
    /// who wait. It may be ready for anything: how long it has waited is not known.
    fn visit(self: Arc<Self>, watch: &Watch, worker: &mut Worker) -> Option<Arc<dyn Visitor>>;
}

/// The right of a thread to be with the device; dropping it gives it up.
struct Permit {
    gate: Arc<Gate>,
    charge: Option<Charge>,
}

/// A source that may be served now.
pub(crate) struct Turn {
    permit: Permit,
    watch: Watch,
    visitor: Arc<dyn Visitor>,
}

impl Turn {
    /// Serves the source, and then those that wait, for as long as the thread may stay.
    pub(crate) fn take(self, worker: &mut Worker) {
        let mut next = Some(self);
        while let Some(Self { permit, watch, visitor }) = next {
            // A source that ends here releases its file as long as the device has this thread.
            let again = visitor.visit(&watch, worker);
            next = permit.pass_on(again.map(|visitor| (watch, visitor)));
        }
    }
}

impl Gate {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), crowded: AtomicBool::new(false) })
    }

    /// Has `visitor` served, behind those who wait: the calling thread takes the turn that is returned.
    /// Without one the threads inside serve all who wait.
    pub(crate) fn enter(
        self: &Arc<Self>,
        watch: &Watch,
        visitor: Arc<dyn Visitor>,
    ) -> Option<Turn> {
        let mut state = lock(&self.state);
        state.queue.push_back((watch.clone(), visitor));
        self.next(&mut state)
    }

    /// Lets a thread in with the first one in the queue that can pay for it.
    fn next(self: &Arc<Self>, state: &mut State) -> Option<Turn> {
        let mut turn = None;
        if state.inside < self.limit {
            // With the lock held: whoever is inside gives its thread back before it leaves.
            let paid = state.queue.iter().enumerate().find_map(|(place, (_, visitor))| {
                let charge = match visitor.payer() {
                    Some(payer) => Some(payer.charge(Resource::Threads, 1).ok()?),
                    None => None,
                };
                Some((place, charge))
            });
            turn = paid.and_then(|(place, charge)| {
                let (watch, visitor) = state.queue.remove(place)?;
                state.inside += 1;
                Some(Turn { permit: Permit { gate: self.clone(), charge }, watch, visitor })
            });
        }
        self.crowded.store(!state.queue.is_empty(), Ordering::Relaxed);
        turn
    }

    /// Whether a thread may sleep inside for long, leaving enough room for others.
    pub(crate) fn has_room(&self) -> bool {
        lock(&self.state).inside * 2 <= self.limit
    }

    /// Whether others wait for the threads inside to leave.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }
}

impl Permit {
    /// Gives up the permit for that of the first one who waits. `again` waits behind all others.
    fn pass_on(self, again: Option<(Watch, Arc<dyn Visitor>)>) -> Option<Turn> {
        let gate = self.gate.clone();
        drop(self);
        let mut state = lock(&gate.state);
        state.queue.extend(again);
        gate.next(&mut state)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Before the place: whoever gets that may need the share of the device, too.
        drop(self.charge.take());
        lock(&self.gate.state).inside -= 1;
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use vfiod_quota::{Ledger, Limit, Limits, Share, Size, User};

    use super::*;
    use crate::pool::Pool;

    /// A source that only notes that it was served.
    struct Noted {
        name: char,
        payer: Option<Payer>,
        /// How often it can go on at once.
        more: AtomicUsize,
        notes: Arc<Mutex<String>>,
    }

    impl Visitor for Noted {
        fn payer(&self) -> Option<&Payer> {
            self.payer.as_ref()
        }

        fn visit(self: Arc<Self>, _: &Watch, _: &mut Worker) -> Option<Arc<dyn Visitor>> {
            lock(&self.notes).push(self.name);
            let take = |more: usize| more.checked_sub(1);
            let more = self.more.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            more.is_ok().then_some(self)
        }
    }

    /// A gate, and sources that come to it.
    struct Rig {
        gate: Arc<Gate>,
        pool: Pool,
        notes: Arc<Mutex<String>>,
    }

    impl Rig {
        fn new(limit: usize) -> Self {
            let pool = Pool::embedded().unwrap();
            Self { gate: Gate::new(limit), pool, notes: Arc::default() }
        }

        /// A source comes that can go on at once so many times.
        fn enter(&self, name: char, more: usize, payer: Option<&Payer>) -> Option<Turn> {
            let more = AtomicUsize::new(more);
            let (payer, notes) = (payer.cloned(), self.notes.clone());
            let noted = Arc::new(Noted { name, payer, more, notes });
            self.gate.enter(&self.pool.reserve(), noted)
        }

        /// In which order sources were served.
        fn served(&self) -> String {
            lock(&self.notes).clone()
        }
    }

    #[test]
    fn sources_are_served_in_the_order_of_arrival() {
        let rig = Rig::new(1);
        let first = rig.enter('a', 0, None).expect("there is room");
        assert!(rig.enter('b', 0, None).is_none());
        assert!(rig.enter('c', 0, None).is_none());
        assert!(rig.gate.is_crowded());
        first.take(&mut Worker::default());
        assert_eq!(rig.served(), "abc");
        assert!(!rig.gate.is_crowded());
        rig.enter('d', 0, None).expect("all have left").take(&mut Worker::default());
        assert_eq!(rig.served(), "abcd");
    }

    #[test]
    fn source_that_can_go_on_waits_behind_the_others() {
        let rig = Rig::new(1);
        let busy = rig.enter('a', 3, None).expect("there is room");
        assert!(rig.enter('b', 1, None).is_none());
        assert!(rig.enter('c', 0, None).is_none());
        busy.take(&mut Worker::default());
        assert_eq!(rig.served(), "abcabaa");
    }

    #[test]
    fn source_whose_user_cannot_pay_holds_up_no_other() {
        let mut limits = Limits::of_process(3);
        limits.set(Resource::Threads, Limit::new(Size::Common(2), Share::Demanded(1)));
        let account = Ledger::new(limits).open("x").expect("its share").account;
        let payer = |user| Payer::new(account.clone(), User::Account(user));
        let (mine, others) = (payer(1), payer(2));
        let rig = Rig::new(4);
        // The share of the device, and what the user may have of the common part.
        let [first, second] =
            ['a', 'b'].map(|name| rig.enter(name, 0, Some(&mine)).expect("can pay"));
        assert!(rig.enter('c', 0, Some(&mine)).is_none());
        let other = rig.enter('d', 0, Some(&others)).expect("can pay");
        other.take(&mut Worker::default());
        assert_eq!(rig.served(), "d");
        // Whoever comes next serves the one that has waited longest, if that can pay by now.
        drop(first);
        let next = rig.enter('e', 0, Some(&mine)).expect("can pay");
        assert_eq!(rig.served(), "d");
        second.take(&mut Worker::default());
        assert_eq!(rig.served(), "dbe");
        next.take(&mut Worker::default());
        assert_eq!(rig.served(), "dbec");
    }
}
