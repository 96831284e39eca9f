//! Descriptors that tasks wait for.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::reactor::Reactor;
use crate::runtime::Runtime;
use crate::source::{READABLE, Source, WRITABLE};

/// A descriptor known to a runtime. Dropping it ends that.
///
/// Only changes are seen: a task reads (writes) until it would block and waits then. A wait may
/// end although nothing can be read (written).
#[derive(Debug)]
pub struct Descriptor {
    reactor: Arc<Reactor>,
    source: Arc<Source>,
    key: u64,
}

impl Descriptor {
    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.source.fd()
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
        self.source.wait(ready).await;
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.reactor.remove(self.key);
    }
}

impl Runtime {
    /// Lets tasks wait for a descriptor, which should not block. One descriptor can be known to a
    /// runtime only once.
    ///
    /// # Errors
    /// `EPERM`: its file cannot be waited for (a regular file); `EEXIST`: it is known already;
    /// `ENOSPC`: over the user's limit (`/proc/sys/fs/epoll/max_user_watches`).
    pub fn descriptor(
        &self,
        fd: Arc<impl AsFd + Send + Sync + 'static>,
    ) -> rustix::io::Result<Descriptor> {
        let source = Arc::new(Source::new(fd));
        let reactor = &self.scheduler().reactor;
        let key = reactor.add(source.clone())?;
        Ok(Descriptor { reactor: reactor.clone(), source, key })
    }
}
