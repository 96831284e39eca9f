//! The reactor of model checks: the part of it that wakes sleeping threads. It has no descriptors,
//! and time does not pass.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vfiod_sync::{Condvar, Mutex, lock, wait};

use crate::pollers::Poll;

#[derive(Debug, Default)]
pub(crate) struct Reactor {
    events: Mutex<Events>,
    changed: Condvar,
}

#[derive(Default)]
struct Events {
    /// There is a call of [`Reactor::wake`] that nobody has collected.
    woken: bool,
    /// What takes completions, and whether there is a call of [`Reactor::signal`] that nobody has collected.
    takers: Vec<(u64, Arc<dyn Poll>, bool)>,
    last_key: u64,
}

impl Events {
    fn has_any(&self) -> bool {
        self.woken || self.takers.iter().any(|(_, _, signalled)| *signalled)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("woken", &self.woken).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Collected {
    pub(crate) woken: bool,
    pub(crate) timer: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Never,
    Event,
}

impl Reactor {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Self::default())
    }

    pub(crate) fn wake(&self) {
        lock(&self.events).woken = true;
        self.changed.notify_all();
    }

    pub(crate) fn set_timer(&self, _time: Duration) {}

    pub(crate) fn add_taker(&self, taker: Arc<dyn Poll>) -> u64 {
        let mut events = lock(&self.events);
        events.last_key += 1;
        let key = events.last_key;
        events.takers.push((key, taker, false));
        key
    }

    /// Makes the descriptor of a taker readable.
    pub(crate) fn signal(&self, key: u64) {
        let mut events = lock(&self.events);
        events.takers.iter_mut().filter(|taker| taker.0 == key).for_each(|taker| taker.2 = true);
        drop(events);
        self.changed.notify_all();
    }

    pub(crate) fn remove(&self, key: u64) {
        lock(&self.events).takers.retain(|taker| taker.0 != key);
    }

    pub(crate) fn collect(&self, how: Wait, first: impl FnOnce(Collected)) {
        let mut events = lock(&self.events);
        while how == Wait::Event && !events.has_any() {
            events = wait(&self.changed, &self.events, events, Duration::MAX);
        }
        let collected = Collected { woken: std::mem::take(&mut events.woken), timer: false };
        let takers = events.takers.iter_mut();
        let signalled = takers
            .filter_map(|(_, taker, signalled)| std::mem::take(signalled).then(|| taker.clone()));
        let takers: Vec<_> = signalled.collect();
        drop(events);
        first(collected);
        takers.iter().for_each(|taker| taker.poll());
    }

    /// Sleeps until there is something to collect or `other` holds. Whoever makes it hold calls
    /// [`Reactor::interrupt`].
    pub(crate) fn sleep_unless(&self, other: impl Fn() -> bool) {
        let mut events = lock(&self.events);
        while !events.has_any() && !other() {
            events = wait(&self.changed, &self.events, events, Duration::MAX);
        }
    }

    /// Makes all sleepers look again.
    pub(crate) fn interrupt(&self) {
        let events = lock(&self.events);
        self.changed.notify_all();
        drop(events);
    }
}
