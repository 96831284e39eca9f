//! Devices that work beside their calls: how resets, closes and hot resets stop them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_core::dma::{Attachment, Backing, MapRequest, Perm};
use vfiod_core::region::Doorbell;
use vfiod_core::work::TaskState;
use vfiod_core::work::{Close, Rings};
use vfiod_core::{
    Context, DataPath, Description, Device, DeviceFlags, DeviceSpec, DeviceTask, Errno, File,
    FileId, OpenPolicy, Owner, Persistence, Quiesce, Region, RegionIndex, Registration, Registry,
    ResetCause, Result, SetId, SetObject, Why, Worker,
};
use vfiod_tasks::{ManualClock, Runtime, Waiters};

const REGISTERS: RegionIndex = RegionIndex(0);
/// Starts a job.
const START: u64 = 0;
/// Asks for a reset of the device by itself.
const RESET: u64 = 4;
/// How many jobs have ended.
const ENDED: u64 = 8;
const DOORBELL: u64 = 16;

/// What the test decides, and what the device tells.
#[derive(Default)]
struct Script {
    /// Jobs wait until this is so.
    released: AtomicBool,
    waiting: Waiters,
    answer: Mutex<Option<Quiesce>>,
    asked: Mutex<Vec<Why>>,
    rings: Mutex<Vec<(usize, Option<u64>)>>,
    resets: AtomicU32,
    /// Steps panic.
    panics: AtomicBool,
    /// Guest memory, as the last job reached it.
    dma: Mutex<Option<Attachment>>,
    context: Mutex<Option<Context>>,
    /// Called by each reset.
    during_reset: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// What a store into guest memory failed with when a file was released, for each file.
    at_release: Mutex<Vec<Option<Errno>>>,
}

impl Script {
    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
        self.waiting.wake_all();
    }

    fn answer(&self, answer: Quiesce) {
        *self.answer.lock().unwrap() = Some(answer);
    }

    /// Stores a byte into guest memory.
    fn store(&self, value: u8) -> Result<()> {
        let dma = self.dma.lock().unwrap().clone().expect("a job has run");
        let store = dma.batch()?.store(0, value, Ordering::Release);
        store.map(drop)
    }

    fn rings(&self) -> Vec<(usize, Option<u64>)> {
        std::mem::take(&mut self.rings.lock().unwrap())
    }
}

impl DataPath for Script {
    fn doorbell(&self, bell: usize, value: Option<u64>, _dma: &Attachment) {
        self.rings.lock().unwrap().push((bell, value));
    }
}

/// A device whose jobs take as long as the test likes.
struct Jobs {
    script: Arc<Script>,
    context: Option<Context>,
    pending: u32,
    ended: u32,
}

impl Jobs {
    fn start(&self) {
        let (Some(context), script) = (&self.context, self.script.clone()) else { return };
        DeviceTask::<Self>::spawn(context, "job", |task| async move {
            *script.dma.lock().unwrap() = Some(task.dma().clone());
            let released = || script.released.load(Ordering::SeqCst).then_some(());
            script.waiting.wait_for(released).await;
            task.step(|jobs| {
                assert!(!jobs.script.panics.load(Ordering::SeqCst), "the script says so");
                jobs.pending -= 1;
                jobs.ended += 1;
            })
            .await;
        })
        .expect("a task");
    }
}

