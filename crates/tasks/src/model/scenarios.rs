//! Small programs of a few threads and tasks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use vfiod_sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::{Condvar, Mutex, lock, wait};

use crate::event_index::{SharedIndex, ask, is_past_event};
use crate::{Bell, Ended, ManualClock, Poll, Runtime, Task, Waiters, Workers};

fn start(workers: usize) -> (Runtime, Workers) {
    let runtime = Runtime::new().expect("starts");
    let workers = Workers::start(&runtime, workers).expect("starts");
    (runtime, workers)
}

fn result<T: Send + 'static>(runtime: &Runtime, task: &Task<T>) -> Result<T, Ended> {
    runtime.block_on(None, task.result()).expect("has no deadline")
}

/// A task waits for a bell that another thread rings while the worker falls asleep.
fn ring_wakes_a_worker() {
    let (runtime, workers) = start(1);
    let bell = Arc::new(Bell::new());
    let rings = bell.clone();
    let other = spawn(move || rings.ring(Some(1)));
    let task = runtime.spawn(async move { bell.wait().await.value });
    assert_eq!(result(&runtime, &task).expect("ends"), Some(1));
    join(other);
    drop(workers);
}

/// A task takes rings until it has seen the last value.
fn newest_value_arrives() {
    let (runtime, workers) = start(1);
    let bell = Arc::new(Bell::new());
    let rings = bell.clone();
    let other = spawn(move || (1..=3).for_each(|value| rings.ring(Some(value))));
    let task = runtime.spawn(async move {
        let mut newest = 0;
        while newest < 3 {
            let value = bell.wait().await.value.expect("each ring has a value");
            assert!(value >= newest, "an older value came later");
            newest = value;
        }
    });
    result(&runtime, &task).expect("ends");
    join(other);
    drop(workers);
}

/// Two tasks wait for a bell; each ring is taken by one of them.
fn each_ring_is_taken_once() {
    let (runtime, workers) = start(1);
    let bell = Arc::new(Bell::new());
    let taken = Arc::new(AtomicUsize::new(0));
    let tasks = [0; 2].map(|_| {
        let (bell, taken) = (bell.clone(), taken.clone());
        runtime.spawn(async move {
            bell.wait().await;
            taken.fetch_add(1, Ordering::SeqCst);
            // For the other task, which this one may have been faster than.
            bell.ring(None);
        })
    });
    bell.ring(None);
    for task in &tasks {
        result(&runtime, task).expect("ends");
    }
    assert_eq!(taken.load(Ordering::SeqCst), 2);
    drop(workers);
}

/// Two threads start a task each while the worker falls asleep.
fn worker_runs_what_others_start() {
    let (runtime, workers) = start(1);
    let threads = [1, 2].map(|number| {
        let runtime = runtime.clone();
        spawn(move || {
            let task = runtime.spawn(async move { number });
            assert_eq!(result(&runtime, &task).expect("ends"), number);
        })
    });
    join_all(threads);
    drop(workers);
}

/// Two tasks that each block a thread until the other one runs need both workers.
fn second_worker_runs_the_second_task() {
    let (runtime, workers) = start(2);
    let meeting = Arc::new((Mutex::new(0), Condvar::new()));
    let tasks = [0; 2].map(|_| {
        let meeting = meeting.clone();
        runtime.spawn(async move {
            let (count, changed) = &*meeting;
            let mut guard = lock(count);
            *guard += 1;
            changed.notify_all();
            while *guard < 2 {
                guard = wait(changed, count, guard, Duration::MAX);
            }
        })
    });
    for task in &tasks {
        result(&runtime, task).expect("ends");
    }
    drop(workers);
}

