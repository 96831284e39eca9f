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

use crate::runtime::Runtime;
use crate::scheduler::Scheduler;

/// Looks for work that nobody tells of. Called by threads that run tasks, again and again, at times by two at
/// once: it must be quick, and must not wait.
pub trait Poll: Send + Sync {
    /// Looks once.
    fn poll(&self);
}

/// What a runtime polls, and how many may be polled.
#[derive(Default)]
pub(crate) struct Pollers {
    seats: Mutex<Seats>,
    polled: Mutex<Polled>,
}

#[derive(Debug, Default)]
struct Seats {
    last: u64,
    taken: usize,
    /// `None`: any number.
    most: Option<usize>,
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
    fn replace(&self, seat: u64, poller: Option<Arc<dyn Poll>>) {
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

/// As many are polled as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{most} are polled at most, and there are as many")]
pub struct TooManyPolled {
    /// How many may be.
    pub most: usize,
}

/// A place among what a runtime polls. It counts against how many may be, used or not. Dropping it gives it up.
#[derive(Debug)]
pub struct PollSeat {
    scheduler: Arc<Scheduler>,
    number: u64,
}

impl PollSeat {
    /// From now on this is polled, instead of what was polled before.
    pub fn start(&self, poller: Arc<dyn Poll>) {
        self.set(Some(poller));
    }

    /// Nothing is polled any more. It may still be called on another thread, for the last time.
    pub fn stop(&self) {
        self.set(None);
    }

    fn set(&self, poller: Option<Arc<dyn Poll>>) {
        self.scheduler.pollers.replace(self.number, poller);
        self.scheduler.polled_changed();
    }
}

impl Drop for PollSeat {
    fn drop(&mut self) {
        self.stop();
        lock(&self.scheduler.pollers.seats).taken -= 1;
    }
}

impl Runtime {
    /// Limits how many may be polled. Those that are stay.
    pub fn limit_polled(&self, most: usize) {
        lock(&self.scheduler().pollers.seats).most = Some(most);
    }

    /// A place among what is polled. While anything is, one worker does not sleep; without workers whoever
    /// calls [`Runtime::run`] polls, and [`Runtime::fd`] does not tell when to.
    ///
    /// # Errors
    /// There are as many as [`Runtime::limit_polled`] allows.
    pub fn poll_seat(&self) -> Result<PollSeat, TooManyPolled> {
        let scheduler = self.scheduler().clone();
        let mut seats = lock(&scheduler.pollers.seats);
        if let Some(most) = seats.most.filter(|most| seats.taken >= *most) {
            return Err(TooManyPolled { most });
        }
        seats.taken += 1;
        seats.last += 1;
        let number = seats.last;
        drop(seats);
        Ok(PollSeat { scheduler, number })
    }

    /// How many are polled now.
    pub fn polled(&self) -> usize {
        self.scheduler().pollers.count()
    }
}