impl Device for Jobs {
    fn describe(&self) -> Description {
        let doorbells = vec![Doorbell::eventfd(DOORBELL, 4)];
        let registers = Region { doorbells, ..Region::registers(64) };
        Description { flags: DeviceFlags::RESET, regions: vec![registers], irqs: Vec::new() }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        context.set_data_path(self.script.clone());
        *self.script.context.lock().unwrap() = Some(context.clone());
        self.context = Some(context.clone());
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Unsaved("a test")
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn release(&mut self, _: FileId) {
        if self.script.dma.lock().unwrap().is_some() {
            let failed = self.script.store(1).err().map(|error| error.errno());
            self.script.at_release.lock().unwrap().push(failed);
        }
    }

    fn read(&mut self, _: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        data.fill(0);
        if offset == ENDED {
            data.copy_from_slice(&self.ended.to_le_bytes());
        }
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, offset: u64, _: &[u8]) -> Result<()> {
        match (offset, &self.context) {
            (START, _) => {
                self.pending += 1;
                self.start();
            }
            (RESET, Some(context)) => context.request_reset(),
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        self.script.resets.fetch_add(1, Ordering::SeqCst);
        if let Some(during) = &*self.script.during_reset.lock().unwrap() {
            during();
        }
        (self.pending, self.ended) = (0, 0);
        Ok(())
    }
}

impl Worker for Jobs {
    fn quiesce(&mut self, why: Why) -> Quiesce {
        self.script.asked.lock().unwrap().push(why);
        self.script.answer.lock().unwrap().unwrap_or(Quiesce::Cancel)
    }

    fn resume(&mut self) {
        // A cancelled task can still be listed; it does nothing any more.
        let tasks = self.context.as_ref().map_or(Vec::new(), Context::tasks);
        let going_on = tasks.iter().filter(|task| task.state != TaskState::Cancelled).count();
        for _ in going_on..self.pending as usize {
            self.start();
        }
    }
}

fn map(file: &File) {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&memory, 4096).expect("its size");
    let backing = Backing::File { fd: memory, offset: 0 };
    let perm = Perm::READ | Perm::WRITE;
    file.dma_map(MapRequest { iova: 0, size: 4096, perm, backing }).expect("maps");
}

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "slot".to_owned()
    }
}

fn register(
    registry: &Registry,
    slot: &Arc<Slot>,
    name: &str,
    script: &Arc<Script>,
) -> Registration {
    let jobs = Jobs { script: script.clone(), context: None, pending: 0, ended: 0 };
    let set = Some(SetId::of(slot));
    let (name, open) = (name.to_owned(), OpenPolicy::Multi);
    let spec = DeviceSpec { name, set, open, ..DeviceSpec::default() };
    registry.register(spec, Box::new(jobs)).expect("registers")
}

struct Rig {
    clock: ManualClock,
    runtime: Runtime,
    registry: Registry,
    slot: Arc<Slot>,
    script: Arc<Script>,
    registration: Registration,
}

impl Rig {
    fn new() -> Self {
        let clock = ManualClock::new();
        let runtime = Runtime::with_clock(&clock).expect("a runtime");
        let registry = Registry::with_runtime(runtime.clone(), None);
        let (script, slot) = (Arc::<Script>::default(), Arc::new(Slot));
        let registration = register(&registry, &slot, "jobs", &script);
        Self { clock, runtime, registry, slot, script, registration }
    }

    /// Another device of the same set.
    fn register(&self, name: &str, script: &Arc<Script>) -> Registration {
        register(&self.registry, &self.slot, name, script)
    }

    fn open(&self) -> Result<File> {
        self.registration.device().open(Owner::in_process("test"))
    }

    /// Starts a job, and runs it until it waits.
    fn start(&self, file: &File) {
        write(file, START);
        self.runtime.run_until_idle();
    }

    fn tasks(&self) -> usize {
        self.registration.device().status().tasks.len()
    }

    fn resets(&self) -> u32 {
        self.script.resets.swap(0, Ordering::SeqCst)
    }

    /// Does something that waits for the device, and lets time pass until it is over.
    fn with_time_passing<R: Send>(&self, call: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let call = scope.spawn(call);
            while !call.is_finished() {
                self.clock.advance(Duration::from_secs(1));
                std::thread::yield_now();
            }
            call.join().expect("does not panic")
        })
    }
}

fn write(file: &File, offset: u64) {
    file.write(REGISTERS, offset, &[1, 0, 0, 0]).expect("can be written");
}

fn read(file: &File, offset: u64) -> u32 {
    let mut data = [0; 4];
    file.read(REGISTERS, offset, &mut data).expect("can be read");
    u32::from_le_bytes(data)
}

