//! `epoll` as model checks need it: descriptors are numbers that a scenario makes ready.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use vfiod_sync::{Condvar, Mutex, lock, thread, wait};

pub(crate) use crate::interest::Interest;

impl Interest {
    fn wants(self, ready: Self) -> bool {
        // A scenario's sources never hang up.
        !matches!(self, Self::HangUp | Self::Closed)
            && (self == Self::Both || ready == Self::Both || self == ready)
    }
}

/// Sources that are watched for one event each.
pub(crate) struct Poller {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    sources: HashMap<u64, Watched>,
    events: VecDeque<u64>,
    woken: bool,
}

#[derive(Default)]
struct Watched {
    interest: Option<Interest>,
    ready: Option<Interest>,
}

/// The key of the event that [`Poller::wake_all`] causes.
pub(crate) const WAKE_KEY: u64 = 0;

impl State {
    /// An event, if the source is ready for what it is watched for.
    fn look(&mut self, key: u64) {
        let Some(watched) = self.sources.get_mut(&key) else { return };
        if let (Some(interest), Some(ready)) = (watched.interest, watched.ready)
            && interest.wants(ready)
        {
            watched.interest = None;
            self.events.push_back(key);
        }
    }
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { state: Mutex::default(), changed: Condvar::new() })
    }

    /// Waits for an event. A wait with a timeout may end without one: time does not pass here.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Option<u64>, Errno> {
        let mut state = lock(&self.state);
        loop {
            if state.woken {
                return Ok(Some(WAKE_KEY));
            }
            if let Some(key) = state.events.pop_front() {
                return Ok(Some(key));
            }
            if timeout.is_some() {
                drop(state);
                thread::yield_now();
                return Ok(lock(&self.state).events.pop_front());
            }
            state = wait(&self.changed, &self.state, state, Duration::MAX);
        }
    }

    pub(crate) fn wake_all(&self) {
        lock(&self.state).woken = true;
        self.changed.notify_all();
    }

    fn watch(&self, key: u64, interest: Interest) {
        let mut state = lock(&self.state);
        // As the kernel does: an event that nobody has taken yet is gone if the source is not ready
        // for what it is watched for now.
        state.events.retain(|waiting| *waiting != key);
        state.sources.entry(key).or_default().interest = Some(interest);
        state.look(key);
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn add(
        &self,
        _fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> Result<(), Errno> {
        self.watch(key, interest);
        Ok(())
    }

    pub(crate) fn modify(
        &self,
        _fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> Result<(), Errno> {
        if !lock(&self.state).sources.contains_key(&key) {
            return Err(Errno::NOENT);
        }
        self.watch(key, interest);
        Ok(())
    }

    pub(crate) fn delete(&self, _fd: BorrowedFd<'_>, key: u64) {
        lock(&self.state).sources.remove(&key);
    }

    /// The scenario: a source is ready from now on, or not any more.
    #[cfg(test)]
    pub(crate) fn set_ready(&self, key: u64, ready: Option<Interest>) {
        let mut state = lock(&self.state);
        state.sources.entry(key).or_default().ready = ready;
        state.look(key);
        drop(state);
        self.changed.notify_one();
    }
}
