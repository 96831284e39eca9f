//! What the checker plays through: a few tasks each.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use vfiod_core::{Errno, File, InUse, Owner, RegionIndex, Registry, Result};

use super::witness::{Ledger, Maker, Watched};
use crate::{Bus, Capacity, Create, Instance, ParentRegistration, ParentSpec, Removal, TypeInfo};
use vfiod_sync::model::{join, spawn};

const SOON: Duration = Duration::from_secs(1);

struct Stage {
    registry: Registry,
    bus: Bus,
    ledger: Arc<Ledger>,
    parent: Option<ParentRegistration>,
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn create(bus: &Bus, ledger: &Arc<Ledger>, n: u128) -> Result<Instance> {
    let create = Create::new("p", "t", uuid(n));
    let create = Create { open: vfiod_core::OpenPolicy::Multi, ..create };
    bus.create(&create, |_| Ok(Box::new(Watched::open(uuid(n), ledger))))
}

fn open(instance: &Instance) -> Result<File> {
    instance.device().open(Owner::in_process("model"))
}

fn use_once(instance: &Instance) -> Result<()> {
    let file = open(instance)?;
    file.read(RegionIndex(0), 0, &mut [0; 4])
}

/// Only these may be the outcome of what failed.
#[track_caller]
fn expect<T>(result: &Result<T>, errnos: &[Errno]) {
    if let Err(error) = result {
        assert!(errnos.contains(&error.errno()), "unexpected: {error}");
    }
}

impl Stage {
    fn new(capacity: u32) -> Self {
        let registry = Registry::new();
        let bus = Bus::new(registry.clone());
        let ledger = Ledger::new(capacity as usize);
        let mdev_type = TypeInfo {
            id: "t".to_owned(),
            name: "t".to_owned(),
            description: String::new(),
            device_api: "vfio-pci".to_owned(),
            takes: 1,
            attributes: Vec::new(),
        };
        let capacity = Capacity::Shared(capacity);
        let spec = ParentSpec { name: "p".to_owned(), types: vec![mdev_type], capacity };
        let parent = Some(bus.register(spec, Box::new(Maker(ledger.clone()))).expect("registers"));
        Self { registry, bus, ledger, parent }
    }

    fn create(&self, n: u128) -> Instance {
        create(&self.bus, &self.ledger, n).expect("creates")
    }

    fn creator(&self, n: u128) -> impl FnOnce() -> Result<Instance> + Send + use<> {
        let (bus, ledger) = (self.bus.clone(), self.ledger.clone());
        move || create(&bus, &ledger, n)
    }

    fn remover(&self, removal: Removal) -> impl FnOnce() -> Result<()> + Send + use<> {
        let bus = self.bus.clone();
        move || bus.remove(uuid(1), removal)
    }

    /// The parent's own end, and what must be true then.
    fn finish(mut self, capacity: u32) {
        if let Some(parent) = self.parent.take() {
            for instance in self.bus.instances() {
                self.bus.remove(instance.uuid(), Removal::Wait).expect("removes");
            }
            assert_eq!(self.bus.available("p", "t"), Some(capacity), "units were lost");
            parent.unregister(None);
        }
        self.ledger.assert_empty();
        assert!(self.bus.parents().is_empty() && self.registry.devices().is_empty());
    }
}

/// Two creations of one UUID: one is made.
pub(super) fn one_uuid() {
    let stage = Stage::new(2);
    let tasks = [0; 2].map(|_| spawn(stage.creator(1)));
    let made = tasks.map(join);
    for result in &made {
        expect(result, &[Errno::EXIST]);
    }
    assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 1);
    drop(made);
    stage.finish(2);
}

/// Two creations for the last unit: one is made.
pub(super) fn one_unit() {
    let stage = Stage::new(1);
    let tasks = [1, 2].map(|n| spawn(stage.creator(n)));
    let made = tasks.map(join);
    for result in &made {
        expect(result, &[Errno::USERS]);
    }
    assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 1);
    drop(made);
    stage.finish(1);
}