/// A task is cancelled and woken at the same time, or has ended before.
fn cancelled_task_ends_once() {
    let (runtime, workers) = start(1);
    let bell = Arc::new(Bell::new());
    let (alive, ended) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
    let end = Arc::new(Waiters::new());
    let mut job = {
        let (bell, held, alive) = (bell.clone(), alive.clone(), alive.clone());
        let (ended, end) = (ended.clone(), end.clone());
        let future = async move {
            let _held = held;
            bell.wait().await;
            vfiod_sync::point();
        };
        runtime.spawn_with(future, move |_| {
            // This closure's own, the caller's, and not the future's any more.
            if Arc::strong_count(&alive) == 2 {
                ended.fetch_add(1, Ordering::SeqCst);
            }
            end.wake_all();
        })
    };
    let other = spawn(move || bell.ring(None));
    job.cancel();
    let is_over = || (ended.load(Ordering::SeqCst) > 0).then_some(());
    runtime.wait_until(None, &end, is_over).expect("has no deadline");
    join(other);
    drop(workers);
    assert_eq!(ended.load(Ordering::SeqCst), 1);
    assert_eq!(Arc::strong_count(&alive), 1);
}

/// A thread waits for a condition that another thread makes true. There is no task.
fn thread_sees_its_condition() {
    for workers in [0, 1] {
        let runtime = Runtime::new().expect("starts");
        let workers = (workers > 0).then(|| Workers::start(&runtime, workers).expect("starts"));
        let flag = Arc::new((AtomicUsize::new(0), Waiters::new()));
        let sets = flag.clone();
        let other = spawn(move || {
            sets.0.store(1, Ordering::SeqCst);
            sets.1.wake_all();
        });
        let (value, waiters) = &*flag;
        let is_set = || (value.load(Ordering::SeqCst) == 1).then_some(());
        runtime.wait_until(None, waiters, is_set).expect("has no deadline");
        join(other);
        drop(workers);
    }
}

/// Two threads wait for tasks, of which each may run the other's.
fn threads_without_workers_run_tasks() {
    let runtime = Runtime::new().expect("starts");
    let bell = Arc::new(Bell::new());
    let waits = {
        let bell = bell.clone();
        runtime.spawn(async move { bell.wait().await })
    };
    let other = {
        let runtime = runtime.clone();
        spawn(move || {
            let rings = runtime.spawn(async move { bell.ring(None) });
            result(&runtime, &rings).expect("ends");
        })
    };
    result(&runtime, &waits).expect("ends");
    join(other);
}

/// A thread that never runs tasks rings while another one waits without workers.
fn ring_wakes_a_thread_without_workers() {
    let runtime = Runtime::new().expect("starts");
    let bell = Arc::new(Bell::new());
    let rings = bell.clone();
    let other = spawn(move || rings.ring(None));
    let task = runtime.spawn(async move { bell.wait().await });
    result(&runtime, &task).expect("ends");
    join(other);
}

/// The workers end while a thread waits for a task: the thread runs it.
fn thread_goes_on_without_the_workers() {
    let (runtime, workers) = start(1);
    let other = {
        let runtime = runtime.clone();
        spawn(move || {
            let task = runtime.spawn(async {});
            result(&runtime, &task).expect("ends");
        })
    };
    drop(workers);
    join(other);
}

/// A clock is moved while a task begins to wait for a time.
fn clock_is_moved_while_a_task_begins_to_sleep() {
    let clock = ManualClock::new();
    let runtime = Runtime::with_clock(&clock).expect("starts");
    let workers = Workers::start(&runtime, 1).expect("starts");
    let sleep = runtime.sleep(Duration::from_secs(1));
    let task = runtime.spawn(sleep);
    let other = spawn(move || clock.advance(Duration::from_secs(1)));
    result(&runtime, &task).expect("ends");
    join(other);
    drop(workers);
}

/// An index in shared memory, and the index at whose passing the other party rings.
#[derive(Default)]
struct SharedMemory {
    index: AtomicU32,
    event: AtomicU32,
}

impl SharedIndex for &SharedMemory {
    type Error = Infallible;

    fn publish(&mut self, event: u32) -> Result<(), Infallible> {
        self.event.store(event, Ordering::SeqCst);
        Ok(())
    }

