//! The reactor of model checks: the part of it that wakes sleeping threads. It has no descriptors,
//! and time does not pass.

use std::time::Duration;

use vfiod_sync::{Condvar, Mutex, lock, wait};

#[derive(Debug, Default)]
pub(crate) struct Reactor {
    /// There is a call of [`Reactor::wake`] that nobody has collected.
    woken: Mutex<bool>,
    changed: Condvar,
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
        *lock(&self.woken) = true;
        self.changed.notify_all();
    }

    pub(crate) fn set_timer(&self, _time: Duration) {}

    pub(crate) fn collect(&self, how: Wait, first: impl FnOnce(Collected)) {
        let mut woken = lock(&self.woken);
        while how == Wait::Event && !*woken {
            woken = wait(&self.changed, &self.woken, woken, Duration::MAX);
        }
        let collected = Collected { woken: std::mem::take(&mut *woken), timer: false };
        drop(woken);
        first(collected);
    }

    /// Sleeps until there is something to collect or `other` holds. Whoever makes it hold calls
    /// [`Reactor::interrupt`].
    pub(crate) fn sleep_unless(&self, other: impl Fn() -> bool) {
        let mut woken = lock(&self.woken);
        while !*woken && !other() {
            woken = wait(&self.changed, &self.woken, woken, Duration::MAX);
        }
    }

    /// Makes all sleepers look again.
    pub(crate) fn interrupt(&self) {
        let woken = lock(&self.woken);
        self.changed.notify_all();
        drop(woken);
    }
}
