//! Model checks of a device's work: closing its gate against all that passes it.

use std::panic::panic_any;
use std::sync::Arc;

use vfiod_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::{Mutex, lock, point};
use vfiod_tasks::contain::DeviceBug;
use vfiod_tasks::{Ring, Runtime, Waiters, Workers};

use crate::work::{Close, Rings, Task, TaskHandle, Work, WorkLimits};

/// A device's work, and what its data path and tasks do.
struct Fixture {
    runtime: Runtime,
    work: Arc<Work>,
    seen: Arc<Seen>,
    /// The device's lock; held while a step runs, and while the gate is closed.
    device: Arc<Mutex<()>>,
    panics: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Seen {
    /// Futures of tasks that have not been dropped, and calls that have not returned.
    inside: AtomicUsize,
    /// The gate is closed, and the device is idle.
    quiesced: AtomicBool,
    /// The newest value of the doorbell.
    value: AtomicU64,
    /// The value that was handled last.
    last: AtomicU64,
    /// Those who wait for a newer value.
    handled: Waiters,
}

impl Seen {
    fn handle(&self, ring: Ring) {
        let value = ring.value.expect("each ring has a value");
        self.value.fetch_max(value, SeqCst);
        self.last.store(value, SeqCst);
        self.handled.wake_all();
    }
}

/// One of those inside, until it is dropped.
struct Counted(Arc<Seen>);

impl Counted {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.inside.fetch_add(1, SeqCst);
        Self(seen.clone())
    }