    fn load(&mut self) -> Result<u32, Infallible> {
        Ok(self.index.load(Ordering::SeqCst))
    }
}

/// A task serves what another party stores to shared memory. It sleeps where it finds nothing; the other
/// party rings only if it moves past the event index. Rings for other reasons, such as messages, come
/// meanwhile.
fn store_to_shared_memory_wakes_a_task_that_falls_asleep() {
    const LAST: u32 = 3;
    let (runtime, workers) = start(1);
    let memory = Arc::new(SharedMemory::default());
    let bell = Arc::new(Bell::new());
    let (stores, rings) = (memory.clone(), bell.clone());
    let host = spawn(move || {
        for index in 1..=LAST {
            stores.index.store(index, Ordering::SeqCst);
            let event = stores.event.load(Ordering::SeqCst);
            if is_past_event(event as u16, index as u16 - 1, index as u16) {
                rings.ring(None);
            }
        }
    });
    let messages = bell.clone();
    let other = spawn(move || messages.ring(None));
    let task = runtime.spawn(async move {
        let mut seen = 0;
        while seen < LAST {
            bell.take();
            let Ok(mut index) = SharedIndex::load(&mut &*memory);
            if index == seen {
                Ok(index) = ask(&mut &*memory, seen);
            }
            if index == seen {
                bell.wait_for(|| bell.is_rung().then_some(())).await;
            }
            seen = index;
        }
    });
    result(&runtime, &task).expect("ends");
    join_all([host, other]);
    drop(workers);
}

/// What [`store_is_seen_by_a_worker_that_polls`] polls.
struct Page {
    memory: Arc<SharedMemory>,
    seen: AtomicU32,
    bell: Arc<Bell>,
}

impl Poll for Page {
    fn poll(&self) {
        let index = self.memory.index.load(Ordering::SeqCst);
        if self.seen.swap(index, Ordering::SeqCst) != index {
            self.bell.ring(None);
        }
    }
}

/// A task serves what another party stores, which rings nothing: a worker polls. A message comes meanwhile, and
/// a task of another device. At the end nothing is polled, and the workers end.
fn store_is_seen_by_a_worker_that_polls() {
    const LAST: u32 = 2;
    let (runtime, workers) = start(2);
    let (memory, bell) = (Arc::new(SharedMemory::default()), Arc::new(Bell::new()));
    let seat = runtime.poll_seat().expect("there is no limit");
    let page = Page { memory: memory.clone(), seen: AtomicU32::new(0), bell: bell.clone() };
    seat.start(Arc::new(page));
    let (stores, rings) = (memory.clone(), bell.clone());
    let host = spawn(move || {
        (1..=LAST).for_each(|index| stores.index.store(index, Ordering::SeqCst));
    });
    let other = spawn({
        let runtime = runtime.clone();
        move || {
            rings.ring(None);
            let neighbour = runtime.spawn(async { 7 });
            assert_eq!(result(&runtime, &neighbour).expect("ends"), 7);
        }
    });
    let task = runtime.spawn(async move {
        while memory.index.load(Ordering::SeqCst) < LAST {
            bell.wait().await;
        }
    });
    result(&runtime, &task).expect("ends");
    join_all([host, other]);
    drop(seat);
    drop(workers);
}

vfiod_sync::checks! {
    ring_wakes_a_worker: 2000,
    newest_value_arrives: 2000,
    each_ring_is_taken_once: 2000,
    worker_runs_what_others_start: 2000,
    second_worker_runs_the_second_task: 2000,
    cancelled_task_ends_once: 2000,
    thread_sees_its_condition: 2000,
    threads_without_workers_run_tasks: 2000,
    ring_wakes_a_thread_without_workers: 2000,
    thread_goes_on_without_the_workers: 2000,
    clock_is_moved_while_a_task_begins_to_sleep: 2000,
    store_to_shared_memory_wakes_a_task_that_falls_asleep: 2000,
    store_is_seen_by_a_worker_that_polls: 2000,
}
