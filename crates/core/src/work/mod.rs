//! A device's tasks, and doorbells that reach its data path without the device's lock.
//!
//! Both pass a gate. While that is closed nothing new begins; when nothing is inside, the device is
//! *idle*. A ring of a doorbell at a closed gate is remembered. A part of the work, such as a queue of
//! the device, can be stopped by itself ([`Queue`]).

mod gate;
mod queue;
#[cfg(all(test, not(any(shuttle, loom))))]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use vfiod_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vfiod_sync::{FairMutex, Mutex, lock};
use vfiod_tasks::contain::Panicked;
use vfiod_tasks::{Bell, Ended, Group, Job, Keeper, Ring, Runtime, Sleep, Timeout, Waiters};

use crate::error::{Errno, Error, Result};

pub use gate::{Close, GateState, Inside};
pub use queue::Queue;

/// Limits of one device's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkLimits {
    /// Tasks at the same time.
    pub tasks: usize,
    /// Its doorbells.
    pub bells: usize,
}

/// Called when a task of a device has panicked, with the task's name. Holds no lock.
pub type OnPanic = Box<dyn Fn(&str, Panicked) + Send + Sync>;

/// The work of one device. Dropping it cancels its tasks.
pub struct Work {
    shared: Arc<Shared>,
}

struct Shared {
    device: String,
    runtime: Runtime,
    /// The device's tasks take their turns as one.
    group: Group,
    on_panic: OnPanic,
    max_tasks: usize,
    gate: gate::Gate,
    bells: Box<[Doorbell]>,
    tasks: Mutex<Tasks>,
}

/// A doorbell of the device.
#[derive(Default)]
struct Doorbell {
    bell: Bell,
    /// Closed while the doorbell's queue is stopped; counts the calls of the data path for it.
    gate: gate::Gate,
    /// Held from the taking of a ring until the data path has it: another thread, which takes a newer
    /// value, must not be faster.
    delivery: FairMutex<()>,
    /// A ring was left to whoever holds `delivery`.
    left: AtomicBool,
}

#[derive(Default)]
struct Tasks {
    last_id: u64,
    by_id: BTreeMap<u64, Entry>,
}

struct Entry {
    task: Arc<TaskShared>,
    /// `None` while the task is being started, and once it has been cancelled.
    job: Option<Job>,
}

/// What others see of a task.
struct TaskShared {
    id: u64,
    name: String,
    started: Instant,
    cancelled: AtomicBool,
    /// Its queue is to quiesce: it ends at its next wait for a doorbell. Changed with the list
    /// locked.
    finishing: AtomicBool,
    running: AtomicBool,
    polls: AtomicU64,
    nanoseconds: AtomicU64,
    steps: AtomicU64,
    gone: AtomicBool,
    on_gone: Waiters,
}

thread_local! {
    /// The task that this thread polls.
    static POLLED: RefCell<Option<Arc<TaskShared>>> = const { RefCell::new(None) };
}

/// What the thread polled before, put back when this is dropped, also by a panic. Takes the task, and
/// gives it back: a clone would cost each poll two atomic operations.
struct Polled {
    before: Option<Option<Arc<TaskShared>>>,
}

impl Polled {
    fn enter(task: Arc<TaskShared>) -> Self {
        Self { before: Some(POLLED.replace(Some(task))) }
    }

    fn leave(mut self) -> Option<Arc<TaskShared>> {
        POLLED.replace(self.before.take().flatten())
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            POLLED.set(before);
        }
    }
}

/// How far a task has come, for those whom it calls: a client that replays a session must know whether
/// a device that was restored repeats a request.
#[derive(Clone)]
pub struct TaskProgress {
    task: Arc<TaskShared>,
}

impl TaskProgress {
    /// The progress of the task that the calling thread polls; `None` outside of one.
    pub fn current() -> Option<Self> {
        POLLED.with_borrow(|task| task.clone().map(|task| Self { task }))
    }

    /// The name that the device gave the task.
    pub fn name(&self) -> &str {
        &self.task.name
    }

