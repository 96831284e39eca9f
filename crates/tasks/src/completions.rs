//! Requests that complete elsewhere, such as those to a disk: who takes what has completed.
//!
//! A descriptor becomes readable when something has. The thread that this wakes takes it, and runs the tasks that it
//! makes ready: no task has to be woken for that, and no other thread. A thread that polls for something else
//! looks as well, without the descriptor's word ([`Keeper::look`](crate::Keeper::look)); so does a worker that
//! polls.

#[cfg(not(shuttle))]
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::pollers::Poll;
use crate::runtime::Runtime;
use crate::scheduler::Scheduler;

/// A place where requests complete, known to a runtime. Dropping it ends that; the last look may still be under way
/// on another thread.
#[derive(Debug)]
#[must_use = "what has completed is taken while this lives"]
pub struct Completions {
    scheduler: Arc<Scheduler>,
    key: u64,
}

impl Runtime {
    /// Has `taker` take what has completed and wake the tasks that wait for it: whenever `fd` becomes readable, and
    /// when a thread looks. Only changes are seen, so that the descriptor need not be read.
    ///
    /// # Errors
    /// Those of [`Runtime::descriptor`].
    #[cfg(not(shuttle))]
    pub fn completions(
        &self,
        fd: Arc<impl AsFd + Send + Sync + 'static>,
        taker: Arc<dyn Poll>,
    ) -> rustix::io::Result<Completions> {
        let key = self.scheduler().reactor.add_taker(fd, taker.clone())?;
        Ok(self.look_at(key, taker))
    }

    /// As in the system; [`Runtime::signal`] is what makes the descriptor readable.
    #[cfg(shuttle)]
    pub(crate) fn completions(&self, taker: Arc<dyn Poll>) -> Completions {
        let key = self.scheduler().reactor.add_taker(taker.clone());
        self.look_at(key, taker)
    }

    fn look_at(&self, key: u64, taker: Arc<dyn Poll>) -> Completions {
        let scheduler = self.scheduler().clone();
        scheduler.completions.replace(key, Some(taker));
        Completions { scheduler, key }
    }
}

#[cfg(shuttle)]
impl Completions {
    /// Something has completed.
    pub(crate) fn signal(&self) {
        self.scheduler.reactor.signal(self.key);
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        self.scheduler.completions.replace(self.key, None);
        self.scheduler.reactor.remove(self.key);
    }
}
