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
    pub(crate) polled: Polled,
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

/// What is looked at, each under a number. A thread looks at what was there when it began.
#[derive(Default)]
pub(crate) struct Polled {
    list: Mutex<List>,
}

type List = Arc<[(u64, Arc<dyn Poll>)]>;

impl Polled {
    /// Looks at everything, once.
    pub(crate) fn poll(&self) {
        let list = lock(&self.list).clone();
        list.iter().for_each(|(_, poller)| poller.poll());
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.list).len()
    }

    /// Replaces what is looked at under a number.
    pub(crate) fn replace(&self, number: u64, poller: Option<Arc<dyn Poll>>) {
        let mut list = lock(&self.list);
        let others = list.iter().filter(|(other, _)| *other != number).cloned();
        let new = others.chain(poller.map(|poller| (number, poller))).collect();
        let old = std::mem::replace(&mut *list, new);
        // What is dropped is dropped without the lock.
        drop(list);
        drop(old);
    }

    /// Nothing is looked at any more.
    pub(crate) fn clear(&self) {
        let old = std::mem::take(&mut *lock(&self.list));
        drop(old);
    }
}

impl fmt::Debug for Pollers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Pollers");
        debug.field("seats", &lock(&self.seats)).field("polled", &self.polled.count()).finish()
    }
}
