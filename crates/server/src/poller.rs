//! Where threads wait for sources: `epoll`. Model checks have one of their own
//! (`model/poller.rs`).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

pub(crate) use crate::interest::Interest;

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::ONESHOT | EventFlags::IN | EventFlags::RDHUP,
            Self::Write => EventFlags::ONESHOT | EventFlags::OUT,
            Self::Both => Self::Read.flags() | Self::Write.flags(),
            Self::HangUp => EventFlags::ONESHOT | EventFlags::RDHUP,
            // EPOLLHUP needs no flag.
            Self::Closed => EventFlags::ONESHOT,
        }
    }
}

/// Descriptors that are watched for one event each.
pub(crate) struct Poller {
    epoll: Arc<OwnedFd>,
    wake: OwnedFd,
}

/// The key of the event that [`Poller::wake_all`] causes.
pub(crate) const WAKE_KEY: u64 = 0;

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Level-triggered and never read: once set, it wakes every thread.
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE_KEY), EventFlags::IN)?;
        Ok(Self { epoll, wake })
    }

    /// Readable while there is an event.
    pub(crate) fn fd(&self) -> Arc<OwnedFd> {
        self.epoll.clone()
    }

    /// Waits for an event, for `timeout` at most. Returns the key of its source.
    ///
    /// # Errors
    /// `EINTR`; else those of `epoll_wait` that end a thread.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Option<u64>, Errno> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let count = epoll::wait(&self.epoll, &mut events, timeout.as_ref())?;
        Ok((count > 0).then(|| events[0].data.u64()))
    }

    /// Makes every [`Poller::wait`] return [`WAKE_KEY`], now and later.
    pub(crate) fn wake_all(&self) {
        // Cannot fail: the counter is far from its limit.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Watches a descriptor for the first time.
    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(key), interest.flags())
    }

    /// Watches a descriptor again.
    ///
    /// # Errors
    /// `ENOENT`: for the first time.
    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(key), interest.flags())
    }

    /// Stops watching a descriptor.
    pub(crate) fn delete(&self, fd: BorrowedFd<'_>, _key: u64) {
        // Fails only for a descriptor that is no longer there.
        let _ = epoll::delete(&self.epoll, fd);
    }
}
