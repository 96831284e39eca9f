//! Every pair of what stops or changes working devices of one set, against each other and against
//! their tasks: opens and closes, resets of a device, of the set, and by the device itself, saves,
//! and unregistering.

use std::sync::Arc;

use vfiod_sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use vfiod_sync::model::{join_all, spawn};
use vfiod_tasks::{Runtime, Workers};

use super::scenarios::{NOW, open};
use crate::context::Context;
use crate::device::{Description, Device, DeviceFlags, Quiesce, ResetCause, Why, Worker};
use crate::error::Result;
use crate::ids::{SetId, SetObject};
use crate::region::{Region, RegionIndex};
use crate::state::Persistence;
use crate::sync::point;
use crate::{DeviceRef, DeviceSpec, DeviceTask, Errno, OpenPolicy, Registration, Registry};

const REGISTERS: RegionIndex = RegionIndex(0);
/// Starts a task.
const START: u64 = 0;
/// Asks for a reset of the device by itself.
const RESET: u64 = 4;

/// What is known of a device from outside of it.
#[derive(Default)]
struct Seen {
    open: AtomicBool,
    /// Futures of tasks that have not been dropped.
    futures: AtomicUsize,
    /// Callbacks that nothing may overlap with.
    exclusive: AtomicUsize,
}

impl Seen {
    /// A callback during which nothing of the device may work.
    fn at_rest(&self) {
        self.exclusive.fetch_add(1, SeqCst);
        assert_eq!(self.futures.load(SeqCst), 0, "work while the device is at rest");
        point();
        assert_eq!(self.futures.load(SeqCst), 0, "work while the device is at rest");
        self.exclusive.fetch_sub(1, SeqCst);
    }
}

struct Future(Arc<Seen>);

impl Future {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.futures.fetch_add(1, SeqCst);
        Self(seen.clone())
    }
}

impl Drop for Future {
    fn drop(&mut self) {
        self.0.futures.fetch_sub(1, SeqCst);
    }
}

/// A device with one task at most, which the state says is under way.
struct Working {
    seen: Arc<Seen>,
    context: Option<Context>,
    under_way: bool,
    answer: Quiesce,
}

impl Working {
    fn start(&self) {
        let Some(context) = &self.context else { return };
        let seen = self.seen.clone();
        // Refused while the device is being stopped: then `resume` starts it.
        let _ = DeviceTask::<Self>::spawn(context, "task", |task| async move {
            let future = Future::new(&seen);
            point();
            task.step(|working| {
                assert!(seen.open.load(SeqCst), "a step of a device that is not open");
                assert_eq!(seen.exclusive.load(SeqCst), 0, "a step amid a reset or close");
                working.under_way = false;
            })
            .await;
            drop(future);
        });
    }
}

impl Device for Working {
    fn describe(&self) -> Description {
        let regions = vec![Region::registers(16)];
        Description { flags: DeviceFlags::RESET, regions, irqs: Vec::new() }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        self.context = Some(context.clone());
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        // Called by a save with the device quiesced.
        self.seen.at_rest();
        Persistence::Stateless
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }

    fn open_device(&mut self) -> Result<()> {
        self.seen.at_rest();
        assert!(!self.seen.open.swap(true, SeqCst), "opened twice");
        Ok(())
    }

    fn close_device(&mut self) {
        self.seen.at_rest();
        assert!(self.seen.open.swap(false, SeqCst), "closed twice");
    }

    fn read(&mut self, _: RegionIndex, _: u64, data: &mut [u8]) -> Result<()> {
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, offset: u64, _: &[u8]) -> Result<()> {
        match (offset, &self.context) {
            (START, _) if !self.under_way => {
                self.under_way = true;
                self.start();
            }
            (RESET, Some(context)) => context.request_reset(),
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        self.seen.at_rest();
        self.under_way = false;
        Ok(())
    }
}

impl Worker for Working {
    fn quiesce(&mut self, why: Why) -> Quiesce {
        self.under_way &= !why.ends();
        self.answer
    }

    fn resume(&mut self) {
        let runs = self.context.as_ref().is_some_and(|context| context.find_task("task").is_some());
        if self.under_way && !runs {
            self.start();
        }
    }
}

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "set".to_owned()
    }
}

/// What a thread of a scenario does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    OpenAndClose,
    Reset,
    ResetOfTheSet,
    ResetByItself,
    Save,
    Unregister,
}

const ALL: [Transition; 6] = [
    Transition::OpenAndClose,
    Transition::Reset,
    Transition::ResetOfTheSet,
    Transition::ResetByItself,
    Transition::Save,
    Transition::Unregister,
];

/// What may become of a transition that meets others.
#[track_caller]
fn allowed<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let errnos = [Errno::BUSY, Errno::NODEV];
            assert!(errnos.contains(&error.errno()), "{error}");
            None
        }
    }
}

fn play(transition: Transition, device: &DeviceRef, registration: Option<Registration>) {
    if transition == Transition::Save {
        let mut descriptors = crate::state::DescriptorTable::default();
        allowed(device.save(&mut descriptors));
        if let Some(stopped) = allowed(device.save_and_stop(&mut descriptors)) {
            point();
            assert!(device.status().tasks.is_empty(), "work while the device is stopped");
            drop(stopped);
        }
        return;
    }
    if transition == Transition::Unregister {
        registration.expect("a registration").unregister(NOW);
        return;
    }
    let Some(file) = allowed(open(device)) else { return };
    allowed(file.write(REGISTERS, START, &[0; 4]));
    match transition {
        Transition::Reset => drop(allowed(file.reset())),
        Transition::ResetOfTheSet => drop(allowed(file.reset_set())),
        Transition::ResetByItself => drop(allowed(file.write(REGISTERS, RESET, &[0; 4]))),
        _ => {}
    }
    allowed(file.read(REGISTERS, 0, &mut [0; 4]));
    drop(file);
}

