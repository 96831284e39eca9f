//! A place where one thread sleeps until it is notified.

use std::time::Instant;

use vfiod_sync::{Condvar, Mutex, lock, wait, wait_until};

use crate::reactor::Reactor;

#[derive(Debug)]
pub(crate) struct Parker {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    notified: bool,
    /// The thread sleeps where the runtime's events wake it as well.
    collects: bool,
    #[cfg(not(shuttle))]
    interrupt: Option<std::sync::Arc<std::os::fd::OwnedFd>>,
}

impl Parker {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new() }
    }

    /// Sleeps until notified; returns whether it was before the deadline.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> bool {
        let mut state = lock(&self.state);
        while !state.notified {
            state = match deadline {
                None => wait(&self.changed, &self.state, state, std::time::Duration::MAX),
                Some(deadline) => match wait_until(&self.changed, &self.state, state, deadline) {
                    Some(state) => state,
                    None => return false,
                },
            };
        }
        state.notified = false;
        true
    }
}

#[cfg(not(shuttle))]
mod system {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// How long a thread sleeps that cannot be interrupted, as no descriptor is left for that.
    const BLIND_SLEEP: Duration = Duration::from_millis(1);

    impl Parker {
        /// Sleeps until notified, or until there is something to collect from the reactor. Returns
        /// whether it was before the deadline.
        pub(crate) fn park_or_collect(&self, reactor: &Reactor, deadline: Option<Instant>) -> bool {
            let mut left =
                deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let interrupt = {
                let mut state = lock(&self.state);
                if std::mem::take(&mut state.notified) {
                    return true;
                }
                state.collects = true;
                if state.interrupt.is_none() {
                    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                    state.interrupt = eventfd(0, flags).ok().map(Arc::new);
                }
                state.interrupt.clone()
            };
            if interrupt.is_none() {
                left = Some(left.map_or(BLIND_SLEEP, |left| left.min(BLIND_SLEEP)));
            }
            reactor.sleep(interrupt.as_ref().map(|fd| fd.as_fd()), left);
            let mut state = lock(&self.state);
            state.collects = false;
            if std::mem::take(&mut state.notified)
                && let Some(interrupt) = &state.interrupt
            {
                let _ = rustix::io::read(interrupt, &mut [0; 8]);
            }
            true
        }

        pub(crate) fn unpark(&self, _reactor: &Reactor) {
            let mut state = lock(&self.state);
            if std::mem::replace(&mut state.notified, true) {
                return;
            }
            self.changed.notify_one();
            if state.collects
                && let Some(interrupt) = &state.interrupt
            {
                let _ = rustix::io::write(interrupt, &1u64.to_ne_bytes());
            }
        }
    }
}

#[cfg(shuttle)]
impl Parker {
    /// Sleeps until notified, or until there is something to collect from the reactor. With a
    /// deadline it lets the others run once instead. Returns whether it was before the deadline.
    pub(crate) fn park_or_collect(&self, reactor: &Reactor, deadline: Option<Instant>) -> bool {
        if deadline.is_some() {
            vfiod_sync::thread::yield_now();
            return std::mem::take(&mut lock(&self.state).notified);
        }
        lock(&self.state).collects = true;
        reactor.sleep_unless(|| lock(&self.state).notified);
        let mut state = lock(&self.state);
        (state.collects, state.notified) = (false, false);
        true
    }

    pub(crate) fn unpark(&self, reactor: &Reactor) {
        let mut state = lock(&self.state);
        state.notified = true;
        self.changed.notify_one();
        let collects = state.collects;
        drop(state);
        if collects {
            reactor.interrupt();
        }
    }
}
