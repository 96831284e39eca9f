//! What a device gets from the core: its name, interrupts, shared memory, work and doorbells.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use vfiod_quota::{Charge, CurrentPayer, Lines, Payer, Resource};
use vfiod_tasks::Runtime;
use vfiod_tasks::contain::Panicked;

use crate::common::CommonObjects;
use crate::description::{Description, DeviceFlags};
use crate::dma::{AcceptedFiles, Attachment, Flights, Space};
use crate::error::{Errno, Error, Result};
use crate::ids::DeviceId;
use crate::input_log::InputLog;
use crate::irq::{IrqInfo, IrqSet};
use crate::memory::SharedMemory;
use crate::opening::Openings;
use crate::report::{Report, SharedReport};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, lock};
use crate::work::{Close, Queue, Rings, Task, TaskHandle, TaskInfo, Work, WorkLimits};

/// The registered device, as its tasks see it.
pub(crate) trait Home: Send + Sync {
    /// Calls the device under its lock, unless it was unregistered or the task was cancelled.
    /// Returns whether it was called.
    fn step(&self, task: &Task, step: &mut dyn FnMut(&mut dyn Any)) -> bool;

    /// Carries out the reset that the device has asked for. Called without the device lock.
    fn reset_if_requested(self: Arc<Self>);

    /// Delivers the rings that came while the gate was closed to the data path.
    fn deliver_rings(self: Arc<Self>);

    /// Lets the device look at doorbells in its shared memory.
    fn look_at_doorbells(self: Arc<Self>, look: &dyn Fn(&Attachment));

    /// A task of the device has panicked.
    fn task_panicked(&self, task: &str, panic: Panicked);
}

/// Receives doorbells of a device without its lock. Called by the thread that received the
/// doorbell; must be quick, and must not wait for a peer. A panic is caught and puts the device into
/// the error state.
///
/// It can keep the device's [`Context`]: to start tasks, to raise interrupts, to ask for a reset.
pub trait DataPath: Send + Sync {
    /// A doorbell was rung: its value has changed. `value` is the newest value, if it is known. Rings
    /// may merge or be spurious; none is lost. Called for one ring of a doorbell at a time. `bell` counts the doorbells of the device's
    /// description, region by region.
    ///
    /// `dma` reaches guest memory, in batches.
    fn doorbell(&self, bell: usize, value: Option<u64>, dma: &Attachment);
}

/// What a device gets from the core: its name, interrupts, shared memory and work. There is no way
/// to guest memory here: a task has it ([`crate::DeviceTask::dma`]), and a data path. Cheap to clone, usable from
/// any thread, valid for as long as it is kept.
#[derive(Clone)]
pub struct Context {
    inner: Arc<ContextInner>,
}

struct ContextInner {
    id: DeviceId,
    name: String,
    irqs: IrqSet,
    dma: Attachment,
    /// The device's own address space, until its last close.
    space: Mutex<Space>,
    /// The space was handed out, so that somebody may keep it.
    space_shown: AtomicBool,
    openings: Openings,
    work: Work,
    works: bool,
    /// Set by [`crate::Device::init`], until the registered device takes it: from here it could
    /// keep itself alive, because it can have a clone of this.
    data_path: Mutex<Option<Arc<dyn DataPath>>>,
    /// Set by [`crate::Device::init`] as well, and taken for the same reason.
    report: Mutex<Option<SharedReport>>,
    reset_requested: AtomicBool,
    serves_directly: AtomicBool,
    input_log: InputLog,
    quiesces: QuiesceCounters,
    /// What the devices of the registry have in common.
    common: Arc<CommonObjects>,
    /// Lines of the log that a guest can cause.
    guest_lines: Lines,
    /// Who pays for what the device keeps for its user, while it is open.
    payer: CurrentPayer,
    home: Arc<OnceLock<Weak<dyn Home>>>,
}

/// How often a device has quiesced, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuiesceTimes {
    /// How often.
    pub count: u64,
    /// The time of all together.
    pub total: Duration,
    /// The time of the longest.
    pub longest: Duration,
}

/// Counts what [`QuiesceTimes`] shows.
#[derive(Debug, Default)]
pub(crate) struct QuiesceCounters(Mutex<QuiesceTimes>);

