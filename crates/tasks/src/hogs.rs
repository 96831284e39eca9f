//! Tasks that run for long without waiting: their worker is replaced, so that other tasks go on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::thread::{self, JoinHandle};
use vfiod_sync::{Condvar, Mutex, lock, wait};

use crate::workers::{Team, Worker};

/// How long a task may run before its worker is replaced.
const RUN_LIMIT: Duration = Duration::from_millis(10);
/// How often the watchdog looks at the workers while tasks run.
const INTERVAL: Duration = Duration::from_millis(5);
/// How many replaced workers there may be at a time.
const MAX_REPLACED: usize = 64;

/// The thread that looks at workers. It sleeps while no task runs.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// Nobody is looking: a worker that runs a task wakes the thread.
    is_asleep: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    alerted: bool,
    stopped: bool,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// A worker is about to run a task; its beat says so already.
    #[inline]
    pub(crate) fn alert(&self) {
        // Either the watchdog has seen the beat, or this sees that it sleeps: `Team::rest`.
        if self.is_asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let mut state = lock(&self.state);
        if self.is_asleep.swap(false, Ordering::SeqCst) {
            state.alerted = true;
            self.changed.notify_one();
        }
    }
}

/// What was last seen of a worker.
struct Seen {
    worker: Arc<Worker>,
    beat: u64,
    since: Instant,
}

impl Team {
    pub(crate) fn start_watchdog(self: &Arc<Self>) -> io::Result<()> {
        let team = self.clone();
        let builder = thread::Builder::new().name("tasks-watch".to_owned());
        let thread = builder.spawn(move || team.watch())?;
        lock(&self.watchdog.state).thread = Some(thread);
        Ok(())
    }

    pub(crate) fn stop_watchdog(&self) {
        let thread = {
            let mut state = lock(&self.watchdog.state);
            state.stopped = true;
            self.watchdog.changed.notify_one();
            state.thread.take()
        };
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn watch(self: Arc<Self>) {
        let mut seen = HashMap::new();
        loop {
            let is_active = self.look(&mut seen);
            let Watchdog { is_asleep, state, changed } = &self.watchdog;
            let mut guard = lock(state);
            if guard.stopped {
                return;
            }
            if !is_active && self.rest(&mut seen) {
                while !guard.alerted && !guard.stopped {
                    guard = wait(changed, state, guard, Duration::MAX);
                }
                guard.alerted = false;
                is_asleep.store(false, Ordering::SeqCst);
            }
            if !guard.stopped {
                drop(wait(changed, state, guard, INTERVAL));
            }
        }
    }

    /// Marks the watchdog as asleep, unless a task runs. The watchdog's lock is held.
    fn rest(&self, seen: &mut HashMap<u64, Seen>) -> bool {
        let Watchdog { is_asleep, .. } = &self.watchdog;
        is_asleep.store(true, Ordering::SeqCst);
        let is_idle =
            self.workers().iter().all(|worker| worker.beat.load(Ordering::SeqCst) % 2 == 0);
        if is_idle {
            seen.clear();
        } else {
            is_asleep.store(false, Ordering::SeqCst);
        }
        is_idle
    }

    /// Replaces workers whose task has run for too long. Returns whether any task has run since
    /// the last time.
    fn look(self: &Arc<Self>, seen: &mut HashMap<u64, Seen>) -> bool {
        let now = Instant::now();
        let workers = self.workers();
        let mut is_active = false;
        let mut replaced =
            workers.iter().filter(|worker| worker.replaced.load(Ordering::Acquire)).count();
        for worker in &workers {
            let beat = worker.beat.load(Ordering::Acquire);
            let is_new = || Seen { worker: worker.clone(), beat, since: now };
            let last = seen.entry(worker.number).or_insert_with(is_new);
            if last.beat != beat {
                (last.beat, last.since) = (beat, now);
                is_active = true;
                continue;
            }
            let is_running = beat % 2 == 1;
            is_active |= is_running;
            let is_hog = is_running && now - last.since >= RUN_LIMIT;
            if is_hog && replaced < MAX_REPLACED && !worker.replaced.load(Ordering::Acquire) {
                replaced += usize::from(self.replace(worker));
            }
        }
        seen.retain(|_, seen| workers.iter().any(|worker| Arc::ptr_eq(worker, &seen.worker)));
        is_active
    }

    /// Lets another thread take a worker's place. Returns whether there is one.
    fn replace(self: &Arc<Self>, worker: &Worker) -> bool {
        if let Err(error) = self.start_worker() {
            tracing::warn!(%error, "cannot start a thread in place of one whose task runs long");
            return false;
        }
        // The task may have ended by now: then the worker ends after its next one.
        worker.replaced.store(true, Ordering::Release);
        self.runtime.remove_worker();
        tracing::debug!(worker = worker.number, "a task runs long; another thread takes over");
        true
    }
}
