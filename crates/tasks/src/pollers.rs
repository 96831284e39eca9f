//! What is looked at again and again, because nobody tells when there is something to do: a page of device
//! memory that a client stores to.
//!
//! A worker that finds no task polls instead of sleeping, one worker at a time, until there is a task. A task
//! that it makes ready by that it runs itself: another worker would have to be woken first. Where another
//! thread makes one ready a worker is woken as always, so that there is one to poll while tasks run. Workers
//! that always find a task poll between two of them, now and then. So neither starves the other.

use std::fmt;
use std::sync::Arc;

use vfiod_sync::{Mutex, lock};

/// Looks for work that nobody tells of. Called by threads that run tasks, again and again, at times by two at
/// once: it must be quick, and must not wait.
pub trait Poll: Send + Sync {
    /// Looks once.
    fn poll(&self);
}

/// What a runtime polls, and how many may be polled.
#[derive(Default)]
pub(crate) struct Pollers {
    pub(crate) seats: Mutex<Seats>,
    polled: Mutex<Polled>,
}

/// How many places are taken.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    /// The number of the last one.
    pub(crate) last: u64,
    pub(crate) taken: usize,
    /// `None`: any number.
    pub(crate) most: Option<usize>,
}

/// By the numbers of seats. A thread polls what was there when it began.
type Polled = Arc<[(u64, Arc<dyn Poll>)]>;

impl Pollers {
    /// Looks at everything that is polled, once.
    pub(crate) fn poll(&self) {
        let polled = lock(&self.polled).clone();
        polled.iter().for_each(|(_, poller)| poller.poll());
    }

    /// How many are polled.
    pub(crate) fn count(&self) -> usize {
        lock(&self.polled).len()
    }

    /// Replaces what is polled for a seat.
    pub(crate) fn replace(&self, seat: u64, poller: Option<Arc<dyn Poll>>) {
        let mut polled = lock(&self.polled);
        let others = polled.iter().filter(|(other, _)| *other != seat).cloned();
        let new = others.chain(poller.map(|poller| (seat, poller))).collect();
        let old = std::mem::replace(&mut *polled, new);
        // What is dropped is dropped without the lock.
        drop(polled);
        drop(old);
    }

    /// Nothing is polled any more.
    pub(crate) fn clear(&self) {
        let old = std::mem::take(&mut *lock(&self.polled));
        drop(old);
    }
}

impl fmt::Debug for Pollers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Pollers");
        debug.field("seats", &lock(&self.seats)).field("polled", &self.count()).finish()
    }
}