    /// How many steps have ended, each of which may have changed the device's state. A device that is
    /// restored starts the task's work again from the last of them.
    pub fn steps(&self) -> u64 {
        self.task.steps.load(Ordering::Acquire)
    }

    /// Whether the task has ended or was cancelled.
    pub fn has_ended(&self) -> bool {
        self.task.is_cancelled() || self.task.gone.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for TaskProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, steps) = (self.name(), self.steps());
        f.debug_struct("TaskProgress").field("name", &name).field("steps", &steps).finish()
    }
}

/// What a task does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It runs, or is about to.
    Running,
    /// It waits.
    Waiting,
    /// It was cancelled, and its future has not been dropped yet.
    Cancelled,
}

/// A task, as [`Work::list`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// Different for each task of the device.
    pub id: u64,
    /// The name that the device gave it.
    pub name: String,
    /// What it does at the moment.
    pub state: TaskState,
    /// Time since it was started.
    pub age: Duration,
    /// How often it was run.
    pub polls: u64,
    /// How long it ran in all; what it does now is not in it.
    pub run: Duration,
}

impl Work {
    /// A device without work, its gate open.
    pub fn new(device: &str, runtime: Runtime, limits: WorkLimits, on_panic: OnPanic) -> Self {
        let shared = Shared {
            device: device.to_owned(),
            runtime,
            group: Group::new(),
            on_panic,
            max_tasks: limits.tasks,
            gate: gate::Gate::default(),
            bells: (0..limits.bells).map(|_| Doorbell::default()).collect(),
            tasks: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts a task. `make` makes its future, on the calling thread, with no lock of this held.
    ///
    /// # Errors
    /// `EAGAIN`: the device has its largest number of tasks; `EBUSY`: its gate is closed.
    pub fn spawn<F>(&self, name: &str, make: impl FnOnce(Task) -> F) -> Result<TaskHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.shared.spawn(name, make)
    }

    /// What runs the tasks.
    pub fn runtime(&self) -> &Runtime {
        &self.shared.runtime
    }

    /// Finds a task by its name; one that was cancelled is not found. For a resume after an abandoned
    /// quiesce, when some tasks have ended and others have not.
    pub fn find(&self, name: &str) -> Option<TaskHandle> {
        let tasks = lock(&self.shared.tasks);
        let mut live = tasks.by_id.values().filter(|entry| !entry.task.is_cancelled());
        let task = live.find(|entry| entry.task.name == name)?.task.clone();
        Some(TaskHandle { work: self.shared.clone(), task })
    }

    /// The tasks, in the order in which they were started.
    pub fn list(&self) -> Vec<TaskInfo> {
        lock(&self.shared.tasks).by_id.values().map(|entry| entry.task.info()).collect()
    }

    /// The state of the gate.
    pub fn state(&self) -> GateState {
        self.shared.gate.state()
    }

    /// Goes inside for a call that does not take the device's lock, if the gate is open.
    #[inline]
    pub fn enter(&self) -> Option<Inside<'_>> {
        self.shared.gate.pass()
    }

    /// Closes the gate. From now on nothing begins: no task, no call through [`Work::enter`], and
    /// no task takes a ring.
    ///
    /// [`Close::Finish`]: tasks go on until they end. One that waits for a doorbell, now or later,
    /// ends there. [`Close::Cancel`]: the future of each task is dropped at its next await, and no
    /// step begins. A gate that was closed with `Finish` can be closed with `Cancel`, too.
    pub fn close(&self, how: Close) {
        self.shared.gate.close(how);
        if how == Close::Cancel {
            self.shared.cancel_all();
        } else {
            // Those who wait for a doorbell end.
            self.shared.bells.iter().for_each(|doorbell| doorbell.bell.wake());
        }
    }

    /// Whether the gate is closed and nothing is inside: no task, no call.
    pub fn is_idle(&self) -> bool {
        self.state() == GateState::Closed
    }

    /// Waits until the device is idle.
    pub async fn idle(&self) {
        self.shared.gate.idle.wait_for(|| self.is_idle().then_some(())).await;
    }