impl QuiesceCounters {
    pub(crate) fn count(&self, time: Duration) {
        let mut times = lock(&self.0);
        times.count += 1;
        times.total += time;
        times.longest = times.longest.max(time);
    }

    pub(crate) fn times(&self) -> QuiesceTimes {
        *lock(&self.0)
    }
}

/// Memory that a device keeps for its user, and that the user is charged for. Dropping it gives it back.
#[derive(Debug, Default)]
#[must_use]
pub struct MemoryCharge(#[expect(dead_code, reason = "kept until it is dropped")] Option<Charge>);

/// Tasks of one device at the same time.
const MAX_TASKS: usize = 1024;

impl Context {
    /// A context outside any registry, for tests of device code. Tasks that it starts never run.
    ///
    /// # Panics
    /// If the process has no descriptors left.
    pub fn detached(name: &str, irqs: &[IrqInfo]) -> Self {
        let runtime = Runtime::new().expect("descriptors for a runtime");
        let (flags, regions) = (DeviceFlags::empty(), Vec::new());
        let description = Description { flags, regions, irqs: irqs.to_vec() };
        let (id, files) = (DeviceId(u64::MAX), AcceptedFiles::default());
        Self::new(id, name.to_owned(), &description, false, (runtime, files, Arc::default()))
    }

    pub(crate) fn new(
        id: DeviceId,
        name: String,
        description: &Description,
        works: bool,
        (runtime, files, common): (Runtime, AcceptedFiles, Arc<CommonObjects>),
    ) -> Self {
        let home = Arc::<OnceLock<Weak<dyn Home>>>::default();
        let owner = home.clone();
        let on_panic = move |task: &str, panic| {
            if let Some(device) = owner.get().and_then(Weak::upgrade) {
                device.task_panicked(task, panic);
            }
        };
        let bells = description.regions.iter().map(|region| region.doorbells.len()).sum();
        let limits = WorkLimits { tasks: if works { MAX_TASKS } else { 0 }, bells };
        let work = Work::new(&name, runtime, limits, Box::new(on_panic));
        // The first open opens the gate.
        work.close(Close::Cancel);
        let space = Space::with_files(files);
        let inner = ContextInner {
            id,
            irqs: IrqSet::new(&name, &description.irqs),
            name,
            dma: Attachment::new(&space),
            space: Mutex::new(space),
            // Tasks and data paths reach the space by themselves.
            space_shown: AtomicBool::new(works),
            openings: Openings::new(&description.regions),
            work,
            works,
            data_path: Mutex::default(),
            report: Mutex::default(),
            reset_requested: AtomicBool::new(false),
            serves_directly: AtomicBool::new(true),
            input_log: InputLog::default(),
            quiesces: QuiesceCounters::default(),
            common,
            guest_lines: Lines::up_to(1),
            payer: CurrentPayer::default(),
            home,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The device's number.
    pub fn id(&self) -> DeviceId {
        self.inner.id
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The device's interrupts.
    pub fn irqs(&self) -> &IrqSet {
        &self.inner.irqs
    }

    /// Lets the device master the bus, or not: without that its tasks and its data path begin no
    /// access to guest memory (`EPERM`). On after registration.
    pub fn set_bus_master(&self, on: bool) {
        self.inner.dma.set_bus_master(on);
    }

    /// Whether accesses to shared areas and rings of doorbells by message are served without a call
    /// of the device. On after registration. While it is off, as for a device that must not answer,
    /// each is a call of [`crate::Device::read`] or [`crate::Device::write`], and what rings an
    /// eventfd is forgotten. Clients' mappings of shared areas work on.
    pub fn set_direct_service(&self, on: bool) {
        self.inner.serves_directly.store(on, Ordering::Release);
    }

    /// Set by [`Context::set_direct_service`].
    #[inline]
    pub(crate) fn serves_directly(&self) -> bool {
        self.inner.serves_directly.load(Ordering::Acquire)
    }

    /// The device's side of its address space: for its tasks and its data path, not for calls.
    pub(crate) fn attachment(&self) -> &Attachment {
        &self.inner.dma
    }

    /// The space that the device is attached to. Whoever gets it for a file checks afterwards that the
    /// file is open: otherwise it may be the next user's.
    pub(crate) fn attached_space(&self) -> Space {
        self.inner.space_shown.store(true, Ordering::SeqCst);
        self.inner.dma.space().unwrap_or_default()
    }

    /// The memory that a region shares with clients ([`crate::Region::shared`]), by offsets in the
    /// region. It belongs to the current opening of the device: accesses after its last close fail
    /// with `ENODEV`, so each opening has to ask for it.
    ///
    /// # Errors
    /// `ENODEV`: the device is not open; `EINVAL`: the region shares nothing; `EMFILE`, `ENOMEM`
    /// and the like, at the first call in an opening.
    pub fn shared_memory(&self, region: u32) -> Result<Arc<SharedMemory>> {
        let closed = || Error::new(Errno::NODEV, "shared memory of a device that is not open");
        self.inner.openings.memory().ok_or_else(closed)?.region(region).cloned()
    }

    /// The device's own space.
    pub(crate) fn own_space(&self) -> Space {
        self.inner.space_shown.store(true, Ordering::SeqCst);
        lock(&self.inner.space).clone()
    }

    /// Attaches the device to its own space.
    pub(crate) fn attach_own_space(&self) {
        self.inner.dma.attach(&self.own_space());
    }

    /// After the last close, with the set marked: gives the device a new space of its own and attaches
    /// it, as another device may have joined the one before, and must not reach what the next user maps.
    /// A space that was not handed out stays: nothing can have happened to it.
    pub(crate) fn renew_own_space(&self) {
        if !self.inner.space_shown.swap(self.inner.works, Ordering::SeqCst) {
            return;
        }
        let space = Space::with_files(lock(&self.inner.space).accepted_files());
        self.inner.dma.attach(&space);
        let before = std::mem::replace(&mut *lock(&self.inner.space), space);
        drop(before);
    }

    pub(crate) fn openings(&self) -> &Openings {
        &self.inner.openings
    }

    /// Sets the device's data path: from now on doorbells are delivered to it. To be called once, in
    /// [`crate::Device::init`], by a device with the power [`crate::device::Worker`].
    pub fn set_data_path(&self, path: Arc<dyn DataPath>) {
        let before = lock(&self.inner.data_path).replace(path);
        debug_assert!(before.is_none() && self.inner.works, "once, and by a worker");
    }

    /// Whether a line that a guest can cause may be logged now: one a second of each device. Returns how
    /// many were not since the last one. A guest can do whatever it does again and again.
    pub fn may_log(&self) -> Option<u64> {
        self.inner.guest_lines.pass(0)
    }

    /// Charges the user who has the device open for memory that the device keeps for it, until the result is
    /// dropped. Nobody is charged where the device is used without a payer ([`crate::File::set_payer`]).
    ///
    /// # Errors
    /// `ENOMEM`: more than the user may have (`limits.memory`).
    pub fn charge_memory(&self, bytes: u64) -> Result<MemoryCharge> {
        let exceeded = |error: vfiod_quota::Exceeded| {
            let what = format!("{}: no memory for what is kept for its user", self.name());
            Error::short(error.errno(), what).because(error)
        };
        self.inner.payer.charge(Resource::Memory, bytes).map(MemoryCharge).map_err(exceeded)
    }

    /// Sets who pays; `None`: the device is closed.
    pub(crate) fn set_payer(&self, payer: Option<Payer>) {
        self.inner.payer.set(payer);
    }

    /// Who has the device open, and pays for what is kept for that: for what is charged elsewhere than by
    /// [`Context::charge_memory`].
    pub fn payer(&self) -> CurrentPayer {
        self.inner.payer.clone()
    }

    /// Counts requests of the device to something else than guest memory, such as a disk: while one is
    /// under way the device is not idle, so that it is not opened or reset before that has ended.
    pub fn flights(&self) -> Flights {
        self.inner.dma.flights()
    }

    /// Takes the data path that [`crate::Device::init`] has set.
    pub(crate) fn take_data_path(&self) -> Option<Arc<dyn DataPath>> {
        lock(&self.inner.data_path).take()
    }

    /// Sets what the device reports of itself to its operator. To be called once, in
    /// [`crate::Device::init`]; a device that does not call it reports nothing.
    pub fn set_report(&self, report: Arc<impl Report>) {
        let before = lock(&self.inner.report).replace(report);
        debug_assert!(before.is_none(), "once");
    }

    /// Takes what [`crate::Device::init`] has set.
    pub(crate) fn take_report(&self) -> Option<SharedReport> {
        lock(&self.inner.report).take()
    }

    /// Asks for a reset of the device ([`crate::ResetCause::Function`]). It follows after the call,
    /// step or data-path call that asked has returned and the device has quiesced.
    pub fn request_reset(&self) {
        self.inner.reset_requested.store(true, Ordering::Release);
    }

    /// The log of the device's input from outside, for captures.
    pub fn input_log(&self) -> &InputLog {
        &self.inner.input_log
    }

    pub(crate) fn quiesces(&self) -> &QuiesceCounters {
        &self.inner.quiesces
    }

    /// The device's tasks, as `show` lists them: also those that were cancelled and whose futures
    /// have not been dropped yet. [`Context::find_task`] does not find those.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        self.inner.work.list()
    }

    /// What runs the device's tasks.
    pub fn runtime(&self) -> &Runtime {
        self.inner.work.runtime()
    }

    /// The object of this type that all devices of the registry have in common: made when the first of them
    /// asks for it, there as long as the registry or somebody who uses it. Of a context outside any registry
    /// it is its own.
    pub fn common<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.inner.common.get()
    }

    /// Finds a task of the device by its name, for [`crate::Worker::resume`]. Cancelled tasks are
    /// not found. A task is found for a moment after its last step: what starts new work must not
    /// look.
    pub fn find_task(&self, name: &str) -> Option<TaskHandle> {
        self.inner.work.find(name)
    }

    /// Sets the registered device. To be called once.
    pub(crate) fn set_home(&self, home: Weak<dyn Home>) {
        let set = self.inner.home.set(home);
        debug_assert!(set.is_ok(), "registered once");
    }

    pub(crate) fn home(&self) -> Option<Arc<dyn Home>> {
        self.inner.home.get()?.upgrade()
    }

    pub(crate) fn work(&self) -> &Work {
        &self.inner.work
    }

    pub(crate) fn dma_in_flight(&self) -> usize {
        self.inner.dma.in_flight()
    }

    pub(crate) fn works(&self) -> bool {
        self.inner.works
    }

    /// Whether the device is idle: no task, no call of its data path, no access to guest memory in
    /// flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.work.is_idle() && self.dma_in_flight() == 0
    }

    /// Blocks until the device is idle, or until the runtime's clock shows `deadline`. Returns
    /// whether it is idle.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> bool {
        // In a model no time passes, and only a deadlock is too long.
        let deadline = (!cfg!(any(loom, shuttle))).then_some(deadline);
        self.runtime().block_on(deadline, self.idle()).is_some()
    }

    /// Waits until the device is idle. Waits for accesses in flight last, when no task can begin
    /// another.
    pub(crate) async fn idle(&self) {
        self.inner.work.idle().await;
        self.inner.dma.idle().await;
    }

    pub(crate) fn reset_requested(&self) -> bool {
        self.inner.reset_requested.load(Ordering::Acquire)
    }

    pub(crate) fn take_reset_request(&self) -> bool {
        self.inner.reset_requested.swap(false, Ordering::AcqRel)
    }

    /// A part of the device's work that can be quiesced and resumed by itself, such as a queue: these
    /// doorbells, counted as for [`DataPath::doorbell`], and these tasks.
    pub fn queue(
        &self,
        bells: impl IntoIterator<Item = usize>,
        tasks: impl IntoIterator<Item = TaskHandle>,
    ) -> Queue {
        self.inner.work.queue(bells, tasks)
    }

    /// Resumes a queue ([`Queue::resume`]), and delivers the rings that came meanwhile to the data
    /// path.
    pub fn resume_queue(&self, queue: &Queue, rings: Rings) {
        queue.resume(rings);
        if let Some(home) = self.home() {
            home.deliver_rings();
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.inner.id)
            .field("name", &self.inner.name)
            .finish()
    }
}