/// The names of a set's two members.
const NAMES: [&str; 2] = ["a", "b"];

/// Registers two members of a set.
fn two_members(
    registry: &Registry,
    answer: Quiesce,
) -> ([Arc<Seen>; 2], [Option<Registration>; 2]) {
    let set = Arc::new(Slot);
    let seen = [0; 2].map(|_| Arc::<Seen>::default());
    let registrations = [0, 1].map(|member: usize| {
        let device =
            Working { seen: seen[member].clone(), context: None, under_way: false, answer };
        let spec = DeviceSpec {
            name: NAMES[member].to_owned(),
            set: Some(SetId::of(&set)),
            open: OpenPolicy::Multi,
            ..DeviceSpec::default()
        };
        Some(registry.register(spec, Box::new(device)).expect("registers"))
    });
    (seen, registrations)
}

/// Two transitions, of one device or of two members of a set.
fn pair(first: Transition, second: Transition, of_one_device: bool, answer: Quiesce) {
    let runtime = Runtime::new().expect("starts");
    let workers = Workers::start(&runtime, 1).expect("starts");
    let registry = Registry::with_runtime(runtime, None);
    let (seen, mut registrations) = two_members(&registry, answer);
    let members = if of_one_device { [0, 0] } else { [0, 1] };
    join_all([first, second].into_iter().zip(members).map(|(transition, member)| {
        let device = registry.find(NAMES[member]);
        // Of two who unregister one device the second has nothing to do.
        let unregisters = transition == Transition::Unregister;
        let registration = if unregisters { registrations[member].take() } else { None };
        spawn(move || {
            let idle = unregisters && registration.is_none();
            if let (Some(device), false) = (device, idle) {
                play(transition, &device, registration);
            }
        })
    }));
    registrations.into_iter().flatten().for_each(|registration| registration.unregister(None));
    for seen in &seen {
        assert!(!seen.open.load(SeqCst), "left open");
        assert_eq!(seen.futures.load(SeqCst), 0, "a task is left");
    }
    drop(workers);
}

fn every_pair(of_one_device: bool, answer: Quiesce) {
    for (at, &first) in ALL.iter().enumerate() {
        for &second in &ALL[at..] {
            pair(first, second, of_one_device, answer);
        }
    }
}

pub(crate) fn pairs_of_one_device_whose_work_is_cancelled() {
    every_pair(true, Quiesce::Cancel);
}

pub(crate) fn pairs_of_one_device_whose_work_finishes() {
    every_pair(true, Quiesce::Finish);
}

pub(crate) fn pairs_of_two_members_of_a_set() {
    every_pair(false, Quiesce::Cancel);
}

/// A transition that a task plays, in a thread that waits amid another transition. There are no
/// workers: threads that wait run the tasks. A third opens and closes beside them.
fn nested(first: Transition, in_task: Transition, of_one_device: bool) {
    let runtime = Runtime::new().expect("starts");
    let registry = Registry::with_runtime(runtime.clone(), None);
    let (seen, mut registrations) = two_members(&registry, Quiesce::Finish);
    let members = if of_one_device { [0, 0, 1] } else { [0, 1, 1] };
    let devices = members.map(|member| registry.find(NAMES[member]).expect("is there"));
    let mut unregister = |transition, member: usize| {
        if transition == Transition::Unregister { registrations[member].take() } else { None }
    };
    let of_outer = unregister(first, members[0]);
    let of_inner = unregister(in_task, members[1]);
    // Of two who unregister one device the second has nothing to do.
    let nothing = in_task == Transition::Unregister && of_inner.is_none();
    let [outer, inner, beside] = devices;
    // The task releases a file that it has had from before, and plays its own transition.
    let file = open(&inner).expect("opens");
    let task = async move {
        drop(file);
        if !nothing {
            play(in_task, &inner, of_inner);
        }
    };
    runtime.spawn(task).detach();
    join_all([(first, outer, of_outer), (Transition::OpenAndClose, beside, None)].map(
        |(transition, device, registration)| spawn(move || play(transition, &device, registration)),
    ));
    runtime.run_until_idle();
    registrations.into_iter().flatten().for_each(|registration| registration.unregister(None));
    runtime.run_until_idle();
    for seen in &seen {
        assert!(!seen.open.load(SeqCst), "left open");
        assert_eq!(seen.futures.load(SeqCst), 0, "a task is left");
    }
}

fn every_nested_pair(of_one_device: bool) {
    for first in ALL {
        for in_task in ALL {
            nested(first, in_task, of_one_device);
        }
    }
}

pub(crate) fn tasks_of_a_thread_that_waits_with_their_own_device() {
    every_nested_pair(true);
}

pub(crate) fn tasks_of_a_thread_that_waits_with_another_member() {
    every_nested_pair(false);
}

vfiod_sync::checks! {
    tasks_of_a_thread_that_waits_with_their_own_device: 30,
    tasks_of_a_thread_that_waits_with_another_member: 30,
    pairs_of_one_device_whose_work_is_cancelled: 60,
    pairs_of_one_device_whose_work_finishes: 60,
    pairs_of_two_members_of_a_set: 60,
}
