//! Threads that wait for a future.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use vfiod_sync::{Mutex, lock};

use crate::parker::Parker;
use crate::runtime::{Inner, Ran, Runtime};
use crate::waiters::Waiters;

/// The threads that wait for a future of this runtime.
#[derive(Default)]
pub(crate) struct Blocked {
    threads: Mutex<Vec<Arc<Unblock>>>,
}

impl fmt::Debug for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocked").field(&lock(&self.threads).len()).finish()
    }
}

impl Blocked {
    /// Makes all of them look again who runs tasks.
    pub(crate) fn wake_all(&self) {
        let threads = lock(&self.threads).clone();
        threads.iter().for_each(|thread| thread.wake_by_ref());
    }
}

/// Wakes a thread that waits.
struct Unblock {
    runtime: Arc<Inner>,
    parker: Parker,
}

impl Wake for Unblock {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.parker.unpark(&self.runtime.reactor);
    }
}

/// Takes a thread out of the list when dropped.
struct Listed<'a>(&'a Arc<Unblock>);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut threads = lock(&self.0.runtime.blocked.threads);
        threads.retain(|thread| !Arc::ptr_eq(thread, self.0));
    }
}

impl Runtime {
    /// Blocks the calling thread until a future returns something, or until the runtime's clock
    /// shows `deadline`. Returns `None` then.
    ///
    /// If the runtime has no workers, the thread runs tasks meanwhile, so that it may wait for
    /// them. The caller must not hold a lock that a task needs.
    pub fn block_on<F: Future>(&self, deadline: Option<Instant>, future: F) -> Option<F::Output> {
        let parker = Parker::new();
        let unblock = Arc::new(Unblock { runtime: self.inner().clone(), parker });
        lock(&self.inner().blocked.threads).push(unblock.clone());
        let _listed = Listed(&unblock);
        let waker = Waker::from(unblock.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut future = pin!(future);
        // A manual clock wakes the thread by a timer.
        let mut alarm = pin!(deadline.map(|deadline| self.sleep_until(deadline)));
        let is_manual = self.inner().timers.is_manual();
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Some(output);
            }
            if deadline.is_some_and(|deadline| self.now() >= deadline) {
                return None;
            }
            let until = if is_manual {
                if let Some(alarm) = alarm.as_mut().as_pin_mut()
                    && alarm.poll(cx).is_ready()
                {
                    return None;
                }
                None
            } else {
                deadline
            };
            if !self.wait(&unblock.parker, until) {
                return None;
            }
        }
    }

    /// Waits until a parker is notified, or a little shorter. Returns whether there is time left.
    fn wait(&self, parker: &Parker, deadline: Option<Instant>) -> bool {
        let runtime = self.inner();
        if runtime.has_workers() {
            return parker.park(deadline);
        }
        if runtime.run() != Ran::Nothing || !runtime.fall_asleep() {
            return true;
        }
        let is_left = parker.park_or_collect(&runtime.reactor, deadline);
        runtime.wake_up();
        is_left
    }

    /// Blocks the calling thread until `condition` returns something, or until the runtime's
    /// clock shows `deadline`. It is asked again whenever `waiters` are woken. Otherwise as
    /// [`Runtime::block_on`].
    pub fn wait_until<T>(
        &self,
        deadline: Option<Instant>,
        waiters: &Waiters,
        condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        self.block_on(deadline, waiters.wait_for(condition))
    }
}
