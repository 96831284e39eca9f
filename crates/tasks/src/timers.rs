//! Clocks and timers.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use vfiod_sync::{Mutex, lock};

use crate::reactor::Reactor;

/// A clock that only a test moves.
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: Arc<Mutex<Time>>,
}

#[derive(Debug)]
struct Time {
    now: Instant,
    /// Those of the runtimes that it drives.
    timers: Vec<Weak<Timers>>,
}

impl ManualClock {
    /// A clock that stands still at some instant.
    pub fn new() -> Self {
        let time = Time { now: Instant::now(), timers: Vec::new() };
        Self { time: Arc::new(Mutex::new(time)) }
    }

    /// The clock's time.
    pub fn now(&self) -> Instant {
        lock(&self.time).now
    }

    /// Moves the clock forward and wakes the tasks whose time has come. They run when a
    /// worker or the caller of `run` polls them.
    pub fn advance(&self, by: Duration) {
        let timers = {
            let mut time = lock(&self.time);
            time.now += by;
            time.timers.clone()
        };
        timers.iter().filter_map(Weak::upgrade).for_each(|timers| timers.fire());
    }

    pub(crate) fn drives(&self, timers: &Arc<Timers>) {
        lock(&self.time).timers.push(Arc::downgrade(timers));
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
    fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::Manual(clock) => clock.now(),
        }
    }
}

/// The timers of a runtime.
#[derive(Debug)]
pub(crate) struct Timers {
    clock: Clock,
    reactor: Arc<Reactor>,
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
    pub(crate) fn new(clock: Clock, reactor: Arc<Reactor>) -> Self {
        Self { clock, reactor, pending: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Sets a timer, or replaces the waker of the one with this key.
    pub(crate) fn set(&self, deadline: Instant, key: &mut Option<u64>, waker: &Waker) {
        let mut pending = lock(&self.pending);
        let pending = &mut *pending;
        let key = *key.get_or_insert_with(|| {
            pending.next_key += 1;
            pending.next_key
        });
        pending.wakers.entry((deadline, key)).or_insert_with(|| waker.clone()).clone_from(waker);
        self.arm(pending);
    }

    pub(crate) fn remove(&self, deadline: Instant, key: u64) {
        let removed = lock(&self.pending).wakers.remove(&(deadline, key));
        // The last waker of a cancelled task may drop its future: not under the lock.
        drop(removed);
    }

    /// Wakes those whose time has come.
    pub(crate) fn fire(&self) {
        let now = self.now();
        let due = {
            let mut pending = lock(&self.pending);
            let later = pending.wakers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut pending.wakers, later);
            pending.armed = None;
            self.arm(&mut pending);
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
    fn arm(&self, pending: &mut Pending) {
        let Clock::System = self.clock else { return };
        let Some((&(first, _), _)) = pending.wakers.first_key_value() else { return };
        if pending.armed.is_none_or(|armed| first < armed) {
            pending.armed = Some(first);
            self.reactor.set_timer(first.saturating_duration_since(Instant::now()));
        }
    }
}
