//! Time: clocks, timers, and futures that wait for a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use vfiod_sync::{Mutex, lock};

use crate::coop;
use crate::reactor::Reactor;
use crate::runtime::{Inner, Runtime};

/// A clock that only a test moves.
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: Arc<Mutex<Time>>,
}

#[derive(Debug)]
struct Time {
    now: Instant,
    runtimes: Vec<Weak<Inner>>,
}

impl ManualClock {
    /// A clock that stands still at some instant.
    pub fn new() -> Self {
        let time = Time { now: Instant::now(), runtimes: Vec::new() };
        Self { time: Arc::new(Mutex::new(time)) }
    }

    /// The clock's time.
    pub fn now(&self) -> Instant {
        lock(&self.time).now
    }

    /// Moves the clock forward and wakes the tasks whose time has come. They run when somebody
    /// runs them.
    pub fn advance(&self, by: Duration) {
        let (now, runtimes) = {
            let mut time = lock(&self.time);
            time.now += by;
            (time.now, time.runtimes.clone())
        };
        for runtime in runtimes.iter().filter_map(Weak::upgrade) {
            runtime.timers.fire(now, &runtime.reactor);
        }
    }

    pub(crate) fn drives(&self, runtime: &Arc<Inner>) {
        lock(&self.time).runtimes.push(Arc::downgrade(runtime));
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a runtime has its time from.
#[derive(Debug)]
pub(crate) enum Clock {
    System,
    Manual(ManualClock),
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::Manual(clock) => clock.now(),
        }
    }
}

/// The timers of a runtime.
#[derive(Debug)]
pub(crate) struct Timers {
    pub(crate) clock: Clock,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    next_key: u64,
    /// The key tells timers of the same instant apart.
    wakers: BTreeMap<(Instant, u64), Waker>,
    /// When the reactor's timer expires. It is set again only for an earlier one, so it may
    /// expire for a timer that is not there any more.
    armed: Option<Instant>,
}

impl Timers {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, pending: Mutex::default() }
    }

    /// Sets a timer, or replaces the waker of the one with this key.
    fn set(&self, deadline: Instant, key: &mut Option<u64>, waker: &Waker, reactor: &Reactor) {
        let mut pending = lock(&self.pending);
        let pending = &mut *pending;
        let key = *key.get_or_insert_with(|| {
            pending.next_key += 1;
            pending.next_key
        });
        pending.wakers.entry((deadline, key)).or_insert_with(|| waker.clone()).clone_from(waker);
        self.arm(pending, reactor);
    }

    fn remove(&self, deadline: Instant, key: u64) {
        let removed = lock(&self.pending).wakers.remove(&(deadline, key));
        // The last waker of a cancelled task may drop its future: not under the lock.
        drop(removed);
    }

    /// Wakes those whose time has come.
    pub(crate) fn fire(&self, now: Instant, reactor: &Reactor) {
        let due = {
            let mut pending = lock(&self.pending);
            let later = pending.wakers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut pending.wakers, later);
            pending.armed = None;
            self.arm(&mut pending, reactor);
            due
        };
        due.into_values().for_each(Waker::wake);
    }

    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.clock, Clock::Manual(_))
    }

    /// Forgets all timers.
    pub(crate) fn clear(&self) {
        let wakers = std::mem::take(&mut lock(&self.pending).wakers);
        drop(wakers);
    }

    /// Sets the reactor's timer if there is an earlier one than it was set for.
    fn arm(&self, pending: &mut Pending, reactor: &Reactor) {
        let Clock::System = self.clock else { return };
        let Some((&(first, _), _)) = pending.wakers.first_key_value() else { return };
        if pending.armed.is_none_or(|armed| first < armed) {
            pending.armed = Some(first);
            reactor.set_timer(first.saturating_duration_since(Instant::now()));
        }
    }
}

/// The future of [`Runtime::sleep`] and [`Runtime::sleep_until`].
#[must_use = "a future does nothing unless it is awaited"]
#[derive(Debug)]
pub struct Sleep {
    runtime: Arc<Inner>,
    deadline: Instant,
    key: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if coop::is_spent(cx) {
            return Poll::Pending;
        }
        let this = &mut *self;
        let Inner { timers, reactor, .. } = &*this.runtime;
        if timers.clock.now() >= this.deadline {
            return Poll::Ready(());
        }
        timers.set(this.deadline, &mut this.key, cx.waker(), reactor);
        // A manual clock may have been moved in between, and found no timer.
        if timers.clock.now() >= this.deadline { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.runtime.timers.remove(self.deadline, key);
        }
    }
}

/// The time of a [`Runtime::timeout`] has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

pin_project_lite::pin_project! {
    /// The future of [`Runtime::timeout`].
    #[must_use = "a future does nothing unless it is awaited"]
    #[derive(Debug)]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(value) = this.future.poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

impl Runtime {
    /// The time of the runtime's clock.
    pub fn now(&self) -> Instant {
        self.inner().timers.clock.now()
    }

    /// Waits for a time.
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.sleep_until(self.now() + time)
    }

    /// Waits until the runtime's clock shows at least `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { runtime: self.inner().clone(), deadline, key: None }
    }

    /// Waits for a future, for a limited time. The future is dropped with what is returned.
    pub fn timeout<F: Future>(&self, time: Duration, future: F) -> Timeout<F> {
        Timeout { future, sleep: self.sleep(time) }
    }
}
