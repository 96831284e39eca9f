//! Threads that run tasks.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use vfiod_sync::atomic::Ordering;
use vfiod_sync::thread::{self, JoinHandle};
use vfiod_sync::{Mutex, lock};

use crate::runtime::Runtime;
use crate::scheduler::{From, Next, Scheduler, run_task};
#[cfg(not(shuttle))]
use crate::watchdog::{Watchdog, Watched};
use crate::worker::Worker;

/// Tasks that a worker runs before it looks whether a timer or a descriptor has its turn.
const TASKS_BETWEEN_EVENTS: u32 = 32;

/// The threads of a runtime. Dropping this ends them, each after the task that it runs.
///
/// Idle threads sleep until there is something to do. One whose task runs for 10 ms without
/// waiting is replaced by a new thread, and ends when that task waits.
#[derive(Debug)]
pub struct Workers {
    pool: Arc<Pool>,
}

/// What the workers of a runtime share.
#[derive(Debug)]
struct Pool {
    runtime: Arc<Scheduler>,
    members: Mutex<Members>,
    #[cfg(not(shuttle))]
    watchdog: Watchdog,
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

vfiod_sync::thread_local! {
    // loom's and shuttle's macros take no `const`.
    #[allow(clippy::missing_const_for_thread_local)]
    static SEAT: Cell<Option<usize>> = Cell::new(None);
}

/// The seat of the calling thread among the workers of its runtime, from 0; `None`: it is no worker.
/// A worker that replaces another one takes its seat, so there are as many as workers were asked for.
pub fn worker_seat() -> Option<usize> {
    SEAT.with(Cell::get)
}

impl Workers {
    /// Starts `count` threads, at least one. A runtime has workers only once.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(runtime: &Runtime, count: usize) -> io::Result<Self> {
        let pool = Arc::new(Pool {
            runtime: runtime.scheduler().clone(),
            members: Mutex::default(),
            #[cfg(not(shuttle))]
            watchdog: Watchdog::default(),
        });
        let workers = Self { pool };
        for seat in 0..count.max(1) {
            workers.pool.start_worker(seat)?;
        }
        #[cfg(not(shuttle))]
        workers.pool.watchdog.start(&workers.pool)?;
        Ok(workers)
    }

    /// The number of threads, those included whose task has run for too long.
    pub fn count(&self) -> usize {
        lock(&self.pool.members).members.len()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        #[cfg(not(shuttle))]
        self.pool.watchdog.stop();
        self.pool.runtime.stop_workers();
        let members = std::mem::take(&mut lock(&self.pool.members).members);
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

impl Pool {
    /// Starts a worker for a seat.
    fn start_worker(self: &Arc<Self>, seat: usize) -> io::Result<()> {
        let mut members = lock(&self.members);
        members.started += 1;
        let number = members.started;
        let worker = Arc::new(Worker::new(number, seat));
        // Counted before it starts, so that it can count itself out.
        self.runtime.add_worker();
        let name = format!("tasks-{number}");
        let (pool, starting) = (self.clone(), worker.clone());
        let started = thread::Builder::new().name(name).spawn(move || pool.work(&starting));
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

    fn work(self: &Arc<Self>, worker: &Worker) {
        SEAT.with(|seat| seat.set(Some(worker.seat)));
        let mut from = From::Task;
        let mut tasks = 0;
        loop {
            match self.runtime.next(from) {
                Next::Run(runnable) => {
                    self.begins(worker);
                    run_task(runnable);
                    worker.beat.fetch_add(1, Ordering::Release);
                    if worker.replaced.load(Ordering::Acquire) {
                        break self.leave(worker);
                    }
                    from = From::Task;
                    tasks += 1;
                    self.runtime.look_around(tasks % TASKS_BETWEEN_EVENTS == 0);
                }
                Next::Poll => {
                    self.runtime.poll();
                    from = From::Task;
                }
                Next::Sleep => {
                    self.runtime.sleep();
                    from = From::Sleep;
                }
                Next::Stop => break self.stop(worker),
            }
        }
    }

    /// A worker ends because all of them do. One that was replaced, and has not run a task since, is
    /// not counted any more, but may have taken the wake that was for another.
    fn stop(&self, worker: &Worker) {
        if worker.replaced.load(Ordering::Acquire) {
            self.leave(worker);
            self.runtime.pass_stop_on();
        } else {
            self.runtime.remove_worker();
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

#[cfg(not(shuttle))]
impl Watched for Pool {
    fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    fn workers(&self) -> Vec<Arc<Worker>> {
        lock(&self.members).members.iter().map(|member| member.worker.clone()).collect()
    }

    fn replace(self: &Arc<Self>, worker: &Worker) -> bool {
        if let Err(error) = self.start_worker(worker.seat) {
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

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// The watchdog may be about to look at it again: that it was running, and whether it was replaced.
    #[test]
    fn worker_that_was_replaced_and_has_left_is_not_replaced_again() {
        let runtime = Runtime::new().unwrap();
        let workers = Workers::start(&runtime, 1).unwrap();
        let pool = workers.pool.clone();
        let first = pool.workers().swap_remove(0);
        let (release, released) = channel::<()>();
        let task = runtime.spawn(async move { released.recv() });
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        let wait_until = |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(std::time::Instant::now() < patience);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait_until(&|| first.replaced.load(Ordering::Acquire));
        drop(release);
        wait_until(&|| !pool.workers().iter().any(|worker| Arc::ptr_eq(worker, &first)));
        assert!(first.replaced.load(Ordering::Acquire), "as it was");
        drop(task);
    }

    /// The watchdog can be late: the task has ended, and the worker sleeps, when it is replaced.
    #[test]
    fn workers_end_though_one_was_replaced_while_it_slept() {
        for _ in 0..100 {
            let runtime = Runtime::new().unwrap();
            let workers = Workers::start(&runtime, 2).unwrap();
            let pool = workers.pool.clone();
            let first = pool.workers().swap_remove(0);
            assert!(pool.replace(&first));
            let (ended, end) = channel();
            std::thread::spawn(move || {
                drop(workers);
                ended.send(())
            });
            end.recv_timeout(Duration::from_secs(20)).expect("the workers end");
            assert!(!pool.runtime.has_workers());
        }
    }
}
