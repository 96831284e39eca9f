//! The watchdog: it replaces the worker of a task that runs for long without waiting, so that other
//! tasks go on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::thread::{self, JoinHandle};
use vfiod_sync::{Condvar, Mutex, lock, wait};

use crate::worker::Worker;

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
        // Either the watchdog has seen the beat, or this sees that it sleeps: `rest`.
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

/// The workers that a watchdog looks at.
pub(crate) trait Watched: Send + Sync + 'static {
    fn watchdog(&self) -> &Watchdog;

    fn workers(&self) -> Vec<Arc<Worker>>;

    /// Lets another thread take a worker's place. Returns whether there is one.
    fn replace(self: &Arc<Self>, worker: &Worker) -> bool;
}

/// What was last seen of a worker.
struct Seen {
    worker: Arc<Worker>,
    beat: u64,
    since: Instant,
}

impl Watchdog {
    /// Starts the thread.
    pub(crate) fn start(&self, watched: &Arc<impl Watched>) -> io::Result<()> {
        let watched = watched.clone();
        let builder = thread::Builder::new().name("tasks-watch".to_owned());
        let thread = builder.spawn(move || watch(&watched))?;
        lock(&self.state).thread = Some(thread);
        Ok(())
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.stopped = true;
            self.changed.notify_one();
            state.thread.take()
        };
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn watch(watched: &Arc<impl Watched>) {
    let mut seen = HashMap::new();
    loop {
        let is_active = look(watched, &mut seen);
        let Watchdog { is_asleep, state, changed } = watched.watchdog();
        let mut guard = lock(state);
        if guard.stopped {
            return;
        }
        if !is_active && rest(&**watched, &mut seen) {
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
fn rest(watched: &impl Watched, seen: &mut HashMap<u64, Seen>) -> bool {
    let Watchdog { is_asleep, .. } = watched.watchdog();
    is_asleep.store(true, Ordering::SeqCst);
    let is_idle =
        watched.workers().iter().all(|worker| worker.beat.load(Ordering::SeqCst) % 2 == 0);
    if is_idle {
        seen.clear();
    } else {
        is_asleep.store(false, Ordering::SeqCst);
    }
    is_idle
}

/// Replaces workers whose task has run for too long. Returns whether any task has run since
/// the last time.
fn look(watched: &Arc<impl Watched>, seen: &mut HashMap<u64, Seen>) -> bool {
    let now = Instant::now();
    let workers = watched.workers();
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
        let runs_long = is_running && now - last.since >= RUN_LIMIT;
        if runs_long && replaced < MAX_REPLACED && !worker.replaced.load(Ordering::Acquire) {
            replaced += usize::from(watched.replace(worker));
        }
    }
    seen.retain(|_, seen| workers.iter().any(|worker| Arc::ptr_eq(worker, &seen.worker)));
    is_active
}
