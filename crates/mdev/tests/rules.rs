//! The kernel's rules of parents, types and instances, one test each.

#![cfg(not(shuttle))]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use vfiod_core::event::{Event, Observer};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceRef, Errno, Error, File, Owner, Region,
    RegionIndex, Registry, ResetCause, Result,
};
use vfiod_mdev::{
    AttributeInfo, Attributes, Bus, Capacity, Create, End, Endpoint, Instance, NewInstance,
    NoEndpoint, Parent, ParentRegistration, ParentSpec, Removal, Stage, TypeInfo, Uuid,
};

const NOW: Option<Duration> = Some(Duration::ZERO);

/// What the tests want to know, and to make happen.
#[derive(Default)]
struct Knobs {
    alive: AtomicUsize,
    requests: AtomicUsize,
    panic: AtomicBool,
    refuse: AtomicBool,
    /// Creation waits until this is filled.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    /// Those that have ended, as the parent was told.
    ended: Mutex<Vec<(String, Uuid, End)>>,
    /// How many more of each type, where the parent counts.
    room: AtomicUsize,
}

struct Counted(Arc<Knobs>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Device for Counted {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        let regions = vec![Region::registers(4)];
        Description { flags: DeviceFlags::RESET, regions, irqs: Vec::new() }
    }
    fn init(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _: RegionIndex, _: u64, data: &mut [u8]) -> Result<()> {
        data.fill(0);
        Ok(())
    }
    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
    fn as_request(&mut self) -> Option<&mut dyn vfiod_core::device::Request> {
        Some(self)
    }
}

