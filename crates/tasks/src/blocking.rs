//! Threads that wait for a future.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::parker::Parker;
use crate::runtime::Runtime;
use crate::scheduler::Ran;
use crate::waiters::Waiters;

impl Runtime {
    /// Blocks the calling thread until a future returns something, or until the runtime's clock
    /// shows `deadline`. Returns `None` then.
    ///
    /// If the runtime has no workers, the thread runs tasks meanwhile, so that it may wait for
    /// them. The caller must not hold a lock that a task needs.
    pub fn block_on<F: Future>(&self, deadline: Option<Instant>, future: F) -> Option<F::Output> {
        let scheduler = self.scheduler();
        let listed = scheduler.blocked.list(&scheduler.reactor);
        let waker = Waker::from(listed.thread.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut future = pin!(future);
        // A manual clock wakes the thread by a timer.
        let mut alarm = pin!(deadline.map(|deadline| self.sleep_until(deadline)));
        let is_manual = scheduler.timers.is_manual();
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
            if !self.wait(&listed.thread.parker, until) {
                return None;
            }
        }
    }

    /// Waits until a parker is notified, or a little shorter. Returns whether there is time left.
    fn wait(&self, parker: &Parker, deadline: Option<Instant>) -> bool {
        let runtime = self.scheduler();
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
