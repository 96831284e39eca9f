//! Descriptors that tasks wait for.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use vfiod_sync::atomic::{AtomicU32, Ordering};

use crate::runtime::{Inner, Runtime};
use crate::waiters::Waiters;

const READABLE: u32 = 1;
const WRITABLE: u32 = 2;

/// A descriptor known to a runtime. Dropping it ends that.
///
/// Only changes are seen: a task reads (writes) until it would block and waits then. A wait may
/// end although nothing can be read (written).
#[derive(Debug)]
pub struct Descriptor {
    runtime: Arc<Inner>,
    source: Arc<Source>,
    key: u64,
}

/// What the reactor knows of a descriptor.
#[derive(Debug)]
pub(crate) struct Source {
    fd: Arc<OwnedFd>,
    ready: AtomicU32,
    waiters: Waiters,
}

impl Source {
    pub(crate) fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
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

    fn take(&self, ready: u32) -> Option<()> {
        (self.ready.fetch_and(!ready, Ordering::AcqRel) & ready != 0).then_some(())
    }
}

impl Descriptor {
    /// The descriptor.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.source.fd
    }

    /// Waits until the descriptor has become readable, or has ended, since the last wait.
    pub async fn readable(&self) {
        self.wait(READABLE).await;
    }

    /// Waits until the descriptor has become writable, or has ended, since the last wait.
    pub async fn writable(&self) {
        self.wait(WRITABLE).await;
    }

    /// Waits until the descriptor has become readable or writable, or has ended, since the last
    /// wait for either.
    pub async fn changed(&self) {
        self.wait(READABLE | WRITABLE).await;
    }

    async fn wait(&self, ready: u32) {
        self.source.waiters.wait_for(|| self.source.take(ready)).await;
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.runtime.reactor.remove(self.key);
    }
}

impl Runtime {
    /// Lets tasks wait for a descriptor, which should not block. One descriptor can be known to a
    /// runtime only once.
    ///
    /// # Errors
    /// `EPERM`: its file cannot be waited for (a regular file); `EEXIST`: it is known already;
    /// `ENOSPC`: over the user's limit (`/proc/sys/fs/epoll/max_user_watches`).
    pub fn descriptor(&self, fd: Arc<OwnedFd>) -> rustix::io::Result<Descriptor> {
        let source = Source { fd, ready: AtomicU32::new(0), waiters: Waiters::new() };
        let source = Arc::new(source);
        let key = self.inner().reactor.add(source.clone())?;
        Ok(Descriptor { runtime: self.inner().clone(), source, key })
    }
}
