//! The queue of tasks that are ready, and the threads that run them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_task::Runnable;
use vfiod_sync::{Mutex, lock};

use crate::blocked::Blocked;
use crate::coop;
use crate::reactor::{Reactor, Wait};
use crate::timers::{Clock, Timers};

/// Tasks that [`Scheduler::run`] runs before it returns to its caller.
const RUN_AT_ONCE: usize = 256;

/// What a runtime is to its tasks and workers.
pub(crate) struct Scheduler {
    pub(crate) reactor: Arc<Reactor>,
    pub(crate) timers: Arc<Timers>,
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
    /// Calls of [`Scheduler::run`], each of which looks into the queue before it returns.
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
    /// [`Scheduler::sleep`].
    Sleep,
    Stop,
}

/// What a worker comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Task,
    Sleep,
}

/// What [`Scheduler::run`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    Nothing,
    All,
    /// There is more to do.
    More,
}

impl Scheduler {
    pub(crate) fn new(clock: Clock) -> rustix::io::Result<Self> {
        let reactor = Arc::new(Reactor::new()?);
        let timers = Arc::new(Timers::new(clock, reactor.clone()));
        Ok(Self { reactor, timers, blocked: Blocked::default(), queue: Mutex::default() })
    }

    /// Ends the runtime: no task runs any more.
    pub(crate) fn close(&self) {
        let ready = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            std::mem::take(&mut queue.ready)
        };
        // Drops futures: without the lock.
        drop(ready);
        self.timers.clear();
    }

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
            self.timers.fire();
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
            self.timers.fire();
        }
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
    /// makes the reactor's descriptor readable. Not if there is one already.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut queue = lock(&self.queue);
        let sleep = queue.ready.is_empty();
        queue.sleeping += usize::from(sleep);
        sleep
    }

    /// Ends [`Scheduler::fall_asleep`].
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

    /// Wakes a worker if workers are to end.
    pub(crate) fn pass_stop_on(&self) {
        if lock(&self.queue).stopping {
            self.reactor.wake();
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
    /// that no worker will look for, and one sleeps or has yet to start.
    fn must_wake(&mut self) -> bool {
        let nobody_looks = self.workers == 0 && self.runs == 0;
        let wake = !self.wake_sent
            && self.ready.len() > self.searching
            && (self.sleeping > 0 || nobody_looks);
        self.wake_sent |= wake;
        wake
    }
}

impl fmt::Debug for Scheduler {
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
