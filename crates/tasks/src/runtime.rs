//! The runtime, as its users see it.

use std::fmt;
#[cfg(not(shuttle))]
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use crate::scheduler::{Ran, Scheduler};
use crate::timers::{Clock, ManualClock};

/// Runs tasks. A clone is the same runtime.
///
/// It has no thread of its own. Its owner starts [`Workers`](crate::Workers), or calls
/// [`Runtime::run`] whenever [`Runtime::fd`] is readable. When the last clone is dropped, no task
/// runs any more, and the future of each is dropped, at the latest when something wakes it.
#[derive(Clone)]
pub struct Runtime {
    owner: Arc<Owner>,
}

/// A runtime, if it is still there.
#[derive(Clone)]
pub struct WeakRuntime {
    owner: Weak<Owner>,
}

impl WeakRuntime {
    /// Whether this is a handle of `runtime`.
    pub fn is(&self, runtime: &Runtime) -> bool {
        std::ptr::eq(self.owner.as_ptr(), Arc::as_ptr(&runtime.owner))
    }

    /// The runtime, if it is still there.
    pub fn upgrade(&self) -> Option<Runtime> {
        Some(Runtime { owner: self.owner.upgrade()? })
    }
}

impl fmt::Debug for WeakRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakRuntime").finish_non_exhaustive()
    }
}

/// Ends the runtime when dropped. Tasks have the [`Scheduler`] only.
struct Owner {
    scheduler: Arc<Scheduler>,
}

impl Runtime {
    /// A runtime with the system's clock.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`: no descriptors or memory left.
    pub fn new() -> rustix::io::Result<Self> {
        Self::with(Clock::System)
    }

    /// A runtime whose time passes only when a test moves the clock.
    ///
    /// # Errors
    /// As [`Runtime::new`].
    pub fn with_clock(clock: &ManualClock) -> rustix::io::Result<Self> {
        let runtime = Self::with(Clock::Manual(clock.clone()))?;
        clock.drives(&runtime.scheduler().timers);
        Ok(runtime)
    }

    fn with(clock: Clock) -> rustix::io::Result<Self> {
        let scheduler = Arc::new(Scheduler::new(clock)?);
        Ok(Self { owner: Arc::new(Owner { scheduler }) })
    }

    /// A handle for the runtime's own tasks, which must not keep it.
    pub fn downgrade(&self) -> WeakRuntime {
        WeakRuntime { owner: Arc::downgrade(&self.owner) }
    }

    pub(crate) fn scheduler(&self) -> &Arc<Scheduler> {
        &self.owner.scheduler
    }

    /// A descriptor for `poll` or `epoll`: readable while there is something to do for
    /// [`Runtime::run`], a timer that has expired included.
    #[cfg(not(shuttle))]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.scheduler().reactor.fd()
    }

    /// Runs what is ready, and what becomes ready by that. Never waits. Returns whether there is
    /// more to do, which is so only if tasks keep one another ready for long;
    /// [`Runtime::fd`] is readable then.
    pub fn run(&self) -> bool {
        self.scheduler().run() == Ran::More
    }

    /// Runs what is ready until nothing is.
    pub fn run_until_idle(&self) {
        while self.run() {}
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scheduler().fmt(f)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.scheduler.close();
    }
}
