//! Threads that wait for a future.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::kept::hand_over;
use crate::parker::Parker;
use crate::runtime::Runtime;
use crate::scheduler::Ran;
use crate::waiters::Waiters;

/// How long a thread blocks.
#[derive(Clone, Copy)]
enum Until {
    /// Until its future is ready.
    Ready,
    /// Until the runtime's clock shows this.
    Runtime(Instant),
    /// Until the system's clock shows this.
    System(Instant),
}

impl Until {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Ready => None,
            Self::Runtime(deadline) | Self::System(deadline) => Some(deadline),
        }
    }
}

impl Runtime {
    /// Blocks the calling thread until a future returns something, or until the runtime's clock
    /// shows `deadline`. Returns `None` then.
    ///
    /// If the runtime has no workers, the thread runs tasks meanwhile, so that it may wait for
    /// them. The caller must not hold a lock that a task needs.
    pub fn block_on<F: Future>(&self, deadline: Option<Instant>, future: F) -> Option<F::Output> {
        self.block(deadline.map_or(Until::Ready, Until::Runtime), future)
    }

    fn block<F: Future>(&self, until: Until, future: F) -> Option<F::Output> {
        hand_over();
        let scheduler = self.scheduler();
        let listed = scheduler.blocked.list(&scheduler.reactor);
        let waker = Waker::from(listed.thread.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut future = pin!(future);
        // A manual clock wakes the thread by a timer.
        let mut alarm = pin!(match until {
            Until::Runtime(deadline) if scheduler.timers.is_manual() => {
                Some(self.sleep_until(deadline))
            }
            _ => None,
        });
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Some(output);
            }
            let is_over = match until {
                Until::Ready => false,
                Until::Runtime(deadline) => self.now() >= deadline,
                Until::System(deadline) => Instant::now() >= deadline,
            };
            if is_over {
                return None;
            }
            let park_until = match alarm.as_mut().as_pin_mut() {
                Some(alarm) => match alarm.poll(cx) {
                    Poll::Ready(()) => return None,
                    Poll::Pending => None,
                },
                None => until.deadline(),
            };
            if !self.wait(&listed.thread.parker, park_until) {
                return None;
            }
        }
    }

    /// Waits until a parker is notified, or a little shorter. Returns whether there is time left.
    fn wait(&self, parker: &Parker, deadline: Option<Instant>) -> bool {
        let runtime = self.scheduler();
        if runtime.has_workers() {
            runtime.looks_no_more();
            return parker.park(deadline);
        }
        if runtime.run() != Ran::Nothing || runtime.is_polled() || !runtime.fall_asleep() {
            // What is polled tells nobody.
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

    /// As [`Runtime::wait_until`], but the deadline is one of the system's clock, also where the
    /// runtime has a clock of its own: for a wait that a client is to notice the end of.
    pub fn wait_until_system_time<T>(
        &self,
        deadline: Instant,
        waiters: &Waiters,
        condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        self.block(Until::System(deadline), waiters.wait_for(condition))
    }
}
