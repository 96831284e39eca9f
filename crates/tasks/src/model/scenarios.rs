//! Small programs of a few threads and tasks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use vfiod_sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::{Condvar, Mutex, lock, wait};

use crate::event_index::{SharedIndex, ask, is_past_event};
use crate::{
    Bell, Completions, Ended, Group, Job, ManualClock, Poll, Runtime, Task, Waiters, Workers,
};

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

/// A task of a group that counts the rings that it has taken, until it has taken a last one.
fn counts(runtime: &Runtime, group: &Group, bell: &Arc<Bell>) -> (Job, Arc<Taken>) {
    let taken = Arc::new(Taken::default());
    let (bell, counts) = (bell.clone(), taken.clone());
    let future = async move {
        while bell.wait().await.value != Some(LAST_RING) {}
        counts.set();
    };
    (runtime.spawn_in(group, future, |_| {}), taken)
}

const LAST_RING: u64 = 2;

/// Whether a task has taken the last ring. Threads that wait for that run no tasks.
#[derive(Default)]
struct Taken {
    taken: Mutex<bool>,
    changed: Condvar,
}

impl Taken {
    fn set(&self) {
        *lock(&self.taken) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut taken = lock(&self.taken);
        while !*taken {
            taken = wait(&self.changed, &self.taken, taken, Duration::MAX);
        }
    }
}

/// A thread keeps the task that it makes ready, and runs it, while a worker falls asleep and another thread rings,
/// too.
fn kept_task_takes_all_rings() {
    let (runtime, workers) = start(1);
    let (group, bell) = (Group::new(), Arc::new(Bell::new()));
    let (job, taken) = counts(&runtime, &group, &bell);
    let other = spawn({
        let bell = bell.clone();
        move || bell.ring(Some(1))
    });
    {
        let keeper = runtime.keeper().expect("there are workers");
        group.keep(|| bell.ring(Some(1)));
        keeper.run();
        join(other);
        group.keep(|| bell.ring(Some(LAST_RING)));
        keeper.run();
    }
    taken.wait();
    drop(job);
    drop(workers);
}

/// A thread that keeps a task waits for it, or has no keeper any more.
fn kept_task_is_handed_over() {
    for waits in [true, false] {
        let (runtime, workers) = start(1);
        let (group, bell) = (Group::new(), Arc::new(Bell::new()));
        let (job, taken) = counts(&runtime, &group, &bell);
        let keeper = runtime.keeper().expect("there are workers");
        group.keep(|| bell.ring(Some(LAST_RING)));
        if waits {
            let end = runtime.spawn(async {});
            result(&runtime, &end).expect("ends");
        } else {
            drop(keeper);
        }
        taken.wait();
        drop(job);
        drop(workers);
    }
}

/// A ring makes two tasks ready, of which the thread keeps one: a worker runs the other, whatever the thread does.
fn task_beside_a_kept_one_wakes_a_worker() {
    let (runtime, workers) = start(1);
    let (group, bells) = (Group::new(), [0; 2].map(|_| Arc::new(Bell::new())));
    let tasks = bells.each_ref().map(|bell| counts(&runtime, &group, bell));
    let keeper = runtime.keeper().expect("there are workers");
    group.keep(|| bells.iter().for_each(|bell| bell.ring(Some(LAST_RING))));
    let second = tasks[1].1.clone();
    if keeper.holds() {
        // Whichever is kept, the other one does not wait for it.
        let first = tasks[0].1.clone();
        let either = Arc::new(Taken::default());
        for taken in [first, second] {
            let either = either.clone();
            spawn(move || {
                taken.wait();
                either.set();
            });
        }
        either.wait();
    }
    keeper.run();
    tasks.iter().for_each(|(_, taken)| taken.wait());
    drop(keeper);
    drop(tasks);
    drop(workers);
}

/// A thread that keeps a task of one group rings for another, whose task a worker runs.
fn task_of_another_group_is_not_kept() {
    let (runtime, workers) = start(1);
    let (groups, bells) = ([Group::new(), Group::new()], [0; 2].map(|_| Arc::new(Bell::new())));
    let tasks = [0, 1].map(|at| counts(&runtime, &groups[at], &bells[at]));
    let keeper = runtime.keeper().expect("there are workers");
    groups[0].keep(|| bells[1].ring(Some(LAST_RING)));
    tasks[1].1.wait();
    bells[0].ring(Some(LAST_RING));
    tasks[0].1.wait();
    drop(keeper);
    drop(tasks);
    drop(workers);
}

/// A request that completes elsewhere, and who waits for it.
#[derive(Default)]
struct Request {
    completed: AtomicBool,
    taken: AtomicBool,
    waiters: Waiters,
}

impl Poll for Request {
    fn poll(&self) {
        if self.completed.swap(false, Ordering::SeqCst) {
            self.taken.store(true, Ordering::SeqCst);
            self.waiters.wake_all();
        }
    }
}

impl Request {
    /// A task of a group that waits for it.
    fn awaited(self: &Arc<Self>, runtime: &Runtime, group: &Group) -> (Job, Arc<Taken>) {
        let taken = Arc::new(Taken::default());
        let (request, sees) = (self.clone(), taken.clone());
        let future = async move {
            let is_taken = || request.taken.load(Ordering::SeqCst).then_some(());
            request.waiters.wait_for(is_taken).await;
            sees.set();
        };
        (runtime.spawn_in(group, future, |_| {}), taken)
    }
}

/// A request completes while the worker falls asleep.
fn completion_wakes_a_worker() {
    let (runtime, workers) = start(1);
    let request = Arc::new(Request::default());
    let completions = Arc::new(runtime.completions(request.clone()));
    let (job, taken) = request.awaited(&runtime, &Group::new());
    let signals = completions.clone();
    let kernel = spawn(move || {
        request.completed.store(true, Ordering::SeqCst);
        signals.signal();
    });
    taken.wait();
    join(kernel);
    drop((job, completions));
    drop(workers);
}

/// Two requests complete while a thread that polls looks, and stops to look. It runs one of the tasks that it
/// keeps, or none.
fn completions_are_taken_while_a_thread_looks() {
    for runs in [false, true] {
        let (runtime, workers) = start(1);
        let group = Group::new();
        let requests = [0; 2].map(|_| Arc::new(Request::default()));
        let completions = requests.each_ref().map(|request| runtime.completions(request.clone()));
        let completions = Arc::new(completions);
        let tasks = requests.each_ref().map(|request| request.awaited(&runtime, &group));
        let signals = completions.clone();
        let kernel = spawn(move || {
            requests.iter().for_each(|request| request.completed.store(true, Ordering::SeqCst));
            signals.iter().for_each(Completions::signal);
        });
        let keeper = runtime.keeper().expect("there are workers");
        for _ in 0..2 {
            keeper.look(&group);
            vfiod_sync::point();
        }
        if runs {
            keeper.run();
        }
        drop(keeper);
        tasks.iter().for_each(|(_, taken)| taken.wait());
        join(kernel);
        drop((tasks, completions));
        drop(workers);
    }
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
    kept_task_takes_all_rings: 2000,
    kept_task_is_handed_over: 1000,
    task_beside_a_kept_one_wakes_a_worker: 2000,
    task_of_another_group_is_not_kept: 2000,
    completion_wakes_a_worker: 2000,
    completions_are_taken_while_a_thread_looks: 2000,
}