/// The memory of a user who leaves goes before the device is stopped. What is at work then waits, as without bus
/// mastering: it has not lost its memory.
#[test]
fn device_whose_last_user_leaves_finds_no_memory_missing() {
    let rig = Rig::new();
    let (file, second) = (rig.open().expect("opens"), rig.open().expect("opens"));
    map(&file);
    rig.start(&file);
    let failed = || std::mem::take(&mut *rig.script.at_release.lock().unwrap());
    drop(second);
    assert_eq!((failed(), rig.script.store(2).is_ok()), (vec![None], true), "one is left");
    drop(file);
    assert_eq!(failed(), [Some(Errno::PERM)]);
    let file = rig.open().expect("opens");
    map(&file);
    rig.start(&file);
    rig.script.store(3).expect("the next user's memory is reached");
}

#[test]
fn reset_cancels_a_waiting_task_and_one_thread_is_enough() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    assert_eq!(rig.tasks(), 1);
    rig.resets();
    file.reset().expect("resets");
    assert_eq!((rig.tasks(), rig.resets(), read(&file, ENDED)), (0, 1, 0));
    assert_eq!(*rig.script.asked.lock().unwrap(), [Why::Reset]);
    rig.start(&file);
    rig.script.release();
    rig.runtime.run_until_idle();
    assert_eq!((rig.tasks(), read(&file, ENDED)), (0, 1), "the device works again");
}

#[test]
fn reset_of_a_device_that_does_not_quiesce_leaves_it_stuck_until_its_work_ends() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    rig.script.answer(Quiesce::Finish);
    rig.resets();
    let error = rig.with_time_passing(|| file.reset()).expect_err("is stuck");
    assert_eq!(error.errno(), Errno::IO, "{error}");
    assert!(error.to_string().contains("task job of jobs is still running"), "{error}");
    assert_eq!(rig.resets(), 0, "not reset while it works");
    let status = rig.registration.device().status();
    assert!(status.failed && status.failure.is_some_and(|why| why.contains("stuck")));
    assert_eq!(file.write(REGISTERS, START, &[1]).unwrap_err().errno(), Errno::IO);
    // Becoming stuck cancels the task: once its future is dropped the device can be opened again.
    drop(file);
    rig.runtime.run_until_idle();
    let file = rig.open().expect("opens");
    assert_eq!((rig.tasks(), read(&file, ENDED)), (0, 0));
    assert!(rig.resets() > 0);
}

#[test]
fn hot_reset_that_is_abandoned_lets_the_device_go_on_with_nothing_lost() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    rig.script.answer(Quiesce::Finish);
    rig.resets();
    let error = rig.with_time_passing(|| file.reset_set()).expect_err("is abandoned");
    assert_eq!(error.errno(), Errno::BUSY);
    let message = error.to_string();
    assert!(
        message.contains("hot reset abandoned: task job of jobs is still running"),
        "{message}"
    );
    assert_eq!((rig.resets(), rig.tasks()), (0, 1));
    rig.script.release();
    rig.runtime.run_until_idle();
    assert_eq!((rig.tasks(), read(&file, ENDED)), (0, 1), "completed exactly once");
    file.reset_set().expect("resets");
    assert_eq!((rig.resets(), read(&file, ENDED)), (1, 0));
}

#[test]
fn hot_reset_that_is_abandoned_starts_cancelled_work_again() {
    let rig = Rig::new();
    let other = Arc::<Script>::default();
    let neighbour = rig.register("neighbour", &other);
    let file = rig.open().expect("opens");
    let next = neighbour.device().open(Owner::in_process("test")).expect("opens");
    // The first one's work is cancelled, and the neighbour's does not end.
    rig.start(&file);
    rig.start(&next);
    other.answer(Quiesce::Finish);
    let error = rig.with_time_passing(|| file.reset_set()).expect_err("is abandoned");
    assert_eq!(error.errno(), Errno::BUSY);
    rig.script.release();
    other.release();
    rig.runtime.run_until_idle();
    assert_eq!(read(&file, ENDED), 1, "cancelled work was not started again");
    assert_eq!((rig.tasks(), read(&next, ENDED)), (0, 1));
    drop(next);
}

