//! The queue of tasks that are ready, and the threads that run them.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use async_task::Runnable;
use vfiod_sync::{Mutex, lock};

use crate::blocked::Blocked;
use crate::coop;
use crate::kept;
use crate::pollers::{Polled, Pollers};
use crate::reactor::{Reactor, Wait};
use crate::timers::{Clock, Timers};
use crate::turns::{Group, Turns};

/// Tasks that [`Scheduler::run`] runs before it returns to its caller.
const RUN_AT_ONCE: usize = 256;
/// How often a worker polls before it looks whether a timer or a descriptor has its turn: tens of microseconds.
const POLLS_BETWEEN_EVENTS: u32 = 256;

vfiod_sync::thread_local! {
    /// The scheduler that the calling thread polls for, by its address: it looks for tasks after the one that it
    /// runs, and polls again or sleeps. 0: for none.
    // loom's and shuttle's macros take no `const`.
    #[allow(clippy::missing_const_for_thread_local)]
    static POLLS_FOR: Cell<usize> = Cell::new(0);
}

/// What a runtime is to its tasks and workers.
pub(crate) struct Scheduler {
    pub(crate) reactor: Arc<Reactor>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) blocked: Blocked,
    pub(crate) pollers: Pollers,
    /// What has completed is taken by these.
    pub(crate) completions: Polled,
    queue: Mutex<Queue>,
}

/// The tasks that are ready, and the threads that could run them.
///
/// A thread that finds the queue empty is counted as asleep under the same lock, so whoever
/// queues a task afterwards wakes it.
#[derive(Default)]
struct Queue {
    ready: Turns,
    /// Threads that run tasks and nothing else, asleep or not.
    workers: usize,
    /// Threads that sleep, or are about to, until there is a task: workers and others.
    sleeping: usize,
    /// Workers that are awake and about to look into the queue.
    searching: usize,
    /// Calls of [`Scheduler::run`], each of which looks into the queue before it returns.
    runs: usize,
    /// Something is polled.
    polled: bool,
    /// A worker polls. It looks into the queue after each round.
    polling: bool,
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
    /// [`Scheduler::poll`].
    Poll,
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
        let (blocked, pollers) = (Blocked::default(), Pollers::default());
        let (completions, queue) = (Polled::default(), Mutex::default());
        Ok(Self { reactor, timers, blocked, pollers, completions, queue })
    }

    /// Ends the runtime: no task runs any more.
    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        loop {
            let ready = lock(&self.queue).ready.pop();
            // Drops its future: without the lock.
            let Some(ready) = ready else { break };
            drop(ready);
        }
        self.timers.clear();
        self.pollers.polled.clear();
        self.completions.clear();
        self.polled_changed();
    }

    /// Queues a task that is ready, and may be one of a group.
    pub(crate) fn push(&self, runnable: Runnable, group: Option<&Group>) {
        let mut queue = lock(&self.queue);
        if queue.closed {
            drop(queue);
            // Its future is dropped here.
            drop(runnable);
            return;
        }
        // What others have made ready is before it.
        let may_keep = queue.ready.is_empty() && queue.workers > 0 && !queue.stopping;
        if may_keep && group.is_some_and(|group| kept::wants(self.address(), group)) {
            drop(queue);
            return kept::keep(runnable);
        }
        queue.ready.push(runnable, group);
        let wake = queue.must_wake(self.looks_itself());
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
        let Some(runnable) = queue.ready.pop() else {
            if queue.polled && !queue.polling {
                queue.polling = true;
                return Next::Poll;
            }
            queue.sleeping += 1;
            return Next::Sleep;
        };
        let wake = queue.must_wake(false);
        drop(queue);
        if wake {
            self.reactor.wake();
        }
        Next::Run(runnable)
    }

    /// What tells it from other schedulers, as long as it is there.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether the calling thread is a worker that polls between tasks: it looks for the next one by itself.
    fn looks_itself(&self) -> bool {
        POLLS_FOR.with(Cell::get) == self.address()
    }

    /// The calling thread is about to wait for something: it looks for no task meanwhile.
    pub(crate) fn looks_no_more(&self) {
        if self.looks_itself() {
            POLLS_FOR.with(|polls| polls.set(0));
            let wake = lock(&self.queue).must_wake(false);
            if wake {
                self.reactor.wake();
            }
        }
    }

    /// Lets a worker poll until there is a task, or nothing is polled any more.
    pub(crate) fn poll(&self) {
        POLLS_FOR.with(|polls| polls.set(self.address()));
        let mut rounds = 0_u32;
        loop {
            self.pollers.polled.poll();
            self.completions.poll();
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(POLLS_BETWEEN_EVENTS) {
                self.collect();
            }
            let mut queue = lock(&self.queue);
            if !queue.ready.is_empty() || queue.stopping || !queue.polled {
                queue.polling = false;
                return;
            }
            drop(queue);
            // Lets the others run in a model.
            vfiod_sync::point();
            std::hint::spin_loop();
        }
    }

    /// What a worker does between two tasks: now and then it handles what has happened, and polls unless
    /// another worker does. One that has polled does so each time.
    pub(crate) fn look_around(&self, now_and_then: bool) {
        if now_and_then {
            self.collect();
        }
        if now_and_then || self.looks_itself() {
            self.poll_once();
        }
    }

    /// Polls unless a worker does, and anything is polled.
    fn poll_once(&self) {
        let polls = {
            let queue = lock(&self.queue);
            queue.polled && !queue.polling
        };
        if polls {
            self.pollers.polled.poll();
        }
    }

    /// What is polled has changed.
    pub(crate) fn polled_changed(&self) {
        let mut queue = lock(&self.queue);
        queue.polled = self.pollers.polled.count() > 0;
        let wake = queue.must_wake_to_poll();
        drop(queue);
        if wake {
            self.reactor.wake();
        }
    }

    /// Whether something is polled.
    pub(crate) fn is_polled(&self) -> bool {
        lock(&self.queue).polled
    }

    /// Lets a worker sleep until something happens, and handles it.
    pub(crate) fn sleep(&self) {
        POLLS_FOR.with(|polls| polls.set(0));
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
        self.poll_once();
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
                let wake = queue.must_wake(false);
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
            let runnable = queue.ready.pop();
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
            (last, !last && queue.stopping || queue.must_wake(false))
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
    /// that no worker will look for, and one sleeps or has yet to start. `looks_itself`: the caller has made
    /// one ready, and will look for it.
    fn must_wake(&mut self, looks_itself: bool) -> bool {
        let nobody_looks = self.workers == 0 && self.runs == 0;
        let wake = !self.wake_sent
            && self.ready.len() > self.searching + usize::from(looks_itself)
            && (self.sleeping > 0 || nobody_looks);
        self.wake_sent |= wake;
        wake
    }

    /// As [`Queue::must_wake`]: something is polled, and no worker will do so unless it is woken.
    fn must_wake_to_poll(&mut self) -> bool {
        let nobody_polls = self.polled && !self.polling && self.searching == 0;
        let wake = !self.wake_sent && nobody_polls && self.workers > 0 && self.sleeping > 0;
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