/// A UUID that is removed and created again.
pub(super) fn again() {
    let stage = Stage::new(1);
    drop(stage.create(1));
    let remover = spawn(stage.remover(Removal::Refuse));
    let creator = spawn(stage.creator(1));
    expect(&join(remover), &[]);
    expect(&join(creator), &[Errno::EXIST]);
    stage.finish(1);
}

/// An endpoint that clients find before the instance is created, and that fails, or not, while one
/// opens the device.
fn a_user_before(fails: bool) {
    let stage = Stage::new(1);
    let mut user = None;
    let made = stage.bus.create(&Create::new("p", "t", uuid(1)), |device| {
        let device = device.clone();
        user = Some(spawn(move || device.open(Owner::in_process("early"))));
        assert!(stage.registry.devices().is_empty(), "visible before its endpoint");
        if fails {
            return Err(vfiod_core::Error::new(Errno::ADDRINUSE, "another is there"));
        }
        Ok(Box::new(Watched::open(uuid(1), &stage.ledger)))
    });
    let file = join(user.expect("spawned"));
    if fails {
        expect(&made, &[Errno::ADDRINUSE]);
        expect(&file, &[Errno::NODEV]);
        assert!(made.is_err() && file.is_err(), "an instance without an endpoint");
        stage.ledger.assert_empty();
    } else {
        let file = file.expect("opens");
        file.read(RegionIndex(0), 0, &mut [0; 4]).expect("reads");
        made.expect("creates");
    }
    stage.finish(1);
}

pub(super) fn a_user_before_an_endpoint_that_fails() {
    a_user_before(true);
}

pub(super) fn a_user_before_the_instance() {
    a_user_before(false);
}

/// A removal that refuses, and a user.
pub(super) fn refusal_against_open() {
    let stage = Stage::new(1);
    let instance = stage.create(1);
    let user = spawn(move || open(&instance));
    let removed = join(spawn(stage.remover(Removal::Refuse)));
    let file = join(user);
    expect(&removed, &[Errno::BUSY]);
    expect(&file, &[Errno::NODEV]);
    if let Ok(file) = &file {
        // Whoever has it has it whole, unless it was removed before it was opened.
        let read = file.read(RegionIndex(0), 0, &mut [0; 4]);
        assert!(removed.is_err() && read.is_ok(), "removed while it was open");
    }
    drop(file);
    stage.finish(1);
}

/// Two removers, patient ones, and a user.
pub(super) fn two_removers() {
    let stage = Stage::new(1);
    let instance = stage.create(1);
    let ledger = stage.ledger.clone();
    let user = spawn(move || {
        let asked = ledger.asked();
        let used = use_once(&instance);
        expect(&used, &[Errno::NODEV]);
        assert!(!asked || used.is_err(), "opened after the users were asked");
    });
    let removers = [0; 2].map(|_| spawn(stage.remover(Removal::Wait)));
    for remover in removers {
        expect(&join(remover), &[Errno::NOENT]);
    }
    join(user);
    stage.finish(1);
}

/// A removal that waits for ever, and one with a deadline.
pub(super) fn a_deadline_hurries() {
    let stage = Stage::new(1);
    let instance = stage.create(1);
    let file = open(&instance).expect("opens");
    let patient = spawn(stage.remover(Removal::Wait));
    let hasty = spawn(stage.remover(Removal::Deadline(SOON)));
    expect(&join(hasty), &[Errno::NOENT]);
    expect(&join(patient), &[Errno::NOENT]);
    assert!(file.is_revoked());
    drop(file);
    stage.finish(1);
}

/// A removal that waits for ever, one with a deadline, and a user who opens the instance again as soon
/// as the file is revoked, and keeps it.
pub(super) fn a_deadline_against_reopening() {
    let stage = Stage::new(1);
    let instance = stage.create(1);
    let user = spawn(move || [0; 2].map(|_| open(&instance)));
    let patient = spawn(stage.remover(Removal::Wait));
    let hasty = spawn(stage.remover(Removal::Deadline(SOON)));
    expect(&join(hasty), &[Errno::NOENT]);
    expect(&join(patient), &[Errno::NOENT]);
    for file in join(user) {
        expect(&file, &[Errno::NODEV, Errno::INVAL]);
        assert!(file.is_err() || file.is_ok_and(|file| file.is_revoked()));
    }
    stage.finish(1);
}

