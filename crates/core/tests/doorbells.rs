//! Data paths: what they may do, and that no ring is lost with the device's state.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use serde_json::{Value, json};
use vfiod_core::dma::Attachment;
use vfiod_core::region::Doorbell;
use vfiod_core::{
    Context, DataPath, Description, DescriptorTable, Device, DeviceFlags, DeviceSpec, DeviceTask,
    Errno, Error, File, Format, Images, Owner, Persistence, Quiesce, Region, RegionIndex,
    Registration, Registry, ResetCause, Result, SaveState, Saved, StatePolicy, Why, Worker,
};

const REGISTERS: RegionIndex = RegionIndex(0);
const DOORBELLS: u64 = 16;
/// The data path asks for a reset.
const RESET: u64 = 100;
/// The data path panics.
const PANIC: u64 = 101;
/// The data path starts a task.
const TASK: u64 = 102;

/// Keeps the context, as a data path that asks for resets has to.
struct Path {
    context: Context,
    rings: Mutex<Vec<(usize, Option<u64>)>>,
}

impl Path {
    fn rings(&self) -> Vec<(usize, Option<u64>)> {
        std::mem::take(&mut self.rings.lock().unwrap())
    }
}

impl DataPath for Path {
    fn doorbell(&self, bell: usize, value: Option<u64>, _dma: &Attachment) {
        self.rings.lock().unwrap().push((bell, value));
        match value {
            Some(RESET) => self.context.request_reset(),
            Some(PANIC) => panic!("on purpose"),
            Some(TASK) => {
                let pending = |_: DeviceTask<Ringing>| std::future::pending();
                DeviceTask::spawn(&self.context, "of the data path", pending).unwrap();
            }
            _ => {}
        }
    }
}

/// A device with two doorbells and nothing else.
#[derive(Default)]
struct Ringing {
    path: Arc<Mutex<Weak<Path>>>,
    resets: Arc<AtomicU32>,
    resumes: Arc<AtomicU32>,
    refuses: bool,
}

impl Device for Ringing {
    fn describe(&self) -> Description {
        let doorbells = vec![Doorbell::message(DOORBELLS, 4), Doorbell::message(DOORBELLS + 4, 4)];
        let registers = Region { doorbells, ..Region::registers(64) };
        Description { flags: DeviceFlags::RESET, regions: vec![registers], irqs: Vec::new() }
    }
    fn init(&mut self, context: &Context) -> Result<()> {
        let path = Arc::new(Path { context: context.clone(), rings: Mutex::default() });
        *self.path.lock().unwrap() = Arc::downgrade(&path);
        context.set_data_path(path);
        if self.refuses { Err(Error::new(Errno::INVAL, "refuses")) } else { Ok(()) }
    }
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Saved(self)
    }
    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
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
        self.resets.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Worker for Ringing {
    fn quiesce(&mut self, _: Why) -> Quiesce {
        Quiesce::Cancel
    }
    fn resume(&mut self) {
        self.resumes.fetch_add(1, Ordering::Relaxed);
    }
}

const RINGING: Format = Format { kind: "ringing", version: 1 };