    /// Does a piece of work.
    fn act(&self) {
        assert!(!self.0.quiesced.load(SeqCst), "work while the device is quiesced");
        point();
        assert!(!self.0.quiesced.load(SeqCst), "work while the device is quiesced");
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

impl Fixture {
    fn new() -> Self {
        let runtime = Runtime::new().expect("starts");
        let limits = WorkLimits { tasks: 4, bells: 1 };
        let panics = Arc::new(AtomicUsize::new(0));
        let count = panics.clone();
        let on_panic = Box::new(move |_: &str, _| {
            count.fetch_add(1, SeqCst);
        });
        let work = Arc::new(Work::new("d", runtime.clone(), limits, on_panic));
        Self { runtime, work, seen: Arc::default(), device: Arc::default(), panics }
    }

    /// Closes the gate, under the device's lock as the core does, and waits.
    fn quiesce(&self, how: Close) {
        let device = lock(&self.device);
        self.work.close(how);
        drop(device);
        self.runtime.block_on(None, self.work.idle()).expect("has no deadline");
        assert_eq!(self.seen.inside.load(SeqCst), 0, "idle, and something is inside");
        assert_eq!(self.work.list(), [], "idle, and a task is listed");
        self.seen.quiesced.store(true, SeqCst);
    }

    fn resume(&self, rings: Rings) {
        self.seen.quiesced.store(false, SeqCst);
        self.work.reopen(rings);
    }

    /// A task that handles the doorbell.
    fn start(&self) -> crate::Result<TaskHandle> {
        let seen = self.seen.clone();
        let make = |task: Task| async move {
            let counted = Counted::new(&seen);
            loop {
                let ring = task.bell(0).await;
                counted.act();
                // A place where a cancelled task ends, its ring unhandled.
                task.pause_point().await;
                seen.handle(ring);
            }
        };
        self.work.spawn("bell", make)
    }

    /// Waits until the doorbell's newest value has been handled.
    fn until_handled(&self, value: u64) {
        let handled = || (self.seen.value.load(SeqCst) >= value).then_some(());
        self.runtime.block_on(None, self.seen.handled.wait_for(handled)).expect("has no deadline");
    }
}

/// A data path is called, and the gate closes.
fn close_against_enter() {
    let fixture = Fixture::new();
    let threads = [0; 2].map(|_| {
        let (work, seen) = (fixture.work.clone(), fixture.seen.clone());
        spawn(move || {
            if let Some(_inside) = work.enter() {
                Counted::new(&seen).act();
            }
        })
    });
    fixture.quiesce(Close::Finish);
    assert!(fixture.work.enter().is_none());
    join_all(threads);
    assert!(fixture.work.is_idle());
}

/// A task is started, and the gate closes.
fn close_against_spawn() {
    for workers in [0, 1] {
        let fixture = Fixture::new();
        let workers = (workers > 0).then(|| Workers::start(&fixture.runtime, 1).expect("starts"));
        let (work, seen) = (fixture.work.clone(), fixture.seen.clone());
        let starts = spawn(move || {
            let make = |task: Task| async move {
                let counted = Counted::new(&seen);
                counted.act();
                task.bell(0).await;
            };
            work.spawn("starts", make).is_ok()
        });
        fixture.quiesce(Close::Cancel);
        join(starts);
        assert_eq!(fixture.work.list(), [], "a task is listed");
        drop(workers);
    }
}

/// A task takes steps under the device's lock, and the gate closes.
fn no_step_begins_after_a_cancel() {
    let fixture = Fixture::new();
    let closed = Arc::new(AtomicBool::new(false));
    let (device, is_closed) = (fixture.device.clone(), closed.clone());
    let make = |task: Task| async move {
        loop {
            let stopped = {
                let _device = lock(&device);
                let may_step = task.may_step();
                assert!(!may_step || !is_closed.load(SeqCst), "a step after the cancel");
                !may_step
            };
            if stopped {
                std::future::pending::<()>().await;
            }
            std::future::poll_fn(yield_once()).await;
        }
    };
    fixture.work.spawn("steps", make).expect("starts");
    let runs = {
        let runtime = fixture.runtime.clone();
        spawn(move || runtime.run())
    };
    let device = lock(&fixture.device);
    fixture.work.close(Close::Cancel);
    closed.store(true, SeqCst);
    drop(device);
    fixture.runtime.block_on(None, fixture.work.idle()).expect("has no deadline");
    join(runs);
}

fn yield_once() -> impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<()> {
    let mut yielded = false;
    move |cx| {
        cx.waker().wake_by_ref();
        if std::mem::replace(&mut yielded, true) { ().into() } else { std::task::Poll::Pending }
    }
}

/// A doorbell is rung while its task is stopped and started again: its newest value is handled.
fn no_ring_is_lost_by_a_task(how: Close) {
    let fixture = Fixture::new();
    let workers = Workers::start(&fixture.runtime, 1).expect("starts");
    fixture.start().expect("starts");
    let rings = {
        let work = fixture.work.clone();
        spawn(move || (1..=2).for_each(|value| work.ring(0, Some(value))))
    };
    fixture.quiesce(how);
    fixture.resume(Rings::Repeat);
    fixture.start().expect("starts");
    join(rings);
    fixture.until_handled(2);
    drop(workers);
}

fn no_ring_is_lost_by_a_cancelled_task() {
    no_ring_is_lost_by_a_task(Close::Cancel);
}

fn no_ring_is_lost_by_a_task_that_finishes() {
    no_ring_is_lost_by_a_task(Close::Finish);
}

/// A task waits for its doorbell before the gate opens, with nobody to start it again.
fn ring_at_an_opening_gate_wakes_the_task() {
    let fixture = Fixture::new();
    let workers = Workers::start(&fixture.runtime, 1).expect("starts");
    fixture.quiesce(Close::Finish);
    fixture.resume(Rings::Repeat);
    let task = fixture.start().expect("starts");
    let rings = {
        let work = fixture.work.clone();
        spawn(move || work.ring(0, Some(1)))
    };
    // An abandoned quiesce: the task may go on or end.
    fixture.work.close(Close::Finish);
    fixture.work.reopen(Rings::Repeat);
    join(rings);
    if fixture.work.find("bell").is_none() {
        fixture.runtime.block_on(None, task.gone()).expect("has no deadline");
        fixture.start().expect("starts");
    }
    fixture.until_handled(1);
    drop(workers);
}

/// A doorbell reaches a data path while the gate closes and opens again.
fn no_ring_is_lost_by_a_data_path() {
    let fixture = Fixture::new();
    let deliver = |seen: &Arc<Seen>| {
        let seen = seen.clone();
        move |ring: Ring| {
            Counted::new(&seen).act();
            seen.handle(ring);
        }
    };
    let rings = {
        let (work, deliver) = (fixture.work.clone(), deliver(&fixture.seen));
        spawn(move || (1..=2).for_each(|value| work.ring_through(0, Some(value), &deliver)))
    };
    fixture.quiesce(Close::Cancel);
    fixture.resume(Rings::Repeat);
    fixture.work.deliver_rings(|_, ring| deliver(&fixture.seen)(ring));
    join(rings);
    fixture.until_handled(2);
    assert_eq!(fixture.seen.last.load(SeqCst), 2, "an older value was delivered after the newest");
}

/// Two clients ring a doorbell at the same time: what the data path got last is what counts as the newest.
fn data_path_has_the_newest_value() {
    let fixture = Fixture::new();
    let rings = [1, 2].map(|value| {
        let (work, seen) = (fixture.work.clone(), fixture.seen.clone());
        spawn(move || {
            work.ring_through(0, Some(value), |ring| {
                point();
                seen.handle(ring);
            });
        })
    });
    join_all(rings);
    let newest = fixture.work.newest_ring(0).and_then(|ring| ring.value);
    assert_eq!(Some(fixture.seen.last.load(SeqCst)), newest, "an older value was delivered last");
}

/// A doorbell is rung while the device resumes: it reaches the data path when `resume` has returned.
fn no_ring_passes_before_the_resume() {
    let fixture = Fixture::new();
    fixture.quiesce(Close::Cancel);
    fixture.seen.quiesced.store(false, SeqCst);
    let (resumed, delivered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let deliver = {
        let (resumed, delivered) = (resumed.clone(), delivered.clone());
        move |_| {
            assert!(resumed.load(SeqCst), "a ring before the resume");
            delivered.fetch_add(1, SeqCst);
        }
    };
    let rings = {
        let (work, deliver) = (fixture.work.clone(), deliver.clone());
        spawn(move || work.ring_through(0, Some(1), deliver))
    };
    fixture.work.reopen_after(Rings::Repeat, || {
        point();
        resumed.store(true, SeqCst);
    });
    fixture.work.deliver_rings(|_, ring| deliver(ring));
    join(rings);
    assert_eq!(delivered.load(SeqCst), 1, "lost or delivered twice");
}

/// A save that is to finish is overtaken by a last close that cancels; both wait.
fn two_who_close_both_see_it_idle() {
    let fixture = Arc::new(Fixture::new());
    fixture.start().expect("starts");
    let make = |_| std::future::pending::<()>();
    fixture.work.spawn("never ends", make).expect("starts");
    let other = {
        let fixture = fixture.clone();
        spawn(move || {
            fixture.work.close(Close::Finish);
            fixture.runtime.block_on(None, fixture.work.idle()).expect("has no deadline");
        })
    };
    fixture.work.close(Close::Cancel);
    fixture.runtime.block_on(None, fixture.work.idle()).expect("has no deadline");
    join(other);
    assert_eq!(fixture.work.list(), []);
}

/// A task panics while the gate closes: it is reported before the device is idle.
fn task_panics_while_the_gate_closes() {
    let fixture = Fixture::new();
    let workers = Workers::start(&fixture.runtime, 1).expect("starts");
    let seen = fixture.seen.clone();
    let started = Arc::new(AtomicBool::new(false));
    let start = started.clone();
    let make = |_| async move {
        let _counted = Counted::new(&seen);
        start.store(true, SeqCst);
        panic_any(DeviceBug);
    };
    fixture.work.spawn("panics", make).expect("starts");
    fixture.quiesce(Close::Cancel);
    let panics = usize::from(started.load(SeqCst));
    assert_eq!(fixture.panics.load(SeqCst), panics, "idle before the panic was reported");
    drop(workers);
}

/// One task is stopped, as a model stops one of its queues, while it is rung.
fn one_task_is_stopped() {
    let fixture = Fixture::new();
    let task = fixture.start().expect("starts");
    let rings = {
        let work = fixture.work.clone();
        spawn(move || work.ring(0, Some(1)))
    };
    task.cancel();
    fixture.runtime.block_on(None, task.gone()).expect("has no deadline");
    assert_eq!(fixture.seen.inside.load(SeqCst), 0, "gone, and its future is not dropped");
    join(rings);
    assert_eq!(fixture.work.list(), []);
}

/// One queue is stopped, which a data path and a task serve, and resumed: nothing of it works in
/// between, and no ring is lost.
fn queue_is_stopped_and_resumed() {
    let fixture = Fixture::new();
    let workers = Workers::start(&fixture.runtime, 1).expect("starts");
    let task = fixture.start().expect("starts");
    let queue = fixture.work.queue([0], [task]);
    let rings = {
        let (work, seen) = (fixture.work.clone(), fixture.seen.clone());
        spawn(move || {
            work.ring(0, Some(1));
            work.ring_through(0, Some(2), |ring| {
                Counted::new(&seen).act();
                seen.value.fetch_max(ring.value.expect("each ring has a value"), SeqCst);
            });
        })
    };
    queue.quiesce(Close::Finish);
    fixture.runtime.block_on(None, queue.idle()).expect("has no deadline");
    assert_eq!(fixture.seen.inside.load(SeqCst), 0, "idle, and something of the queue is inside");
    fixture.seen.quiesced.store(true, SeqCst);
    point();
    fixture.seen.quiesced.store(false, SeqCst);
    queue.resume(Rings::Repeat);
    fixture.start().expect("starts");
    join(rings);
    fixture.until_handled(2);
    drop(workers);
}

vfiod_sync::checks! {
    queue_is_stopped_and_resumed: 1000,
    close_against_enter: 1000,
    close_against_spawn: 500,
    no_step_begins_after_a_cancel: 1000,
    no_ring_is_lost_by_a_cancelled_task: 1000,
    no_ring_is_lost_by_a_task_that_finishes: 1000,
    ring_at_an_opening_gate_wakes_the_task: 1000,
    no_ring_is_lost_by_a_data_path: 1000,
    data_path_has_the_newest_value: 1000,
    no_ring_passes_before_the_resume: 1000,
    two_who_close_both_see_it_idle: 1000,
    task_panics_while_the_gate_closes: 1000,
    one_task_is_stopped: 1000,
}