#[test]
fn member_begins_no_dma_amid_a_hot_reset() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    map(&file);
    rig.start(&file);
    rig.script.store(1).expect("stores");
    let refused = Arc::<AtomicBool>::default();
    let (script, seen) = (rig.script.clone(), refused.clone());
    *rig.script.during_reset.lock().unwrap() = Some(Box::new(move || {
        let stored = script.store(2).map_err(|error| error.errno());
        seen.store(stored == Err(Errno::PERM), Ordering::SeqCst);
    }));
    file.reset_set().expect("resets");
    assert!(refused.load(Ordering::SeqCst));
    rig.script.store(3).expect("stores again");
}

#[test]
fn hot_reset_that_is_abandoned_stops_no_dma() {
    let rig = Rig::new();
    let script = Arc::<Script>::default();
    let neighbour = rig.register("neighbour", &script);
    let file = rig.open().expect("opens");
    let slow = neighbour.device().open(Owner::in_process("test")).expect("opens");
    map(&file);
    rig.start(&file);
    // The neighbour is in its own reset, for a client.
    let (entered, inside) = channel();
    let (leave, left) = channel::<()>();
    *script.during_reset.lock().unwrap() = Some(Box::new(move || {
        let _ = entered.send(());
        let _ = left.recv();
    }));
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| slow.reset());
        inside.recv().expect("is being reset");
        let caller = scope.spawn(|| file.reset_set());
        while !caller.is_finished() {
            rig.script.store(1).expect("stores");
        }
        let error = caller.join().expect("does not panic").expect_err("is abandoned");
        assert_eq!(error.errno(), Errno::BUSY);
        drop(leave);
        reset.join().expect("does not panic").expect("resets");
    });
    *script.during_reset.lock().unwrap() = None;
    file.reset_set().expect("resets");
}

#[test]
fn a_device_that_says_done_while_a_task_runs_is_put_into_the_error_state() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    rig.script.answer(Quiesce::Done);
    let error = file.reset().expect_err("is found out");
    assert_eq!(error.errno(), Errno::IO);
    assert!(error.to_string().contains("said that it had quiesced while task job"), "{error}");
    assert!(rig.registration.device().status().failed);
    rig.runtime.run_until_idle();
    assert_eq!(rig.tasks(), 0, "and its task is cancelled");
}

#[test]
fn last_close_cancels_tasks_and_none_runs_until_the_next_open() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    drop(file);
    assert_eq!(rig.tasks(), 0);
    assert_eq!(rig.script.asked.lock().unwrap().last(), Some(&Why::Close));
    let file = rig.open().expect("opens");
    rig.script.release();
    rig.runtime.run_until_idle();
    assert_eq!(read(&file, ENDED), 0, "the job of the last user is gone");
}

#[test]
fn a_reset_that_the_device_asks_for_waits_for_its_work_while_accesses_read_all_ones() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    rig.resets();
    write(&file, RESET);
    assert_eq!(rig.resets(), 0, "the write is answered at once");
    assert_eq!(read(&file, ENDED), u32::MAX);
    write(&file, START); // dropped
    rig.runtime.run_until_idle();
    assert_eq!((rig.resets(), rig.tasks(), read(&file, ENDED)), (1, 0, 0));
    rig.start(&file);
    rig.script.release();
    rig.runtime.run_until_idle();
    assert_eq!(read(&file, ENDED), 1);
}