impl SaveState for Ringing {
    fn save(&self) -> Result<Saved> {
        Saved::new(RINGING, &())
    }
    fn restore(&mut self, saved: &Saved) -> Result<()> {
        saved.read(RINGING)
    }
    fn image_len(&self) -> usize {
        0
    }
    fn save_image(&self, _: &mut [u8]) {}
    fn restore_image(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

struct Rig {
    registry: Registry,
    registration: Registration,
    path: Arc<Mutex<Weak<Path>>>,
    resets: Arc<AtomicU32>,
    resumes: Arc<AtomicU32>,
}

impl Rig {
    fn new(state: StatePolicy) -> Self {
        let registry = Registry::new();
        let device = Ringing::default();
        let (path, resets) = (device.path.clone(), device.resets.clone());
        let resumes = device.resumes.clone();
        let spec = DeviceSpec { name: "ringing".to_owned(), state, ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(device)).expect("registers");
        Self { registry, registration, path, resets, resumes }
    }

    fn open(&self) -> File {
        self.registration.device().open(Owner::in_process("test")).expect("opens")
    }

    fn rings(&self) -> Vec<(usize, Option<u64>)> {
        self.path.lock().unwrap().upgrade().expect("is there").rings()
    }

    fn save(&self) -> (Value, DescriptorTable) {
        let mut table = DescriptorTable::default();
        let saved = self.registration.device().save(&mut table).expect("can be saved");
        (serde_json::to_value(saved).unwrap(), table)
    }

    fn restore(&self, saved: &Value, core: Option<&[u8]>) -> Result<Vec<File>> {
        let saved: Saved = serde_json::from_value(saved.clone()).unwrap();
        let images = Images { core, own: None };
        let device = self.registration.device();
        device.restore_images(&saved, images, &mut DescriptorTable::default())
    }

    fn image(&self) -> Vec<u8> {
        let device = self.registration.device();
        let mut image = vec![0xee; device.core_image_len()];
        device.save_core_image(&mut image).unwrap();
        image
    }
}

fn ring(file: &File, bell: u64, value: u64) {
    let value = (value as u32).to_le_bytes();
    file.write(REGISTERS, DOORBELLS + 4 * bell, &value).expect("can be written");
}

#[test]
fn data_path_that_asks_for_a_reset_gets_it_when_it_has_returned() {
    let rig = Rig::new(StatePolicy::Reset);
    let file = rig.open();
    let before = rig.resets.load(Ordering::SeqCst);
    ring(&file, 0, RESET);
    assert_eq!(rig.resets.load(Ordering::SeqCst), before + 1, "no other access follows");
}

#[test]
fn panic_of_a_data_path_puts_the_device_into_the_error_state() {
    let rig = Rig::new(StatePolicy::Reset);
    let file = rig.open();
    ring(&file, 0, PANIC);
    assert_eq!(file.read(REGISTERS, 0, &mut [0]).unwrap_err().errno(), Errno::IO);
    let failure = rig.registration.device().status().failure;
    assert_eq!(failure.as_deref(), Some("doorbell 0: panic: on purpose"));
    file.reset().expect("can be reset");
    ring(&file, 1, 7);
    assert_eq!(rig.rings(), [(0, Some(PANIC)), (1, Some(7))]);
}

#[test]
fn data_path_starts_a_task() {
    let rig = Rig::new(StatePolicy::Reset);
    let file = rig.open();
    ring(&file, 0, TASK);
    let tasks = rig.registration.device().status().tasks;
    assert_eq!(tasks.iter().map(|task| &*task.name).collect::<Vec<_>>(), ["of the data path"]);
    file.reset().expect("cancels it");
    assert_eq!(rig.registration.device().status().tasks, []);
}

#[test]
fn data_path_that_keeps_the_context_ends_with_its_device() {
    let rig = Rig::new(StatePolicy::Reset);
    drop(rig.open());
    drop((rig.registration, rig.registry));
    assert!(rig.path.lock().unwrap().upgrade().is_none());

    let device = Ringing { refuses: true, ..Ringing::default() };
    let path = device.path.clone();
    let spec = DeviceSpec { name: "ringing".to_owned(), ..DeviceSpec::default() };
    Registry::new().register(spec, Box::new(device)).expect_err("is refused");
    assert!(path.lock().unwrap().upgrade().is_none());
}

#[test]
fn device_that_retains_its_state_retains_the_newest_rings() {
    let rig = Rig::new(StatePolicy::Retain);
    let file = rig.open();
    ring(&file, 1, 3);
    ring(&file, 1, 4);
    drop(file);
    rig.rings();
    let file = rig.open();
    assert_eq!(rig.rings(), [(1, Some(4))], "the newest ring");
    file.reset().expect("resets");
    drop(file);
    let _file = rig.open();
    assert_eq!(rig.rings(), [], "a reset forgets them");
}

#[test]
fn restored_device_gets_the_newest_rings() {
    let rig = Rig::new(StatePolicy::Reset);
    let file = rig.open();
    ring(&file, 1, 3);
    ring(&file, 1, 4);
    let (saved, _) = rig.save();
    assert_eq!(saved["state"]["rings"], json!([{ "bell": 1, "value": 4 }]));
    let copy = Rig::new(StatePolicy::Reset);
    let files = copy.restore(&saved, None).expect("is sound");
    assert_eq!(copy.rings(), [(1, Some(4))]);
    assert_eq!(copy.save().0["state"]["rings"], saved["state"]["rings"]);
    drop(files);

    // The image is newer than the text.
    ring(&file, 0, 9);
    let copy = Rig::new(StatePolicy::Reset);
    let files = copy.restore(&saved, Some(&rig.image())).expect("is sound");
    assert_eq!(copy.rings(), [(0, Some(9)), (1, Some(4))]);
    assert_eq!(files.len(), 1);
}

#[test]
fn next_user_of_a_restored_device_gets_the_newest_rings() {
    let rig = Rig::new(StatePolicy::Reset);
    let file = rig.open();
    ring(&file, 1, 3);
    ring(&file, 1, 4);
    let saved = rig.registration.device().save_portable().expect("can be saved");
    let copy = Rig::new(StatePolicy::Reset);
    copy.registration.device().restore_portable(&saved).expect("is sound");
    assert_eq!((copy.rings(), copy.resumes.load(Ordering::Relaxed)), (vec![], 0));
    let again = copy.registration.device().save_portable().expect("can be saved");
    assert_eq!(again, saved);
    let _file = copy.open();
    assert_eq!(copy.rings(), [(1, Some(4))]);
}

#[test]
fn save_of_a_device_that_is_not_open_starts_no_work() {
    let rig = Rig::new(StatePolicy::Retain);
    let file = rig.open();
    ring(&file, 1, 4);
    drop(file);
    rig.rings();
    let resumes = rig.resumes.load(Ordering::Relaxed);
    rig.save();
    rig.registration.device().save_portable().expect("can be saved");
    assert_eq!((rig.rings(), rig.resumes.load(Ordering::Relaxed)), (vec![], resumes));
}

#[test]
fn hostile_rings_are_refused_and_nothing_is_rung() {
    let rig = Rig::new(StatePolicy::Reset);
    let _file = rig.open();
    let ((saved, _), image) = (rig.save(), rig.image());
    let copy = Rig::new(StatePolicy::Reset);
    for rings in [
        json!([{ "bell": 2 }]),
        json!([{ "bell": u64::MAX }]),
        json!([{ "bell": 0 }, { "bell": 0 }]),
        json!([{ "bell": 1 }, { "bell": 0 }]),
        json!([{ "bell": 0, "value": -1 }]),
        json!([{ "bell": 0, "more": 1 }]),
    ] {
        let mut hostile = saved.clone();
        hostile["state"]["rings"] = rings;
        let error = copy.restore(&hostile, None).expect_err("is hostile");
        assert_eq!(error.errno(), Errno::INVAL, "{error}");
    }
    let doorbells = image.len() - 32;
    for (at, byte) in [(doorbells, 4), (doorbells, 2), (doorbells + 8, 1), (doorbells + 7, 1)] {
        let mut hostile = image.clone();
        hostile[at] = byte;
        let error = copy.restore(&saved, Some(&hostile)).expect_err("is hostile");
        assert_eq!(error.errno(), Errno::INVAL, "{error}");
    }
    for wrong in [&image[..image.len() - 1], &[&image[..], &[0]].concat(), &image[..32]] {
        copy.restore(&saved, Some(wrong)).expect_err("has another size");
    }
    assert_eq!(copy.rings(), []);
    copy.restore(&saved, Some(&image)).expect("is sound");
}
