//! The runtime: a queue of tasks that are ready, and whoever runs them.

use std::collections::VecDeque;
use std::fmt;
#[cfg(not(shuttle))]
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use async_task::Runnable;
use vfiod_sync::{Mutex, lock};

use crate::blocking::Blocked;
use crate::coop;
use crate::reactor::{Reactor, Wait};
use crate::timers::{Clock, ManualClock, Timers};

/// Tasks that [`Runtime::run`] runs before it returns to its caller.
const RUN_AT_ONCE: usize = 256;

/// Runs tasks. A clone is the same runtime.
///
/// It has no thread of its own. Somebody starts [`Workers`](crate::Workers), or calls
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

/// Ends the runtime when dropped. Tasks have [`Inner`] only.
struct Owner {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) reactor: Reactor,
    pub(crate) timers: Timers,
    pub(crate) blocked: Blocked,
    queue: Mutex<Queue>,
}

/// The tasks that are ready, and the threads that could run them.
///
/// A thread that finds the queue empty is counted as asleep under the same lock, so whoever
/// queues a task afterwards wakes it.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Runnable>,
    /// Threads that run tasks and nothing else, asleep or not.
    workers: usize,
    /// Threads that sleep, or are about to, until there is a task: workers and others.
    sleeping: usize,
    /// Workers that are awake and about to look into the queue.
    searching: usize,
    /// Calls of [`Runtime::run`], each of which looks into the queue before it returns.
    runs: usize,
    /// [`Reactor::wake`] was called, and nobody has collected it yet. Whoever does takes tasks
    /// from the queue, and wakes the next one if there are more.
    wake_sent: bool,
    /// Workers end.
    stopping: bool,
    /// The runtime is gone: nothing runs any more.
    closed: bool,
}

/// What a worker does next.
pub(crate) enum Next {
    Run(Runnable),
    /// [`Inner::sleep`].
    Sleep,
    Stop,
}

/// What a worker comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Task,
    Sleep,
}

impl Runtime {
    /// A runtime with the system's clock.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`: no descriptors or memory left.
    pub fn new() -> rustix::io::Result<Self> {
        Self::with(Clock::System)
    }

    /// A runtime whose time passes only when somebody moves the clock.
    ///
    /// # Errors
    /// As [`Runtime::new`].
    pub fn with_clock(clock: &ManualClock) -> rustix::io::Result<Self> {
        let runtime = Self::with(Clock::Manual(clock.clone()))?;
        clock.drives(runtime.inner());
        Ok(runtime)
    }

    fn with(clock: Clock) -> rustix::io::Result<Self> {
        let inner = Arc::new(Inner {
            reactor: Reactor::new()?,
            timers: Timers::new(clock),
            blocked: Blocked::default(),
            queue: Mutex::default(),
        });
        Ok(Self { owner: Arc::new(Owner { inner }) })
    }

    /// A handle for the runtime's own tasks, which must not keep it.
    pub fn downgrade(&self) -> WeakRuntime {
        WeakRuntime { owner: Arc::downgrade(&self.owner) }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.owner.inner
    }

    /// A descriptor for `poll` or `epoll`: readable while there is something to do for
    /// [`Runtime::run`], a timer that has expired included.
    #[cfg(not(shuttle))]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner().reactor.fd()
    }

    /// Runs what is ready, and what becomes ready by that. Never waits. Returns whether there is
    /// more to do, which is so only if tasks keep one another ready for long;
    /// [`Runtime::fd`] is readable then.
    pub fn run(&self) -> bool {
        self.inner().run() == Ran::More
    }

    /// Runs what is ready until nothing is.
    pub fn run_until_idle(&self) {
        while self.run() {}
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner().fmt(f)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let ready = {
            let mut queue = lock(&self.inner.queue);
            queue.closed = true;
            std::mem::take(&mut queue.ready)
        };
        drop(ready);
        self.inner.timers.clear();
    }
}

/// What [`Inner::run`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    Nothing,
    All,
    /// There is more to do.
    More,
}

impl Inner {
    /// Queues a task that is ready.
    pub(crate) fn push(&self, runnable: Runnable) {
        let mut queue = lock(&self.queue);
        if queue.closed {
            drop(queue);
            // Its future is dropped here.
            drop(runnable);
            return;
        }
        queue.ready.push_back(runnable);
        let wake = queue.must_wake();
        drop(queue);
        if wake {
            self.reactor.wake();
        }
    }