/// A removal that waits for users without a thread and is given up, and one that waits for it.
pub(super) fn a_removal_that_is_given_up() {
    let stage = Stage::new(1);
    let instance = stage.create(1);
    let bus = stage.bus.clone();
    let pending = spawn(move || bus.begin_removal(uuid(1)).map(drop));
    let patient = spawn(stage.remover(Removal::Wait));
    let user = spawn(move || use_once(&instance));
    expect(&join(pending), &[Errno::NOENT]);
    expect(&join(patient), &[]);
    expect(&join(user), &[Errno::NODEV]);
    stage.finish(1);
}

/// A removal that waits for users without a thread, one with a deadline, and a user who keeps the
/// instance open.
pub(super) fn a_deadline_hurries_one_without_a_thread() {
    let stage = Stage::new(1);
    let instance = stage.create(1);
    let file = open(&instance).expect("opens");
    let pending = stage.bus.begin_removal(uuid(1)).expect("it is there").expect("nobody else");
    assert!(!pending.finish_if_unused());
    let hasty = spawn(stage.remover(Removal::Deadline(SOON)));
    let waiting = spawn(move || {
        while !pending.finish_if_unused() {
            vfiod_sync::point();
        }
    });
    expect(&join(hasty), &[]);
    join(waiting);
    assert!(file.is_revoked());
    drop(file);
    stage.finish(1);
}

/// A parent leaves while an instance is made.
pub(super) fn a_parent_against_creation() {
    let mut stage = Stage::new(2);
    let parent = stage.parent.take().expect("there is one");
    let creator = spawn(stage.creator(1));
    let leaver = spawn(move || parent.unregister(Some(SOON)));
    let made = join(creator);
    expect(&made, &[Errno::NODEV]);
    join(leaver);
    drop(made);
    stage.finish(2);
}

/// A parent whose creations are paused if it has no instance, while one is made.
pub(super) fn a_pause_against_creation() {
    let stage = Stage::new(1);
    let creator = spawn(stage.creator(1));
    let paused = stage.bus.pause_creation_if_unused("p");
    expect(&paused, &[Errno::BUSY]);
    if paused.is_ok() {
        let parent = stage.bus.parent("p").expect("there is one");
        assert!(parent.instances.is_empty(), "paused with an instance");
    }
    let made = join(creator);
    expect(&made, &[Errno::BUSY]);
    assert!(paused.is_err() || made.is_err(), "created while paused");
    drop((paused, made));
    stage.finish(1);
}

/// A parent is unregistered while its instance is used, removed by another thread, and reset.
pub(super) fn a_parent_against_everybody() {
    let mut stage = Stage::new(1);
    let parent = stage.parent.take().expect("there is one");
    let instance = stage.create(1);
    let (used, reset) = (instance.clone(), instance);
    let user = spawn(move || {
        let outcome = open(&used).and_then(|file| file.reset_set());
        expect(&outcome, &[Errno::NODEV, Errno::BUSY]);
    });
    let operator = spawn(move || {
        let outcome = reset.device().reset_set(InUse::Reset);
        expect(&outcome, &[Errno::NODEV, Errno::BUSY]);
    });
    let remover = spawn(stage.remover(Removal::Refuse));
    parent.unregister(None);
    expect(&join(remover), &[Errno::BUSY, Errno::NOENT]);
    join(user);
    join(operator);
    stage.finish(1);
}

vfiod_sync::checks! {
    one_uuid: 2000,
    one_unit: 2000,
    again: 2000,
    a_user_before_an_endpoint_that_fails: 2000,
    a_user_before_the_instance: 2000,
    refusal_against_open: 2000,
    two_removers: 2000,
    a_deadline_hurries: 2000,
    a_deadline_against_reopening: 2000,
    a_removal_that_is_given_up: 2000,
    a_deadline_hurries_one_without_a_thread: 2000,
    a_parent_against_creation: 2000,
    a_pause_against_creation: 2000,
    a_parent_against_everybody: 2000,
}
