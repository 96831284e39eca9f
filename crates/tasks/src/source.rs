//! A descriptor as the reactor knows it: whether it is ready, and who waits for that.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use vfiod_sync::atomic::{AtomicU32, Ordering};

use crate::waiters::Waiters;

pub(crate) const READABLE: u32 = 1;
pub(crate) const WRITABLE: u32 = 2;

/// What the reactor knows of a descriptor.
pub(crate) struct Source {
    fd: Arc<dyn AsFd + Send + Sync>,
    ready: AtomicU32,
    waiters: Waiters,
}

impl Source {
    pub(crate) fn new(fd: Arc<dyn AsFd + Send + Sync>) -> Self {
        Self { fd, ready: AtomicU32::new(0), waiters: Waiters::new() }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The reactor has seen a change.
    pub(crate) fn changed(&self, flags: EventFlags) {
        // After an error or a hangup both reading and writing return at once.
        let ended = EventFlags::ERR | EventFlags::HUP;
        let mut ready = 0;
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | ended) {
            ready |= READABLE;
        }
        if flags.intersects(EventFlags::OUT | ended) {
            ready |= WRITABLE;
        }
        self.ready.fetch_or(ready, Ordering::AcqRel);
        self.waiters.wake_all();
    }

    /// Waits until one of `ready` has come up, and takes it.
    pub(crate) async fn wait(&self, ready: u32) {
        self.waiters.wait_for(|| self.take(ready)).await;
    }

    fn take(&self, ready: u32) -> Option<()> {
        (self.ready.fetch_and(!ready, Ordering::AcqRel) & ready != 0).then_some(())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("fd", &self.fd().as_raw_fd()).finish_non_exhaustive()
    }
}