    /// What a worker does next.
    pub(crate) fn next(&self, from: From) -> Next {
        let mut queue = lock(&self.queue);
        queue.searching -= usize::from(from == From::Sleep);
        if queue.stopping {
            return Next::Stop;
        }
        let Some(runnable) = queue.ready.pop_front() else {
            queue.sleeping += 1;
            return Next::Sleep;
        };
        let wake = queue.must_wake();
        drop(queue);
        if wake {
            self.reactor.wake();
        }
        Next::Run(runnable)
    }

    /// Lets a worker sleep until something happens, and handles it.
    pub(crate) fn sleep(&self) {
        let mut timer = false;
        self.reactor.collect(Wait::Event, |collected| {
            let mut queue = lock(&self.queue);
            queue.sleeping -= 1;
            queue.searching += 1;
            queue.wake_sent &= !collected.woken;
            timer = collected.timer;
        });
        if timer {
            self.fire_timers();
        }
    }

    /// Handles what has happened, without waiting.
    pub(crate) fn collect(&self) {
        let mut timer = false;
        self.reactor.collect(Wait::Never, |collected| {
            if collected.woken {
                lock(&self.queue).wake_sent = false;
            }
            timer = collected.timer;
        });
        if timer {
            self.fire_timers();
        }
    }

    fn fire_timers(&self) {
        self.timers.fire(self.timers.clock.now(), &self.reactor);
    }

    /// Runs what is ready, and what becomes ready by that, within limits.
    pub(crate) fn run(&self) -> Ran {
        lock(&self.queue).runs += 1;
        let mut ran = 0;
        self.collect();
        loop {
            let mut queue = lock(&self.queue);
            if queue.ready.is_empty() && queue.wake_sent {
                // A wake that nobody needs any more must not leave the descriptor readable.
                drop(queue);
                self.collect();
                queue = lock(&self.queue);
            }
            if ran == RUN_AT_ONCE || queue.ready.is_empty() {
                queue.runs -= 1;
                let more = !queue.ready.is_empty();
                let wake = queue.must_wake();
                drop(queue);
                if wake {
                    self.reactor.wake();
                }
                return match ran {
                    _ if more => Ran::More,
                    0 => Ran::Nothing,
                    _ => Ran::All,
                };
            }
            let runnable = queue.ready.pop_front();
            drop(queue);
            runnable.into_iter().for_each(run_task);
            ran += 1;
        }
    }

    /// Counts the calling thread, which is not a worker, as asleep: whoever makes a task ready
    /// makes [`Runtime::fd`] readable. Not if there is one already.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut queue = lock(&self.queue);
        let sleep = queue.ready.is_empty();
        queue.sleeping += usize::from(sleep);
        sleep
    }

    /// Ends [`Inner::fall_asleep`].
    pub(crate) fn wake_up(&self) {
        lock(&self.queue).sleeping -= 1;
    }

    pub(crate) fn has_workers(&self) -> bool {
        lock(&self.queue).workers > 0
    }

    pub(crate) fn add_worker(&self) {
        lock(&self.queue).workers += 1;
    }

    /// A worker ends. The last one hands over to those who wait without workers.
    pub(crate) fn remove_worker(&self) {
        let (last, wake) = {
            let mut queue = lock(&self.queue);
            queue.workers -= 1;
            let last = queue.workers == 0;
            if last {
                queue.stopping = false;
            }
            (last, !last && queue.stopping || queue.must_wake())
        };
        if wake {
            self.reactor.wake();
        }
        if last {
            self.blocked.wake_all();
        }
    }

    /// Makes all workers end, each after the task that it runs.
    pub(crate) fn stop_workers(&self) {
        lock(&self.queue).stopping = true;
        self.reactor.wake();
    }
}

impl Queue {
    /// Whether the caller must call [`Reactor::wake`], the queue's lock dropped: there are tasks
    /// for which nobody will look, and somebody sleeps or has yet to come.
    fn must_wake(&mut self) -> bool {
        let nobody_looks = self.workers == 0 && self.runs == 0;
        let wake = !self.wake_sent
            && self.ready.len() > self.searching
            && (self.sleeping > 0 || nobody_looks);
        self.wake_sent |= wake;
        wake
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = lock(&self.queue);
        let mut debug = f.debug_struct("Runtime");
        debug.field("ready", &queue.ready.len()).field("workers", &queue.workers);
        debug.field("sleeping", &queue.sleeping).finish_non_exhaustive()
    }
}

/// Polls a task once.
pub(crate) fn run_task(runnable: Runnable) {
    coop::renew();
    runnable.run();
}
