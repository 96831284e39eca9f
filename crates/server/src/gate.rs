//! How many threads may be with one device at a time.
//!
//! A device that stalls holds up every thread that calls it. The gate lets only a few in, so that
//! the connections of one device, however many they are, cannot take all threads of the server;
//! the others wait their turn without one. The threads inside are charged to their clients' users, so that
//! no user takes them all with the devices that it has.
//!
//! No turn is lost: a device's share is one thread at least, so whoever is not let in waits for one that
//! is inside, and which looks after those who wait when it leaves.

use std::collections::VecDeque;
use std::sync::Arc;

use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::pool::{Interest, Source, Watch};

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
    queue: VecDeque<(Watch, Arc<dyn Source>, Interest)>,
}

/// The right to be with the device; dropping it gives it up.
pub(crate) struct Permit<'a> {
    gate: &'a Gate,
    charge: Option<Charge>,
}

impl Gate {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), crowded: AtomicBool::new(false) }
    }

    /// Lets the thread in if `payer` may have one more, or else puts the source that it wants to serve into
    /// the queue: it is watched for `interest` again as soon as there is room. The source must be ready for
    /// that then: a client that has not taken its replies may have nothing more to say until it has.
    pub(crate) fn enter(
        &self,
        watch: &Watch,
        source: Arc<dyn Source>,
        interest: Interest,
        payer: Option<&Payer>,
    ) -> Option<Permit<'_>> {
        let mut state = lock(&self.state);
        // With the lock held: whoever is inside gives its thread back before it leaves.
        let charge = match payer {
            _ if state.inside >= self.limit => None,
            None => Some(None),
            Some(payer) => payer.charge(Resource::Threads, 1).ok().map(Some),
        };
        let Some(charge) = charge else {
            state.queue.push_back((watch.clone(), source, interest));
            self.crowded.store(true, Ordering::Relaxed);
            return None;
        };
        state.inside += 1;
        Some(Permit { gate: self, charge })
    }

    /// Whether a thread may sleep inside for long, leaving enough room for others.
    pub(crate) fn has_room(&self) -> bool {
        lock(&self.state).inside * 2 <= self.limit
    }

    /// Whether others wait for the threads inside to leave.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    fn leave(&self) {
        let mut state = lock(&self.state);
        state.inside -= 1;
        let stopping = state.queue.front().is_some_and(|(watch, ..)| watch.pool().is_stopping());
        // At the end of the server nobody would come back for the rest.
        let room = if stopping { usize::MAX } else { self.limit.saturating_sub(state.inside) };
        let room = room.min(state.queue.len());
        let next: Vec<_> = state.queue.drain(..room).collect();
        self.crowded.store(!state.queue.is_empty(), Ordering::Relaxed);
        drop(state);
        for (watch, source, interest) in next {
            if let Err(error) = watch.park(source, interest) {
                tracing::error!(%error, "a connection cannot be watched any more");
                watch.forget();
            }
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        drop(self.charge.take());
        self.gate.leave();
    }
}