#[test]
fn who_waits_for_a_reset_that_the_device_asked_for_runs_it_on_the_same_thread() {
    type Wait = fn(&Rig, File) -> Option<File>;
    let waits: [Wait; 4] = [
        |_, file| file.reset().map(|()| Some(file)).expect("resets"),
        |_, file| file.reset_set().map(|()| Some(file)).expect("resets"),
        |_, file| file.feature_probe(1).map(|_| Some(file)).expect("waits"),
        |_, _released| None,
    ];
    for wait in waits {
        let rig = Rig::new();
        let file = rig.open().expect("opens");
        rig.start(&file);
        write(&file, RESET);
        assert_eq!(rig.tasks(), 1, "the reset is pending");
        rig.resets();
        let file = wait(&rig, file).unwrap_or_else(|| rig.open().expect("opens"));
        assert!(rig.resets() >= 1);
        assert_eq!((rig.tasks(), read(&file, ENDED)), (0, 0));
    }
}

#[test]
fn a_reset_that_an_idle_device_asks_for_is_done_when_the_write_returns() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.resets();
    write(&file, RESET);
    assert_eq!((rig.resets(), read(&file, ENDED)), (1, 0));
}

#[test]
fn doorbells_reach_the_data_path_with_their_values() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    file.write(REGISTERS, DOORBELL, &7u32.to_le_bytes()).expect("rings");
    file.write(REGISTERS, DOORBELL, &[1, 0]).expect("another size is a register access");
    assert_eq!(rig.script.rings(), [(0, Some(7))]);
    let fds = file.doorbells(REGISTERS).expect("an eventfd");
    rustix::io::write(&fds[0], &1u64.to_ne_bytes()).expect("rings");
    assert!(file.ring(REGISTERS, 0).expect("delivered"));
    assert!(!file.ring(REGISTERS, 0).expect("nothing more"));
    assert_eq!(rig.script.rings(), [(0, None)], "an eventfd without datamatch carries no value");
}

#[test]
fn doorbell_of_a_stopped_queue_reaches_the_data_path_when_it_is_resumed() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    let context = rig.script.context.lock().unwrap().clone().expect("registered");
    let queue = context.queue([0], []);
    queue.quiesce(Close::Finish);
    assert!(queue.is_idle());
    file.write(REGISTERS, DOORBELL, &7u32.to_le_bytes()).expect("rings");
    assert_eq!(rig.script.rings(), []);
    context.resume_queue(&queue, Rings::Repeat);
    assert_eq!(rig.script.rings(), [(0, Some(7))]);
    file.write(REGISTERS, DOORBELL, &8u32.to_le_bytes()).expect("rings");
    assert_eq!(rig.script.rings(), [(0, Some(8))]);
}

#[test]
fn a_panic_in_a_task_puts_the_device_into_the_error_state_and_says_why() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.script.panics.store(true, Ordering::SeqCst);
    rig.start(&file);
    rig.script.release();
    rig.runtime.run_until_idle();
    let status = rig.registration.device().status();
    assert!(status.failure.is_some_and(|why| why.contains("the script says so")));
    assert_eq!(rig.tasks(), 0);
    assert_eq!(file.write(REGISTERS, START, &[1]).unwrap_err().errno(), Errno::IO);
    rig.script.panics.store(false, Ordering::SeqCst);
    file.reset().expect("a reset helps");
    rig.start(&file);
    assert_eq!(read(&file, ENDED), 1);
}

/// Lets a task do something while the only thread waits for jobs to end, which they do then.
fn meanwhile(rig: &Rig, what: impl FnOnce() + Send + 'static) {
    let script = rig.script.clone();
    rig.script.answer(Quiesce::Finish);
    let task = async move {
        what();
        script.release();
    };
    rig.runtime.spawn(task).detach();
}

#[track_caller]
fn must_be_busy<T: std::fmt::Debug>(result: Result<T>, what: &str) {
    let error = result.expect_err("is held by this thread");
    assert_eq!(error.errno(), Errno::BUSY);
    assert!(error.to_string().contains(what), "{error}");
}