    /// Blocks the calling thread until the device is idle, or until the runtime's clock shows
    /// `deadline`. Returns whether it is idle. The thread runs tasks meanwhile if the runtime has
    /// no workers; it must hold no lock that a task of any device takes.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        let is_idle = || self.is_idle().then_some(());
        self.shared.runtime.wait_until(Some(deadline), &self.shared.gate.idle, is_idle).is_some()
    }

    /// Opens the gate. Tasks that were cancelled and are not gone yet stay cancelled.
    ///
    /// [`Rings::Repeat`] follows what can be resumed: whoever took the last ring of a doorbell may
    /// have been cancelled before it acted on it. So each doorbell that was ever rung is rung
    /// again, with its newest value. [`Rings::RepeatAll`]
    /// follows a close, [`Rings::Forget`] a reset.
    ///
    /// Tasks that wait for a doorbell are woken. [`Work::deliver_rings`] hands pending rings to a
    /// data path.
    pub fn reopen(&self, rings: Rings) {
        self.reopen_after(rings, || ());
    }

    /// Opens the gate as [`Work::reopen`], in two steps: first for tasks, then, when `resume` has
    /// returned, for calls and rings. Rings that come meanwhile are remembered.
    pub fn reopen_after<R>(&self, rings: Rings, resume: impl FnOnce() -> R) -> R {
        for Doorbell { bell, gate, .. } in &self.shared.bells {
            match rings {
                Rings::Repeat => bell.repeat_silently(),
                Rings::RepeatAll => {
                    bell.repeat_silently();
                    gate.reopen();
                }
                Rings::Forget => {
                    bell.forget();
                    // Of the queues that were stopped before a reset nothing is left.
                    gate.reopen();
                }
            }
        }
        {
            // A task that ends as the gate is closed decides that under this lock.
            let _tasks = lock(&self.shared.tasks);
            self.shared.gate.resume();
        }
        let resumed = resume();
        self.shared.gate.open();
        // A ring that came before the gate was open woke no task.
        self.shared.bells.iter().for_each(Doorbell::wake_if_rung);
        resumed
    }

    /// Delivers the pending rings to a data path, inside the gate: those that came while it, or the
    /// doorbell's queue, was stopped.
    ///
    /// A data path may call this, too, for a ring that it is just getting: what another thread, or this
    /// one further down its stack, is delivering to is left to that delivery, which looks again.
    pub fn deliver_rings(&self, mut deliver: impl FnMut(usize, Ring)) {
        for (at, doorbell) in self.shared.bells.iter().enumerate() {
            doorbell.left.swap(true, Ordering::AcqRel);
            self.deliver_left(doorbell, |ring| deliver(at, ring));
        }
    }

    /// Delivers what was left to whoever delivers a ring of the doorbell, unless a further one does.
    #[cold]
    fn deliver_left(&self, doorbell: &Doorbell, mut deliver: impl FnMut(Ring)) {
        while doorbell.has_left() {
            let Some(turn) = doorbell.delivery.try_lock_for(Duration::ZERO) else { return };
            doorbell.left.swap(false, Ordering::AcqRel);
            self.deliver_pending(doorbell, &mut deliver);
            drop(turn);
        }
    }

    /// Delivers a ring that is pending. `delivery` is held.
    #[inline]
    fn deliver_pending(&self, doorbell: &Doorbell, deliver: impl FnOnce(Ring)) {
        if let Some(_inside) = self.enter()
            && let Some(_queue) = doorbell.gate.pass()
            && let Some(ring) = doorbell.bell.take()
        {
            deliver(ring);
        }
    }

    /// How many doorbells the device has.
    pub fn bells(&self) -> usize {
        self.shared.bells.len()
    }

    /// The newest ring of a doorbell since the beginning, or since a reset; `None`: there was none, or
    /// the device does not have the doorbell.
    pub fn newest_ring(&self, bell: usize) -> Option<Ring> {
        self.shared.bells.get(bell)?.bell.newest()
    }

    /// Forgets all rings, and remembers these. Whoever opens the gate delivers them.
    pub fn restore_rings(&self, rings: impl IntoIterator<Item = (usize, Ring)>) {
        self.shared.bells.iter().for_each(|doorbell| doorbell.bell.forget());
        for (bell, ring) in rings {
            if let Some(doorbell) = self.shared.bells.get(bell) {
                doorbell.bell.ring_silently(ring.value);
            }
        }
    }

    /// Lets the calling thread run tasks of the device that its rings make ready ([`Work::keep`]).
    pub fn keeper(&self) -> Option<Keeper<'_>> {
        self.shared.runtime.keeper()
    }

    /// Calls `ring`, which rings a doorbell: the task that it makes ready may be kept for the calling thread.
    #[inline]
    pub fn keep<R>(&self, ring: impl FnOnce() -> R) -> R {
        self.shared.group.keep(ring)
    }

    /// Takes what has completed for tasks of the runtime. Those of the device that this makes ready are kept for
    /// the calling thread.
    pub fn look(&self, keeper: &Keeper<'_>) {
        keeper.look(&self.shared.group);
    }

    /// Rings a doorbell for the task that waits for it. At a closed gate the ring is remembered.
    /// A doorbell that the device does not have is ignored.
    #[inline]
    pub fn ring(&self, bell: usize, value: Option<u64>) {
        let Some(Doorbell { bell, .. }) = self.shared.bells.get(bell) else { return };
        // Remembered first, so that it is either seen by `reopen` or sees the gate open.
        if bell.ring_silently(value) && self.state() == GateState::Open {
            bell.wake();
        }
    }

    /// Rings a doorbell that reaches a data path: `deliver` is called inside the gate, for one thread at a
    /// time, each with a value newer than the one before. At a closed gate the ring is remembered. Waits while
    /// another thread delivers a ring of the doorbell: a data path must not call this.
    #[inline]
    pub fn ring_through(&self, bell: usize, value: Option<u64>, mut deliver: impl FnMut(Ring)) {
        let Some(doorbell) = self.shared.bells.get(bell) else { return };
        doorbell.bell.ring_silently(value);
        let turn = doorbell.delivery.lock();
        self.deliver_pending(doorbell, &mut deliver);
        drop(turn);
        if doorbell.has_left() {
            self.deliver_left(doorbell, deliver);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.close(Close::Cancel);
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = lock(&self.shared.tasks).by_id.len();
        f.debug_struct("Work").field("state", &self.state()).field("tasks", &tasks).finish()
    }
}

