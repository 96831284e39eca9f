//! Threads that run tasks.

use std::io;
use std::sync::Arc;

use vfiod_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vfiod_sync::thread::{self, JoinHandle};
use vfiod_sync::{Mutex, lock};

#[cfg(not(shuttle))]
use crate::hogs::Watchdog;
use crate::runtime::{From, Inner, Next, Runtime, run_task};

/// Tasks that a worker runs before it looks whether a timer or a descriptor has its turn.
const TASKS_BETWEEN_EVENTS: u32 = 32;

/// The threads of a runtime. Dropping this ends them, each after the task that it runs.
///
/// Idle threads sleep until there is something to do. One whose task runs for 10 ms without
/// waiting is replaced by a new thread, and ends when that task waits.
#[derive(Debug)]
pub struct Workers {
    team: Arc<Team>,
}

/// What the workers of a runtime share.
#[derive(Debug)]
pub(crate) struct Team {
    pub(crate) runtime: Arc<Inner>,
    members: Mutex<Members>,
    #[cfg(not(shuttle))]
    pub(crate) watchdog: Watchdog,
}

#[derive(Debug, Default)]
struct Members {
    started: u64,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    worker: Arc<Worker>,
    thread: JoinHandle<()>,
}

/// A worker's side that others look at.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) number: u64,
    /// Odd while a task runs; different for each.
    pub(crate) beat: AtomicU64,
    /// Another one has taken its place: it ends after the task that it runs.
    pub(crate) replaced: AtomicBool,
}

impl Workers {
    /// Starts `count` threads, at least one. A runtime has workers only once.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(runtime: &Runtime, count: usize) -> io::Result<Self> {
        let team = Arc::new(Team {
            runtime: runtime.inner().clone(),
            members: Mutex::default(),
            #[cfg(not(shuttle))]
            watchdog: Watchdog::default(),
        });
        let workers = Self { team };
        for _ in 0..count.max(1) {
            workers.team.start_worker()?;
        }
        #[cfg(not(shuttle))]
        workers.team.start_watchdog()?;
        Ok(workers)
    }

    /// The number of threads, those included whose task has run for too long.
    pub fn count(&self) -> usize {
        lock(&self.team.members).members.len()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        #[cfg(not(shuttle))]
        self.team.stop_watchdog();
        self.team.runtime.stop_workers();
        let members = std::mem::take(&mut lock(&self.team.members).members);
        for Member { worker, thread } in members {
            // A thread that has been replaced may never come back from its task.
            if !worker.replaced.load(Ordering::Acquire) && !is_current(&thread) {
                let _ = thread.join();
            }
        }
    }
}

/// Whether a thread is the calling one, as when a task drops the last [`Workers`].
fn is_current(thread: &JoinHandle<()>) -> bool {
    thread.thread().id() == thread::current().id()
}

impl Team {
    /// Starts a worker.
    pub(crate) fn start_worker(self: &Arc<Self>) -> io::Result<()> {
        let mut members = lock(&self.members);
        members.started += 1;
        let number = members.started;
        let (beat, replaced) = (AtomicU64::new(0), AtomicBool::new(false));
        let worker = Arc::new(Worker { number, beat, replaced });
        // Counted before it starts, so that it can count itself out.
        self.runtime.add_worker();
        let name = format!("tasks-{number}");
        let (team, starting) = (self.clone(), worker.clone());
        let started = thread::Builder::new().name(name).spawn(move || team.work(&starting));
        match started {
            Ok(thread) => {
                members.members.push(Member { worker, thread });
                Ok(())
            }
            Err(error) => {
                drop(members);
                self.runtime.remove_worker();
                Err(error)
            }
        }
    }

    #[cfg(not(shuttle))]
    pub(crate) fn workers(&self) -> Vec<Arc<Worker>> {
        lock(&self.members).members.iter().map(|member| member.worker.clone()).collect()
    }

    fn work(self: &Arc<Self>, worker: &Worker) {
        let mut from = From::Task;
        let mut tasks = 0;
        loop {
            match self.runtime.next(from) {
                Next::Run(runnable) => {
                    self.begins(worker);
                    run_task(runnable);
                    worker.beat.fetch_add(1, Ordering::Release);
                    if worker.replaced.swap(false, Ordering::AcqRel) {
                        break self.leave(worker);
                    }
                    from = From::Task;
                    tasks += 1;
                    if tasks % TASKS_BETWEEN_EVENTS == 0 {
                        self.runtime.collect();
                    }
                }
                Next::Sleep => {
                    self.runtime.sleep();
                    from = From::Sleep;
                }
                Next::Stop => break self.runtime.remove_worker(),
            }
        }
    }

    /// A task is about to run.
    fn begins(&self, worker: &Worker) {
        worker.beat.fetch_add(1, Ordering::SeqCst);
        #[cfg(not(shuttle))]
        self.watchdog.alert();
    }

    /// A worker that was replaced ends; it is not counted as a worker any more.
    fn leave(&self, worker: &Worker) {
        lock(&self.members).members.retain(|member| member.worker.number != worker.number);
    }
}