#[test]
fn task_that_runs_while_its_thread_closes_a_member_releases_and_is_refused_another() {
    let rig = Rig::new();
    let (file, other) = (rig.open().expect("opens"), rig.register("other", &Arc::default()));
    rig.start(&file);
    let (device, user) = (other.device().clone(), Owner::in_process("test"));
    let of_other = device.open(user.clone()).expect("opens");
    let members = [rig.registration.device().clone(), device.clone()];
    meanwhile(&rig, move || {
        drop(of_other);
        assert_eq!(device.status().files.len(), 1, "its release waits for the mark");
        let busy = "of other is being closed by the calling thread";
        must_be_busy(device.open(user), busy);
        must_be_busy(device.reset_set(vfiod_core::InUse::Reset), busy);
    });
    drop(file);
    for member in &members {
        assert!(member.status().files.is_empty(), "{} is open", member.name());
        drop(member.open(Owner::in_process("another")).expect("opens"));
    }
}

#[test]
fn task_that_runs_while_its_thread_resets_a_device_releases_and_is_refused_another() {
    let rig = Rig::new();
    let (file, second) = (rig.open().expect("opens"), rig.open().expect("opens"));
    rig.start(&file);
    let device = rig.registration.device().clone();
    meanwhile(&rig, move || {
        drop(second);
        assert_eq!(device.status().files.len(), 2, "its release waits for the reset");
        let busy = "jobs is being reset by the calling thread";
        must_be_busy(device.open(Owner::in_process("test")), busy);
        must_be_busy(device.image_len(), busy);
    });
    file.reset().expect("resets");
    assert_eq!(rig.registration.device().status().files.len(), 1);
    drop(rig.open().expect("opens"));
}

#[test]
fn task_that_runs_while_its_thread_resets_the_set_unregisters_and_is_refused_a_join() {
    let rig = Rig::new();
    let (file, other) = (rig.open().expect("opens"), rig.register("other", &Arc::default()));
    rig.start(&file);
    let of_other = other.device().open(Owner::in_process("test")).expect("opens");
    let (registry, set) = (rig.registry.clone(), SetId::of(&rig.slot));
    meanwhile(&rig, move || {
        let device = other.device().clone();
        other.unregister(None);
        assert!(registry.find("other").is_none() && device.status().leaving);
        drop(of_other);
        let jobs = Jobs { script: Arc::default(), context: None, pending: 0, ended: 0 };
        let spec = DeviceSpec { name: "third".to_owned(), set: Some(set), ..DeviceSpec::default() };
        must_be_busy(
            registry.register(spec, Box::new(jobs)),
            "the set of third is being reset by the calling thread",
        );
    });
    file.reset_set().expect("resets");
    assert_eq!(file.set_members().expect("is open").len(), 1);
    drop(rig.register("other", &Arc::default()));
}

#[test]
fn task_that_unregisters_a_device_while_its_thread_releases_a_file_does_not_wait_for_it() {
    let rig = Rig::new();
    let (registry, file) = (rig.registry.clone(), rig.open().expect("opens"));
    rig.start(&file);
    rig.script.answer(Quiesce::Finish);
    file.write(REGISTERS, RESET, &[0; 4]).expect("asks for a reset, which waits for the job");
    let (runtime, script, registration) = (rig.runtime, rig.script, rig.registration);
    let device = registration.device().clone();
    let task = async move {
        registration.unregister(None);
        assert!(registry.find("jobs").is_none(), "nobody finds it any more");
        script.release();
    };
    runtime.spawn(task).detach();
    drop(file);
    assert!(device.status().files.is_empty());
    assert_eq!(device.image_len().expect_err("is gone").errno(), Errno::NODEV);
}

#[test]
fn work_goes_on_after_a_save_that_was_to_stop_the_device_and_failed() {
    let rig = Rig::new();
    let file = rig.open().expect("opens");
    rig.start(&file);
    let mut descriptors = vfiod_core::DescriptorTable::new();
    let error = rig.registration.device().save_and_stop(&mut descriptors).expect_err("unsaved");
    assert_eq!(error.errno(), Errno::OPNOTSUPP);
    rig.script.release();
    rig.runtime.run_until_idle();
    assert_eq!(read(&file, ENDED), 1);
}