/// What [`Work::reopen`] does with doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// Those that were ever rung are rung again.
    Repeat,
    /// Those that were ever rung are rung again, and of the queues that were stopped nothing is left:
    /// the device was closed, and has retained its state.
    RepeatAll,
    /// Rings from before are forgotten.
    Forget,
}

impl Shared {
    fn spawn<F>(self: &Arc<Self>, name: &str, make: impl FnOnce(Task) -> F) -> Result<TaskHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = self.enlist(name)?;
        let handle = TaskHandle { work: self.clone(), task: task.clone() };
        // Takes the task off the list again if `make` panics.
        let mut unmade = Unmade(Some((self.clone(), task.clone())));
        let future = make(Task { work: self.clone(), task: task.clone() });
        unmade.0 = None;
        let (work, ended) = (self.clone(), task.clone());
        let future = Accounted { future, task: Some(task.clone()) };
        let job = self.runtime.spawn_in(&self.group, future, move |outcome| {
            if let Err(Ended::Panicked(panic)) = outcome {
                (work.on_panic)(&ended.name, panic);
            }
            work.strike_out(&ended);
        });
        self.keep(&task, job);
        Ok(handle)
    }

    /// Puts a task on the list, inside the gate.
    fn enlist(&self, name: &str) -> Result<Arc<TaskShared>> {
        let mut tasks = lock(&self.tasks);
        if tasks.by_id.len() >= self.max_tasks {
            let (device, max) = (&self.device, self.max_tasks);
            let what = format!("{device}: cannot start task {name}: limit of {max} tasks reached");
            return Err(Error::new(Errno::AGAIN, what));
        }
        // With the lock held: whoever closes the gate takes it then, and finds this task.
        if !self.gate.enter_task() {
            let what = format!("{}: cannot start task {name}: it is being stopped", self.device);
            return Err(Error::new(Errno::BUSY, what));
        }
        tasks.last_id += 1;
        let task = Arc::new(TaskShared {
            id: tasks.last_id,
            name: name.to_owned(),
            started: Instant::now(),
            cancelled: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            running: AtomicBool::new(false),
            polls: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            on_gone: Waiters::new(),
        });
        tasks.by_id.insert(task.id, Entry { task: task.clone(), job: None });
        Ok(task)
    }

    /// Keeps the job of a task that has been started, unless it has ended or been cancelled.
    fn keep(&self, task: &TaskShared, job: Job) {
        let mut job = Some(job);
        if let Some(entry) = lock(&self.tasks).by_id.get_mut(&task.id)
            && !task.is_cancelled()
        {
            entry.job = job.take();
        }
        // Dropped without the lock; this cancels the task, unless it has ended.
        drop(job);
    }

    /// Takes a task off the list, and out of the gate.
    fn strike_out(&self, task: &TaskShared) {
        let entry = lock(&self.tasks).by_id.remove(&task.id);
        if let Some(Entry { job: Some(job), .. }) = entry {
            job.detach();
        }
        task.gone.store(true, Ordering::SeqCst);
        task.on_gone.wake_all();
        self.gate.leave();
    }

    fn cancel(&self, task: &TaskShared) {
        let job = {
            let mut tasks = lock(&self.tasks);
            task.cancelled.store(true, Ordering::SeqCst);
            tasks.by_id.get_mut(&task.id).and_then(|entry| entry.job.take())
        };
        // Without the lock: this may drop the future, if the runtime has ended.
        drop(job);
    }

    /// Cancels a task unless it is to go on again meanwhile; returns whether it ends.
    fn ends_here(&self, task: &TaskShared) -> bool {
        let job = {
            let mut tasks = lock(&self.tasks);
            let is_open = matches!(self.gate.state(), GateState::Open | GateState::Resuming);
            if is_open && !task.is_finishing() {
                return task.is_cancelled();
            }
            task.cancelled.store(true, Ordering::SeqCst);
            tasks.by_id.get_mut(&task.id).and_then(|entry| entry.job.take())
        };
        drop(job);
        true
    }

    fn cancel_all(&self) {
        let jobs: Vec<Job> = {
            let mut tasks = lock(&self.tasks);
            let cancel = |entry: &mut Entry| {
                entry.task.cancelled.store(true, Ordering::SeqCst);
                entry.job.take()
            };
            tasks.by_id.values_mut().filter_map(cancel).collect()
        };
        drop(jobs);
    }
}

