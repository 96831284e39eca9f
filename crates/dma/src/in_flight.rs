//! How many asynchronous accesses and requests a device has in flight, and waiting until there are none.

use std::task::{Poll, Waker};
use std::time::Instant;

use vfiod_sync::atomic::{AtomicUsize, Ordering};
use vfiod_sync::{Arc, Condvar, Mutex, lock, wait_until};

/// The holds and the requests by message of one attachment that have not ended.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: AtomicUsize,
    waiters: Mutex<Waiters>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Waiters {
    wakers: Vec<Waker>,
    /// Threads in [`InFlight::wait`].
    threads: usize,
}

/// One access or request in flight, until it is dropped.
#[derive(Debug)]
pub struct Flight {
    of: Arc<InFlight>,
}

/// Counts requests of a device to something else than memory, such as a disk, that are to have ended
/// before the device is idle: otherwise what one user has begun could end amid what the next one does.
/// Gives no access to memory.
#[derive(Clone, Debug)]
pub struct Flights {
    of: Arc<InFlight>,
}

impl Flights {
    pub(crate) fn new(of: &Arc<InFlight>) -> Self {
        Self { of: of.clone() }
    }

    /// Counts a request, until what is returned is dropped.
    pub fn begin(&self) -> Flight {
        self.of.begin()
    }
}

impl InFlight {
    /// Counts an access that begins now.
    pub(crate) fn begin(self: &Arc<Self>) -> Flight {
        self.count.fetch_add(1, Ordering::SeqCst);
        Flight { of: self.clone() }
    }

    /// How many accesses are in flight.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Blocks until none is in flight (`true`), or until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        let mut waiters = lock(&self.waiters);
        waiters.threads += 1;
        while self.count() > 0 {
            waiters = match wait_until(&self.ended, &self.waiters, waiters, deadline) {
                Some(woken) => woken,
                None => {
                    waiters = lock(&self.waiters);
                    break;
                }
            };
        }
        waiters.threads -= 1;
        self.count() == 0
    }

    /// Ready if none is in flight; else `waker` is woken when the last one ends.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<()> {
        // Looked at with the lock held: the last one takes it after it has counted itself out.
        let mut waiters = lock(&self.waiters);
        if self.count() == 0 {
            return Poll::Ready(());
        }
        if !waiters.wakers.iter().any(|known| known.will_wake(waker)) {
            waiters.wakers.push(waker.clone());
        }
        Poll::Pending
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.of.count.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let mut waiters = lock(&self.of.waiters);
        let wakers = std::mem::take(&mut waiters.wakers);
        let threads = waiters.threads;
        drop(waiters);
        // A system call, so only if an unmap waits.
        if threads > 0 {
            self.of.ended.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}
