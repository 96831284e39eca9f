//! Places among what a runtime polls, and how many there may be.

use std::sync::Arc;

use vfiod_sync::lock;

use crate::pollers::Poll;
use crate::runtime::Runtime;
use crate::scheduler::Scheduler;

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
        self.scheduler.pollers.polled.replace(self.number, poller);
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
        self.scheduler().pollers.polled.count()
    }
}