/// A task whose future is being made.
struct Unmade(Option<(Arc<Shared>, Arc<TaskShared>)>);

impl Drop for Unmade {
    fn drop(&mut self) {
        if let Some((work, task)) = &self.0 {
            work.strike_out(task);
        }
    }
}

impl Doorbell {
    /// Whether a ring was left to the delivery that has just ended. Reads and writes, so that who leaves one
    /// after this finds the delivery ended.
    #[inline]
    fn has_left(&self) -> bool {
        self.left.fetch_or(false, Ordering::AcqRel)
    }

    fn wake_if_rung(&self) {
        if self.bell.is_rung() {
            self.bell.wake();
        }
    }
}

impl TaskShared {
    fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn info(&self) -> TaskInfo {
        let state = match () {
            () if self.is_cancelled() => TaskState::Cancelled,
            () if self.running.load(Ordering::Relaxed) => TaskState::Running,
            () => TaskState::Waiting,
        };
        TaskInfo {
            id: self.id,
            name: self.name.clone(),
            state,
            age: self.started.elapsed(),
            polls: self.polls.load(Ordering::Relaxed),
            run: Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}

pin_project! {
    /// The future of a task, whose polls are counted.
    struct Accounted<F> {
        #[pin]
        future: F,
        // `None` while the future is polled, and after a panic.
        task: Option<Arc<TaskShared>>,
    }
}

impl<F: Future> Future for Accounted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(task) = this.task.take() else { return Poll::Pending };
        task.running.store(true, Ordering::Relaxed);
        let start = Instant::now();
        let polled = Polled::enter(task);
        let poll = this.future.poll(cx);
        let Some(task) = polled.leave() else { return poll };
        let time = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        task.running.store(false, Ordering::Relaxed);
        task.polls.fetch_add(1, Ordering::Relaxed);
        task.nanoseconds.fetch_add(time, Ordering::Relaxed);
        *this.task = Some(task);
        poll
    }
}

