//! What threads of a runtime sleep in: `epoll`, with an eventfd that wakes a sleeper, a timer,
//! and the descriptors that tasks wait for.
//!
//! All of them are edge-triggered. So each event is seen by one thread only, nothing has to be
//! read to silence it, and the `epoll` descriptor is readable exactly while there is an event
//! that nobody has collected.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use vfiod_sync::{Mutex, lock};

use crate::pollers::Poll;
use crate::source::Source;

/// Events collected at once.
const BATCH: usize = 64;

/// Keys of the reactor's own descriptors; those of tasks are larger.
const WAKE: u64 = 0;
const TIMER: u64 = 1;

#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: OwnedFd,
    /// Only written to.
    wake: OwnedFd,
    timer: OwnedFd,
    sources: Mutex<Sources>,
}

#[derive(Debug, Default)]
struct Sources {
    /// A key is never used twice: an event that was under way when its source was removed finds
    /// nothing.
    last_key: u64,
    by_key: HashMap<u64, Watched>,
}

/// What a descriptor's event is for.
#[derive(Clone)]
enum Watched {
    /// Tasks that wait.
    Source(Arc<Source>),
    /// What takes completions, and its descriptor.
    Taker(Arc<dyn AsFd + Send + Sync>, Arc<dyn Poll>),
}

impl Watched {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Source(source) => source.fd(),
            Self::Taker(fd, _) => fd.as_fd(),
        }
    }

    fn changed(&self, flags: EventFlags) {
        match self {
            Self::Source(source) => source.changed(flags),
            Self::Taker(_, taker) => taker.poll(),
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fd().fmt(f)
    }
}

/// What [`Reactor::collect`] found, besides descriptors of tasks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Collected {
    /// The call of [`Reactor::wake`] was for whoever sees this.
    pub(crate) woken: bool,
    /// The timer has expired.
    pub(crate) timer: bool,
}

impl Reactor {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), flags)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), flags)?;
        let sources = Sources { last_key: TIMER, by_key: HashMap::new() };
        Ok(Self { epoll, wake, timer, sources: Mutex::new(sources) })
    }

    /// Readable while there is something to collect.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Wakes one thread that sleeps in [`Reactor::collect`], or makes the next one not sleep.
    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, after 2^64 calls.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Sets the timer, which had perhaps been set before.
    pub(crate) fn set_timer(&self, time: Duration) {
        // A zero would stop the timer.
        let time = time.max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(time).unwrap_or(FOREVER);
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Itimerspec { it_interval, it_value };
        // Fails only for values that are out of range.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value);
    }

    /// Collects what has happened; if nothing has, it waits for it if asked to. May return early.
    /// Calls `first` with what it found, then wakes the tasks whose descriptors have changed and has completions
    /// taken.
    pub(crate) fn collect(&self, wait: Wait, first: impl FnOnce(Collected)) {
        let mut collected = Collected::default();
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; BATCH];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = match wait {
            Wait::Never => Some(&zero),
            Wait::Event => None,
        };
        // An error is a signal: as if nothing had happened.
        let events = match epoll::wait(&self.epoll, &mut events[..], timeout) {
            Ok((events, _)) => events,
            Err(_) => &mut [],
        };
        for event in &*events {
            match event.data.u64() {
                WAKE => collected.woken = true,
                TIMER => collected.timer = true,
                _ => {}
            }
        }
        first(collected);
        for event in events.iter().filter(|event| event.data.u64() > TIMER) {
            let source = lock(&self.sources).by_key.get(&event.data.u64()).cloned();
            if let Some(source) = source {
                source.changed(event.flags);
            }
        }
    }

    /// Watches a descriptor and returns its key.
    ///
    /// # Errors
    /// Those of `epoll_ctl`: `EPERM` if the file cannot be waited for, `EEXIST` if the descriptor
    /// is watched already, `ENOSPC` over the user's limit.
    pub(crate) fn add(&self, source: Arc<Source>) -> rustix::io::Result<u64> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        self.watch(Watched::Source(source), flags)
    }

    /// Calls `taker` whenever a descriptor becomes readable, and returns the key of that.
    ///
    /// # Errors
    /// As [`Reactor::add`].
    pub(crate) fn add_taker(
        &self,
        fd: Arc<dyn AsFd + Send + Sync>,
        taker: Arc<dyn Poll>,
    ) -> rustix::io::Result<u64> {
        self.watch(Watched::Taker(fd, taker), EventFlags::IN)
    }

    fn watch(&self, watched: Watched, flags: EventFlags) -> rustix::io::Result<u64> {
        let key = {
            let mut sources = lock(&self.sources);
            sources.last_key += 1;
            let key = sources.last_key;
            sources.by_key.insert(key, watched.clone());
            key
        };
        epoll::add(&self.epoll, watched.fd(), EventData::new_u64(key), flags | EventFlags::ET)
            .inspect_err(|_| drop(lock(&self.sources).by_key.remove(&key)))?;
        Ok(key)
    }

    /// Ends what [`Reactor::add`] began.
    pub(crate) fn remove(&self, key: u64) {
        let source = lock(&self.sources).by_key.remove(&key);
        if let Some(source) = source {
            // Fails only if it is not watched.
            let _ = epoll::delete(&self.epoll, source.fd());
        }
    }

    /// Sleeps until there is something to collect or `other` is readable, at most for `time`.
    /// May return early.
    pub(crate) fn sleep(&self, other: Option<BorrowedFd<'_>>, time: Option<Duration>) {
        let mut fds = vec![PollFd::new(&self.epoll, PollFlags::IN)];
        fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let time = time.map(|time| Timespec::try_from(time).unwrap_or(FOREVER));
        // A signal ends the sleep, and nothing else goes wrong.
        let _: Result<_, Errno> = poll(&mut fds, time.as_ref());
    }
}

/// Whether [`Reactor::collect`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It returns at once.
    Never,
    /// It waits for an event.
    Event,
}

/// Longer than a machine runs.
const FOREVER: Timespec = Timespec { tv_sec: i32::MAX as i64, tv_nsec: 0 };