impl vfiod_core::device::Request for Counted {
    fn request(&mut self, _: u32) -> bool {
        self.0.requests.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// A colour, and a serial number that can only be read.
struct Paint(Mutex<String>);

impl Attributes for Paint {
    fn get(&self, name: &str) -> Result<String> {
        Ok(match name {
            "colour" => self.0.lock().unwrap().clone(),
            _ => "7".to_owned(),
        })
    }
    fn set(&self, name: &str, value: &str) -> Result<()> {
        assert_eq!(name, "colour");
        check_colour(value)?;
        *self.0.lock().unwrap() = value.to_owned();
        Ok(())
    }
}

struct Shop(Arc<Knobs>);

/// The colours that there are.
fn check_colour(value: &str) -> Result<()> {
    match value {
        "red" | "blue" => Ok(()),
        "crash" => panic!("{value}"),
        _ => Err(Error::new(Errno::INVAL, format!("`{value}` is not red or blue"))),
    }
}

impl Parent for Shop {
    fn start(&self) -> Result<()> {
        assert!(!self.0.panic.load(Ordering::SeqCst), "the shop burns");
        if self.0.refuse.load(Ordering::SeqCst) {
            return Err(Error::new(Errno::NOENT, "the shop has no door"));
        }
        Ok(())
    }

    fn available(&self, type_id: &str) -> u32 {
        assert_eq!(type_id, "narrow", "it panics for the other type");
        self.0.room.load(Ordering::SeqCst) as u32
    }

    fn ended(&self, type_id: &str, uuid: Uuid, why: End) {
        self.0.ended.lock().unwrap().push((type_id.to_owned(), uuid, why));
        assert!(!self.0.panic.load(Ordering::SeqCst), "the shop burns");
    }

    fn check_attribute(&self, _: &str, name: &str, value: &str) -> Result<()> {
        assert_eq!(name, "colour");
        check_colour(value)
    }

    fn create(&self, type_id: &str, _: Uuid) -> Result<NewInstance> {
        if let Some(gate) = &*self.0.gate.lock().unwrap() {
            gate.recv().unwrap();
        }
        if self.0.refuse.load(Ordering::SeqCst) {
            return Err(Error::new(Errno::NOMEM, "the shop is out of paint"));
        }
        self.0.alive.fetch_add(1, Ordering::SeqCst);
        let device = Box::new(Counted(self.0.clone()));
        assert!(!self.0.panic.load(Ordering::SeqCst), "the shop burns");
        let paint = || Arc::new(Paint(Mutex::new("grey".to_owned()))) as Arc<dyn Attributes>;
        Ok(NewInstance { device, attributes: (type_id == "wide").then(paint) })
    }
}

fn mdev_type(id: &str, takes: u32) -> TypeInfo {
    let attribute = |name: &str, writable| AttributeInfo {
        name: name.to_owned(),
        values: "red or blue".to_owned(),
        summary: "for looks".to_owned(),
        writable,
    };
    let attributes = vec![attribute("colour", true), attribute("number", false)];
    TypeInfo {
        id: id.to_owned(),
        name: format!("The {id} one"),
        description: "of the shop".to_owned(),
        device_api: "vfio-pci".to_owned(),
        takes,
        attributes: if id == "wide" { attributes } else { Vec::new() },
    }
}

struct Rig {
    registry: Registry,
    bus: Bus,
    shop: ParentRegistration,
    knobs: Arc<Knobs>,
}

/// A shop with five units: the narrow type takes one, the wide one two.
fn rig() -> Rig {
    rig_with(Capacity::Shared(5))
}

fn rig_with(capacity: Capacity) -> Rig {
    rig_in(Registry::new(), capacity)
}

fn rig_in(registry: Registry, capacity: Capacity) -> Rig {
    let bus = Bus::new(registry.clone());
    let knobs = Arc::<Knobs>::default();
    let types = vec![mdev_type("narrow", 1), mdev_type("wide", 2)];
    let spec = ParentSpec { name: "shop".to_owned(), types, capacity };
    let shop = bus.register(spec, Box::new(Shop(knobs.clone()))).unwrap();
    Rig { registry, bus, shop, knobs }
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

impl Rig {
    fn create(&self, mdev_type: &str, n: u128) -> Result<Instance> {
        self.bus.create(&Create::new("shop", mdev_type, uuid(n)), |_| Ok(Box::new(NoEndpoint)))
    }

    fn with(&self, n: u128, attributes: &[(&str, &str)]) -> Result<Instance> {
        let pairs = attributes.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let create = Create { attributes: pairs.collect(), ..Create::new("shop", "wide", uuid(n)) };
        self.bus.create(&create, |_| Ok(Box::new(NoEndpoint)))
    }

    fn alive(&self) -> usize {
        self.knobs.alive.load(Ordering::SeqCst)
    }

    fn left(&self) -> [u32; 2] {
        ["narrow", "wide"].map(|mdev_type| self.bus.available("shop", mdev_type).unwrap())
    }

    /// Nothing was left behind.
    fn assert_empty(&self) {
        assert_eq!((self.alive(), self.left()), (0, [5, 2]));
        assert!(self.bus.instances().is_empty() && self.registry.devices().is_empty());
    }
}

fn open(instance: &Instance) -> Result<File> {
    instance.device().open(Owner::in_process("test"))
}

#[track_caller]
fn refused<T>(result: Result<T>, errno: Errno, says: &str) {
    let Err(error) = result else { panic!("not refused: {says}") };
    assert_eq!(error.errno(), errno, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn units_are_shared_by_the_types() {
    let rig = rig();
    assert_eq!(rig.left(), [5, 2]);
    rig.create("wide", 1).unwrap();
    assert_eq!(rig.left(), [3, 1]);
    rig.create("wide", 2).unwrap();
    assert_eq!(rig.left(), [1, 0]);
    refused(rig.create("wide", 3), Errno::USERS, "parent shop has no wide left");
    rig.create("narrow", 3).unwrap();
    refused(rig.create("narrow", 4), Errno::USERS, "no narrow left");
    rig.bus.remove(uuid(1), Removal::Refuse).unwrap();
    assert_eq!(rig.left(), [2, 1]);
    let parent = rig.bus.parent("shop").unwrap();
    assert_eq!(parent.instances, [uuid(2), uuid(3)]);
}

#[test]
fn units_of_each_type() {
    let rig = rig_with(Capacity::PerType(2));
    assert_eq!(rig.left(), [2, 1]);
    rig.create("wide", 1).unwrap();
    assert_eq!(rig.left(), [2, 0]);
    refused(rig.create("wide", 2), Errno::USERS, "no wide left");
    rig.create("narrow", 2).unwrap();
    assert_eq!(rig.left(), [1, 0]);
}

#[test]
fn a_uuid_is_known_once_until_it_is_gone() {
    let rig = rig();
    let instance = rig.create("narrow", 1).unwrap();
    refused(rig.create("narrow", 1), Errno::EXIST, "there is an instance 00000000-0000-0000");
    refused(rig.create("wide", 1), Errno::EXIST, "already");
    assert_eq!(instance.device().name(), uuid(1).to_string());
    assert_eq!((instance.parent(), instance.mdev_type().id.as_str()), ("shop", "narrow"));
    // Its set is its own: it is called like the device.
    assert_eq!(instance.device().set_name(), instance.device().name());
    rig.bus.remove(uuid(1), Removal::Refuse).unwrap();
    refused(rig.bus.remove(uuid(1), Removal::Refuse), Errno::NOENT, "no instance");
    rig.create("narrow", 1).unwrap();
}

#[test]
fn what_there_is_not_cannot_be_created() {
    let rig = rig();
    refused(rig.create("tall", 1), Errno::INVAL, "its types: narrow, wide");
    refused(rig.create("narrow", 0), Errno::INVAL, "nil");
    let create = Create::new("shed", "narrow", uuid(1));
    let created = rig.bus.create(&create, |_| Ok(Box::new(NoEndpoint)));
    refused(created, Errno::NODEV, "no parent `shed`; there is: shop");
    rig.assert_empty();
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    let rig = rig();
    rig.knobs.refuse.store(true, Ordering::SeqCst);
    refused(rig.create("narrow", 1), Errno::NOMEM, "out of paint");
    rig.assert_empty();
    rig.knobs.refuse.store(false, Ordering::SeqCst);
    rig.knobs.panic.store(true, Ordering::SeqCst);
    refused(rig.create("narrow", 1), Errno::IO, "the parent of narrow failed");
    rig.assert_empty();
    rig.knobs.panic.store(false, Ordering::SeqCst);
    let no_endpoint =
        |_: &vfiod_core::DeviceRef| Err(Error::new(Errno::ADDRINUSE, "the address is in use"));
    let created = rig.bus.create(&Create::new("shop", "narrow", uuid(1)), no_endpoint);
    refused(created, Errno::ADDRINUSE, "the address is in use");
    rig.assert_empty();
    rig.create("narrow", 1).unwrap();
}

#[test]
fn attributes_are_checked_before_anything_is_seen() {
    let rig = rig();
    refused(rig.with(1, &[("color", "red")]), Errno::NOENT, "it has: colour, number");
    refused(rig.with(1, &[("colour", "red"), ("colour", "pink")]), Errno::INVAL, "not red or blue");
    refused(rig.with(1, &[("number", "8")]), Errno::ACCESS, "can only be read");
    refused(rig.with(1, &[("colour", "crash")]), Errno::IO, "failed");
    rig.assert_empty();
    let instance = rig.with(1, &[("colour", "red"), ("colour", "blue")]).unwrap();
    assert_eq!(instance.attribute("colour").unwrap(), "blue");
    assert_eq!(instance.attribute("number").unwrap(), "7");
    instance.set_attribute("colour", "red").unwrap();
    assert_eq!(instance.attribute("colour").unwrap(), "red");
    refused(instance.set_attribute("number", "1"), Errno::ACCESS, "can only be read");
    refused(instance.set_attribute("size", "1"), Errno::NOENT, "no attribute `size`");
    let plain = rig.create("narrow", 2).unwrap();
    refused(plain.attribute("colour"), Errno::NOENT, "it has: none");
}

#[test]
fn one_in_use_is_not_removed_where_that_is_refused() {
    let rig = rig();
    let instance = rig.create("narrow", 1).unwrap();
    let file = open(&instance).unwrap();
    refused(rig.bus.remove(uuid(1), Removal::Refuse), Errno::BUSY, "in use by test");
    // It stays as usable as it was.
    assert_eq!(instance.stage(), Stage::Live);
    file.read(RegionIndex(0), 0, &mut [0; 4]).unwrap();
    drop(file);
    drop(open(&instance).unwrap());
    rig.bus.remove(uuid(1), Removal::Refuse).unwrap();
    assert_eq!(open(&instance).unwrap_err().errno(), Errno::NODEV);
    rig.assert_empty();
}

/// Spins until something is so; a hang is a failure.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if so() {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("never: {what}");
}

#[test]
fn a_removal_waits_for_the_users_whom_it_asks() {
    let rig = rig();
    let instance = rig.create("narrow", 1).unwrap();
    let file = open(&instance).unwrap();
    thread::scope(|scope| {
        let removal = scope.spawn(|| rig.bus.remove(uuid(1), Removal::Wait));
        eventually("asked", || rig.knobs.requests.load(Ordering::SeqCst) > 0);
        assert_eq!(instance.stage(), Stage::Leaving);
        refused(rig.bus.remove(uuid(1), Removal::Refuse), Errno::BUSY, "already");
        refused(rig.create("narrow", 1), Errno::EXIST, "already");
        assert_eq!(open(&instance).unwrap_err().errno(), Errno::NODEV);
        // The user still has it.
        file.read(RegionIndex(0), 0, &mut [0; 4]).unwrap();
        let second = scope.spawn(|| rig.bus.remove(uuid(1), Removal::Wait));
        assert!(!removal.is_finished() && !second.is_finished());
        drop(file);
        removal.join().unwrap().unwrap();
        match second.join().unwrap() {
            Ok(()) => {}
            Err(error) => assert_eq!(error.errno(), Errno::NOENT),
        }
    });
    rig.assert_empty();
}

#[test]
fn at_the_deadline_it_is_taken_away() {
    let rig = rig();
    let instance = rig.create("narrow", 1).unwrap();
    let file = open(&instance).unwrap();
    rig.bus.remove(uuid(1), Removal::Deadline(Duration::from_millis(20))).unwrap();
    assert!(rig.knobs.requests.load(Ordering::SeqCst) > 0);
    let read = file.read(RegionIndex(0), 0, &mut [0; 4]);
    assert_eq!(read.unwrap_err().errno(), Errno::NODEV);
    rig.assert_empty();
}

#[test]
fn a_deadline_hurries_a_removal_that_waits() {
    let rig = rig();
    let instance = rig.create("narrow", 1).unwrap();
    let file = open(&instance).unwrap();
    thread::scope(|scope| {
        let patient = scope.spawn(|| rig.bus.remove(uuid(1), Removal::Wait));
        eventually("it is leaving", || instance.stage() == Stage::Leaving);
        rig.bus.remove(uuid(1), Removal::Deadline(Duration::from_millis(10))).unwrap();
        patient.join().unwrap().unwrap();
    });
    assert!(file.is_revoked());
    rig.assert_empty();
}

/// Writes down what happened to it.
struct Diary(Arc<Mutex<Vec<&'static str>>>);

impl Endpoint for Diary {
    fn stop_listening(&mut self) {
        self.0.lock().unwrap().push("stop listening");
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("gone");
    }
}

#[test]
fn endpoint_stops_listening_first_and_is_dropped_last() {
    let rig = rig();
    let diary = Arc::default();
    let endpoint = Diary(Arc::clone(&diary));
    let create = Create::new("shop", "narrow", uuid(1));
    let instance = rig.bus.create(&create, |_| Ok(Box::new(endpoint))).unwrap();
    let file = open(&instance).unwrap();
    thread::scope(|scope| {
        let removal = scope.spawn(|| rig.bus.remove(uuid(1), Removal::Wait));
        eventually("asked", || rig.knobs.requests.load(Ordering::SeqCst) > 0);
        assert_eq!(*diary.lock().unwrap(), ["stop listening"]);
        drop(file);
        removal.join().unwrap().unwrap();
    });
    assert_eq!(*diary.lock().unwrap(), ["stop listening", "gone"]);
}

/// A client may connect as soon as the endpoint is there, and finds the instance whole.
#[test]
fn nothing_of_an_instance_is_visible_before_its_endpoint_is_open() {
    let log = Arc::<Mutex<Vec<String>>>::default();
    let events = log.clone();
    let observer = move |event: &Event<'_>| {
        let name = match event {
            Event::SetCreated(_) => "set created",
            Event::Registered(_) => "registered",
            Event::DeviceOpened(_) => "opened",
            Event::FileOpened { .. } | Event::Reset { .. } => return,
            _ => "another",
        };
        events.lock().unwrap().push(name.to_owned());
    };
    let rig = rig_in(Registry::with_observer(Arc::new(observer)), Capacity::Shared(5));
    let create = Create::new("shop", "narrow", uuid(1));
    let invisible = || {
        let found = rig.registry.find(&uuid(1).to_string());
        assert!(
            found.is_none() && rig.registry.devices().is_empty(),
            "visible before its endpoint"
        );
        assert!(rig.bus.instance(uuid(1)).is_none());
    };
    let failed = rig.bus.create(&create, |_| {
        invisible();
        Err(Error::new(Errno::ADDRINUSE, "another socket is there"))
    });
    assert_eq!(failed.unwrap_err().errno(), Errno::ADDRINUSE);
    assert_eq!(log.lock().unwrap().len(), 0, "nothing had been there");
    rig.assert_empty();

    let mut client = None;
    let instance = rig.bus.create(&create, |device| {
        let device = device.clone();
        client = Some(thread::spawn(move || device.open(Owner::in_process("early"))));
        invisible();
        Ok(Box::new(NoEndpoint))
    });
    let file = client.unwrap().join().unwrap().unwrap();
    assert_eq!(*log.lock().unwrap(), ["set created", "registered", "opened"]);
    drop((file, instance));
}

/// Tries to open the instance when it is told to stop listening.
struct Reopening(DeviceRef, Arc<Mutex<Option<Result<File>>>>);

impl Endpoint for Reopening {
    fn stop_listening(&mut self) {
        *self.1.lock().unwrap() = Some(self.0.open(Owner::in_process("test")));
    }
}

/// Otherwise a second remover would revoke the files that there are, and then wait for this one.
#[test]
fn instance_cannot_be_opened_any_more_once_a_removal_has_begun() {
    let rig = rig();
    let opened = Arc::<Mutex<Option<Result<File>>>>::default();
    let outcome = opened.clone();
    let create = Create::new("shop", "narrow", uuid(1));
    rig.bus.create(&create, |device| Ok(Box::new(Reopening(device.clone(), outcome)))).unwrap();
    rig.bus.remove(uuid(1), Removal::Deadline(Duration::ZERO)).unwrap();
    let opened = opened.lock().unwrap().take().unwrap();
    assert_eq!(opened.unwrap_err().errno(), Errno::NODEV);
    rig.assert_empty();
}

/// A parent that registers its successor when it is dropped.
struct Succeeded(Bus, Arc<Mutex<Option<ParentRegistration>>>);

impl Parent for Succeeded {
    fn check_attribute(&self, _: &str, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
    fn create(&self, _: &str, _: Uuid) -> Result<NewInstance> {
        Err(Error::new(Errno::NODEV, "makes nothing"))
    }
}

impl Drop for Succeeded {
    fn drop(&mut self) {
        let (types, capacity) = (vec![mdev_type("narrow", 1)], Capacity::Shared(1));
        let spec = ParentSpec { name: "heir".to_owned(), types, capacity };
        let successor = self.0.register(spec, Box::new(Shop(Arc::default()))).unwrap();
        *self.1.lock().unwrap() = Some(successor);
    }
}

#[test]
fn dropping_an_old_registration_leaves_a_new_parent_of_the_same_name() {
    let rig = rig();
    let successor = Arc::<Mutex<Option<ParentRegistration>>>::default();
    let (types, capacity) = (vec![mdev_type("narrow", 1)], Capacity::Shared(1));
    let spec = ParentSpec { name: "heir".to_owned(), types, capacity };
    let first = Succeeded(rig.bus.clone(), successor.clone());
    rig.bus.register(spec, Box::new(first)).unwrap().unregister(NOW);
    // The registration itself has been dropped, too, after its parent.
    let create = Create::new("heir", "narrow", uuid(1));
    rig.bus.create(&create, |_| Ok(Box::new(NoEndpoint))).unwrap();
    successor.lock().unwrap().take().unwrap().unregister(NOW);
    rig.assert_empty();
}

#[test]
fn a_parent_takes_its_instances_with_it() {
    let rig = rig();
    let instances = [1, 2, 3].map(|n| rig.create("narrow", n).unwrap());
    let files = [&instances[0], &instances[2]].map(|instance| open(instance).unwrap());
    let Rig { bus, shop, knobs, registry } = rig;
    shop.unregister(Some(Duration::from_millis(500)));
    assert!(files.iter().all(File::is_revoked));
    // Both users were asked.
    assert!(knobs.requests.load(Ordering::SeqCst) >= 2);
    assert_eq!(knobs.alive.load(Ordering::SeqCst), 0);
    assert!(bus.instances().is_empty() && registry.devices().is_empty());
    assert!(bus.parents().is_empty());
    let create = Create::new("shop", "narrow", uuid(1));
    let created = bus.create(&create, |_| Ok(Box::new(NoEndpoint)));
    refused(created, Errno::NODEV, "there is: none");
}

#[test]
fn parent_that_is_unregistered_creates_nothing_more_and_waits_for_what_is_being_created() {
    let rig = rig();
    let (release, gate) = mpsc::channel();
    *rig.knobs.gate.lock().unwrap() = Some(gate);
    let Rig { bus, shop, knobs, .. } = rig;
    thread::scope(|scope| {
        let create =
            |n| bus.create(&Create::new("shop", "narrow", uuid(n)), |_| Ok(Box::new(NoEndpoint)));
        let slow = scope.spawn(move || create(1).map(drop));
        eventually("being created", || bus.available("shop", "narrow") == Some(4));
        refused(bus.remove(uuid(1), Removal::Wait), Errno::BUSY, "is being created");
        let leaving = scope.spawn(|| shop.unregister(NOW));
        eventually("leaving", || bus.parent("shop").is_some_and(|shop| shop.leaving));
        refused(create(2), Errno::NODEV, "leaving");
        release.send(()).unwrap();
        slow.join().unwrap().unwrap();
        leaving.join().unwrap();
    });
    assert_eq!(knobs.alive.load(Ordering::SeqCst), 0);
    assert!(bus.instances().is_empty() && bus.parents().is_empty());
}

#[test]
fn a_parent_is_known_once() {
    let rig = rig();
    let spec = |name: &str, types| ParentSpec {
        name: name.to_owned(),
        types,
        capacity: Capacity::Shared(1),
    };
    let register = |spec| rig.bus.register(spec, Box::new(Shop(rig.knobs.clone())));
    refused(register(spec("shop", vec![mdev_type("a", 1)])), Errno::EXIST, "called shop already");
    refused(register(spec("b", vec![])), Errno::INVAL, "has no type");
    refused(register(spec("b", vec![mdev_type("a", 0)])), Errno::INVAL, "takes nothing");
    refused(register(spec("b", vec![mdev_type("a", 1), mdev_type("a", 1)])), Errno::INVAL, "twice");
    for bad in ["", ".", "..", ".b", "a/b", "a b", "a\n", "\u{e4}"] {
        refused(register(spec(bad, vec![mdev_type("a", 1)])), Errno::INVAL, "no name for a parent");
        refused(register(spec("b", vec![mdev_type(bad, 1)])), Errno::INVAL, "no name for a type");
    }
    drop(register(spec("b", vec![mdev_type("a", 1)])).unwrap());
    register(spec("b", vec![mdev_type("a", 1)])).unwrap().unregister(None);
}

/// Holds the first open of one device, which happens under its set's lock.
struct Hold {
    device: String,
    reached: Mutex<mpsc::Sender<()>>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Observer for Hold {
    fn event(&self, event: &Event<'_>) {
        if let Event::DeviceOpened(subject) = event
            && subject.name == self.device
        {
            self.reached.lock().unwrap().send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
    }
}

/// The set-id table's row: an instance is a set of its own, and shares its lock with nobody.
#[test]
fn instances_do_not_share_a_lock() {
    let (reached, has_reached) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let hold = Hold {
        device: uuid(1).to_string(),
        reached: Mutex::new(reached),
        go_on: Mutex::new(may_go_on),
    };
    let rig = rig_in(Registry::with_observer(Arc::new(hold)), Capacity::Shared(5));
    let (a, b) = (rig.create("narrow", 1).unwrap(), rig.create("narrow", 2).unwrap());
    assert_ne!(a.device().set_key(), b.device().set_key());
    thread::scope(|scope| {
        let first = scope.spawn(|| open(&a).unwrap());
        has_reached.recv().unwrap();
        // One is in the midst of its first open; the other is opened and closed.
        drop(open(&b).unwrap());
        assert!(!first.is_finished());
        go_on.send(()).unwrap();
        assert_eq!(first.join().unwrap().set_members().unwrap().len(), 1);
    });
}

#[test]
fn parent_is_told_of_instances_that_end_but_not_of_those_that_end_with_it() {
    let Rig { bus, shop, knobs, .. } = rig();
    let ended = || std::mem::take(&mut *knobs.ended.lock().unwrap());
    let create =
        |n: u128| bus.create(&Create::new("shop", "wide", uuid(n)), |_| Ok(Box::new(NoEndpoint)));
    create(1).unwrap();
    assert!(ended().is_empty());
    bus.remove(uuid(1), Removal::Refuse).unwrap();
    assert_eq!(ended(), [("wide".to_owned(), uuid(1), End::Removed)]);
    create(1).unwrap();
    bus.begin_removal(uuid(1)).unwrap().unwrap().finish_now();
    assert_eq!(ended(), [("wide".to_owned(), uuid(1), End::Removed)]);
    // What the parent itself refused it knows.
    knobs.refuse.store(true, Ordering::SeqCst);
    refused(create(2), Errno::NOMEM, "out of paint");
    knobs.refuse.store(false, Ordering::SeqCst);
    assert!(ended().is_empty());
    let no_endpoint = bus
        .create(&Create::new("shop", "narrow", uuid(2)), |_| Err(Error::new(Errno::MFILE, "none")));
    refused(no_endpoint, Errno::MFILE, "none");
    assert_eq!(ended(), [("narrow".to_owned(), uuid(2), End::NotCreated)]);
    let colour = [("colour".to_owned(), "green".to_owned())].into();
    let wrong = Create { attributes: colour, ..Create::new("shop", "wide", uuid(2)) };
    refused(bus.create(&wrong, |_| Ok(Box::new(NoEndpoint))), Errno::INVAL, "green");
    assert_eq!(ended(), [("wide".to_owned(), uuid(2), End::NotCreated)]);
    // A panic keeps nothing from ending.
    create(3).unwrap();
    knobs.panic.store(true, Ordering::SeqCst);
    bus.remove(uuid(3), Removal::Refuse).unwrap();
    assert_eq!(ended().len(), 1);
    knobs.panic.store(false, Ordering::SeqCst);
    let file = open(&create(3).unwrap()).unwrap();
    create(4).unwrap();
    shop.unregister(NOW);
    drop(file);
    assert!(ended().is_empty());
    assert!(bus.instances().is_empty());
}

#[test]
fn parent_that_counts_itself_is_asked_how_many_more_there_can_be() {
    let rig = rig_with(Capacity::Own);
    let left = |mdev_type| rig.bus.available("shop", mdev_type);
    assert_eq!(left("narrow"), Some(0));
    rig.knobs.room.store(7, Ordering::SeqCst);
    assert_eq!(left("narrow"), Some(7));
    assert_eq!(left("wide"), Some(0), "it panics");
    // It refuses what does not fit when it is to make it.
    rig.knobs.room.store(0, Ordering::SeqCst);
    rig.create("narrow", 1).unwrap();
}

#[test]
fn parent_that_cannot_start_is_not_registered() {
    let bus = Bus::new(Registry::new());
    let knobs = Arc::<Knobs>::default();
    let register = || {
        let types = vec![mdev_type("narrow", 1)];
        let spec = ParentSpec { name: "shop".to_owned(), types, capacity: Capacity::Own };
        bus.register(spec, Box::new(Shop(knobs.clone())))
    };
    knobs.refuse.store(true, Ordering::SeqCst);
    refused(register(), Errno::NOENT, "the shop has no door");
    knobs.panic.store(true, Ordering::SeqCst);
    refused(register(), Errno::IO, "parent shop failed");
    assert!(bus.parents().is_empty());
    knobs.refuse.store(false, Ordering::SeqCst);
    knobs.panic.store(false, Ordering::SeqCst);
    drop(register().unwrap());
}