/// What a task has of its device. Cheap to clone.
#[derive(Clone)]
pub struct Task {
    work: Arc<Shared>,
    task: Arc<TaskShared>,
}

impl Task {
    /// The name that the device gave the task.
    pub fn name(&self) -> &str {
        &self.task.name
    }

    /// Cancels this task: its future is dropped at its next await. It is not found any more.
    pub fn cancel(&self) {
        self.work.cancel(&self.task);
    }

    /// Starts another task of the device, as [`Work::spawn`].
    ///
    /// # Errors
    /// As [`Work::spawn`].
    pub fn spawn<F>(&self, name: &str, make: impl FnOnce(Task) -> F) -> Result<TaskHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.work.spawn(name, make)
    }

    /// What runs the task.
    pub fn runtime(&self) -> &Runtime {
        &self.work.runtime
    }

    /// Whether the task may begin a step, that is, has not been cancelled. Asked with the
    /// device's lock held, the answer stays true while the lock is held, if whoever closes the
    /// gate holds it, too.
    pub fn may_step(&self) -> bool {
        !self.task.is_cancelled()
    }

    /// Counts a step that has ended.
    pub(crate) fn count_step(&self) {
        self.task.steps.fetch_add(1, Ordering::Release);
    }

    /// Waits for a ring of a doorbell of the device. While the gate is closed no ring is taken: in
    /// [`GateState::Finishing`] the task ends here.
    ///
    /// A doorbell that the device does not have is never rung.
    pub async fn bell(&self, bell: usize) -> Ring {
        let Some(doorbell) = self.work.bells.get(bell) else { return std::future::pending().await };
        let Doorbell { bell, gate, .. } = doorbell;
        let take = || match self.work.gate.state() {
            GateState::Resuming => None,
            _ if !self.may_begin_or_ends() || gate.state() != GateState::Open => None,
            _ => bell.take(),
        };
        bell.wait_for(take).await
    }

    /// Ends the task if the device is to quiesce. A task calls this between two pieces of work, if it
    /// has nothing to wait for there.
    pub async fn pause_point(&self) {
        if !self.may_begin_or_ends() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the task may begin a piece of work. In [`GateState::Finishing`] it is cancelled, because
    /// it is at a point from which it can be started again.
    fn may_begin_or_ends(&self) -> bool {
        match self.work.gate.state() {
            GateState::Open | GateState::Resuming if !self.task.is_finishing() => {
                !self.task.is_cancelled()
            }
            GateState::Open | GateState::Resuming | GateState::Finishing => {
                !self.work.ends_here(&self.task)
            }
            GateState::Cancelling | GateState::Closed => false,
        }
    }

    /// Waits for a time, by the runtime's clock.
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.work.runtime.sleep(time)
    }

    /// Waits for a future, for a limited time. The future is dropped with what is returned.
    pub fn timeout<F: Future>(&self, time: Duration, future: F) -> Timeout<F> {
        self.work.runtime.timeout(time, future)
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("name", &self.task.name).finish_non_exhaustive()
    }
}

/// A handle to cancel a task or to wait for its end, such as that of one queue. Dropping it does not
/// affect the task.
#[derive(Clone)]
pub struct TaskHandle {
    work: Arc<Shared>,
    task: Arc<TaskShared>,
}

impl TaskHandle {
    /// Cancels the task: its future is dropped at its next await, and it begins no step.
    pub fn cancel(&self) {
        self.work.cancel(&self.task);
    }

    /// Whether the task's future has been dropped.
    pub fn is_gone(&self) -> bool {
        self.task.gone.load(Ordering::SeqCst)
    }

    /// Waits until the task's future has been dropped. A task must not wait for itself.
    pub async fn gone(&self) {
        self.task.on_gone.wait_for(|| self.is_gone().then_some(())).await;
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("name", &self.task.name).finish_non_exhaustive()
    }
}
