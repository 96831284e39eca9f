//! Saving and restoring a registered device.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vfiod_core::dma::{Attachment, Backing, Completion, DmaPeer, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{
    Context, Description, DescriptorTable, Device, DeviceFlags, DeviceSpec, Errno, Error, File,
    Format, IrqFlags, IrqIndex, IrqInfo, OpenPolicy, Owner, Persistence, Region, RegionIndex,
    Registration, Registry, ResetCause, Result, SaveState, Saved,
};
use vfiod_tasks::Runtime;

const LINE: IrqIndex = IrqIndex(0);
const COUNTER: Format = Format { kind: "counter", version: 1 };
const REGION: RegionIndex = RegionIndex(0);

/// Counts writes; a write of 0 panics.
#[derive(Default)]
struct Counter {
    writes: u32,
    shared: Arc<Shared>,
}

/// What tests see of the device.
#[derive(Default)]
struct Shared {
    context: Mutex<Option<Context>>,
    calls: Mutex<Vec<&'static str>>,
}

impl Shared {
    fn context(&self) -> Context {
        self.context.lock().unwrap().clone().unwrap()
    }

    fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Counter {
    fn note(&self, call: &'static str) {
        self.shared.calls.lock().unwrap().push(call);
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CounterState {
    writes: u32,
}

impl Device for Counter {
    fn describe(&self) -> Description {
        let flags = IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED;
        Description {
            flags: DeviceFlags::RESET,
            regions: vec![Region::registers(4096)],
            irqs: vec![IrqInfo { flags, count: 2 }],
        }
    }
    fn init(&mut self, context: &Context) -> Result<()> {
        *self.shared.context.lock().unwrap() = Some(context.clone());
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        self.note("open_device");
        Ok(())
    }
    fn close_device(&mut self) {
        self.note("close_device");
    }
    fn open(&mut self, _file: vfiod_core::FileId, _owner: &Owner) -> Result<()> {
        self.note("open");
        Ok(())
    }
    fn release(&mut self, _file: vfiod_core::FileId) {
        self.note("release");
    }
    fn read(&mut self, _region: RegionIndex, _offset: u64, data: &mut [u8]) -> Result<()> {
        data.fill(self.writes as u8);
        Ok(())
    }
    fn write(&mut self, _region: RegionIndex, _offset: u64, data: &[u8]) -> Result<()> {
        assert!(data[0] != 0, "a write of 0");
        self.writes += 1;
        Ok(())
    }
    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        let Self { writes, shared: _ } = self;
        *writes = 0;
        Ok(())
    }
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Saved(self)
    }
}

impl SaveState for Counter {
    fn save(&self) -> Result<Saved> {
        Saved::new(COUNTER, &CounterState { writes: self.writes })
    }
    fn restore(&mut self, saved: &Saved) -> Result<()> {
        let CounterState { writes } = saved.read(COUNTER)?;
        self.writes = writes;
        Ok(())
    }
    fn image_len(&self) -> usize {
        4
    }
    fn save_image(&self, image: &mut [u8]) {
        image.copy_from_slice(&self.writes.to_le_bytes());
    }
    fn restore_image(&mut self, image: &[u8]) -> Result<()> {
        let image = image.try_into().map_err(|_| Error::new(Errno::INVAL, "another size"))?;
        self.writes = u32::from_le_bytes(image);
        Ok(())
    }
}

/// A client's memory in which every byte is 7.
struct Sevens;

impl DmaPeer for Sevens {
    fn start_read(&self, _iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        completion.complete(Ok(vec![7; len]));
    }
    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Ok(()));
    }
}

struct Rig {
    registration: Registration,
    shared: Arc<Shared>,
}

impl Rig {
    fn new(open: OpenPolicy) -> Self {
        let device = Counter::default();
        let shared = device.shared.clone();
        let spec = DeviceSpec { name: "counter".to_owned(), open, ..DeviceSpec::default() };
        let registration = Registry::new().register(spec, Box::new(device)).unwrap();
        Self { registration, shared }
    }

    fn open(&self) -> File {
        self.registration.device().open(Owner::in_process("test")).unwrap()
    }

    fn save(&self) -> (Value, DescriptorTable) {
        let mut table = DescriptorTable::new().with_peer(Arc::new(Sevens));
        let saved = self.registration.device().save(&mut table).unwrap();
        (serde_json::to_value(saved).unwrap(), table)
    }

    fn restore(&self, text: &Value, table: &mut DescriptorTable) -> Result<Vec<File>> {
        let saved: Saved = serde_json::from_value(text.clone()).unwrap();
        self.registration.device().restore(&saved, None, table)
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signals(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

fn eventfds(fd: &OwnedFd) -> IrqData<'static> {
    IrqData::EventFds(vec![Some(fd.try_clone().unwrap())])
}

fn map(file: &File, iova: u64, backing: Backing) {
    let perm = Perm::READ | Perm::WRITE;
    file.dma_map(MapRequest { iova, size: 0x1000, perm, backing }).unwrap();
}

fn memory(content: &[u8]) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 0x2000).unwrap();
    rustix::io::pwrite(&fd, content, 0x1000).unwrap();
    fd
}

/// A device with two files, of which the first has set up everything.
struct Used {
    rig: Rig,
    files: Vec<File>,
    signal: OwnedFd,
}

fn used() -> Used {
    let rig = Rig::new(OpenPolicy::Multi);
    let files = vec![rig.open(), rig.open()];
    let (signal, unmask) = (event(), event());
    let irqs = |vector, action, data| files[0].set_irqs(LINE, vector, 1, action, data).unwrap();
    irqs(0, IrqAction::Trigger, eventfds(&signal));
    irqs(0, IrqAction::Unmask, eventfds(&unmask));
    irqs(1, IrqAction::Mask, IrqData::None);
    // It masks itself when it is signalled.
    rig.shared.context().irqs().set_level(LINE, 0, true).unwrap();
    assert_eq!(signals(&signal), 1);
    map(&files[0], 0x1_0000, Backing::File { fd: memory(b"hello"), offset: 0x1000 });
    map(&files[1], 0x2_0000, Backing::Peer(Arc::new(Sevens)));
    files[0].write(REGION, 0, &[1]).unwrap();
    Used { rig, files, signal }
}

#[test]
fn files_interrupts_mappings_and_state_are_restored() {
    let Used { rig, files, signal } = used();
    let (text, mut table) = rig.save();
    let copy = Rig::new(OpenPolicy::Multi);
    let restored = copy.restore(&text, &mut table).unwrap();
    assert_eq!(copy.shared.take_calls(), ["open_device", "open", "open"]);
    for (restored, file) in restored.iter().zip(&files) {
        assert_eq!((restored.id(), restored.owner()), (file.id(), file.owner()));
    }
    let (before, after) =
        (rig.registration.device().status().files, copy.registration.device().status().files);
    assert_eq!(before, after, "also when they were opened");
    let (again, _) = copy.save();
    assert_eq!(again, text);

    let mut byte = [0];
    restored[0].read(REGION, 0, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    // The line is still up: it is signalled, on the same eventfd, when the client unmasks.
    assert_eq!(signals(&signal), 0);
    restored[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    assert_eq!(signals(&signal), 1);
    assert_eq!(restored[0].unmask_fds().len(), 1);
    let dma = Attachment::new(&restored[0].space().unwrap());
    let read = |iova, bytes: &mut [u8]| {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(None, dma.read(iova, bytes)).unwrap().unwrap();
    };
    let mut bytes = [0; 5];
    read(0x1_0000, &mut bytes);
    assert_eq!(&bytes, b"hello");
    read(0x2_0000, &mut bytes);
    assert_eq!(bytes, [7; 5]);

    // New files get other numbers, and what files made goes with them.
    let newer = copy.open();
    assert!(restored.iter().all(|file| file.id() < newer.id()));
    drop(newer);
    drop(restored);
    assert_eq!(copy.registration.device().dma_mappings(), []);
    assert!(copy.shared.take_calls().ends_with(&["release", "close_device"]));
}

#[test]
fn image_replaces_the_state_in_the_text() {
    let Used { rig, files, signal: _ } = used();
    let (text, mut table) = rig.save();
    files[0].write(REGION, 0, &[1]).unwrap();
    let device = rig.registration.device();
    let mut image = vec![0; device.image_len().unwrap()];
    device.save_image(&mut image).unwrap();
    let copy = Rig::new(OpenPolicy::Multi);
    let saved: Saved = serde_json::from_value(text).unwrap();
    let restored = copy.registration.device().restore(&saved, Some(&image), &mut table).unwrap();
    let mut byte = [0];
    restored[0].read(REGION, 0, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    assert_eq!(device.save_image(&mut [0; 3]).unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn refused_restores_leave_the_device_as_it_was() {
    let Used { rig, files: _files, .. } = used();
    let (text, mut table) = rig.save();
    let file =
        |id: u64| json!({ "id": id, "owner": text["state"]["files"][0]["owner"], "since": 0 });
    let mut stranger = file(1);
    stranger["owner"]["identity"] = json!({ "in-process": "stranger" });
    let rows = [
        ("/kind", "teapot".into(), "a teapot, not of a device"),
        ("/version", 2.into(), "version 2 of the state of a device; this program reads version 1"),
        ("/state", Value::Null, "damaged"),
        ("/state/device/kind", "teapot".into(), "a teapot, not of a counter"),
        ("/state/device/version", 9.into(), "version 9 of the state of a counter"),
        ("/state/device", Value::Null, "the device's own state is missing"),
        ("/state/files", json!([file(0), file(0)]), "file 0 twice"),
        ("/state/files/1/id", u64::MAX.into(), "out of range"),
        ("/state/files/1", stranger, "files of several owners"),
        ("/state/files", json!([]), "file 0, which is not there"),
        ("/state/interrupts/0/0/trigger/file", 5.into(), "an eventfd of file 5"),
        ("/state/interrupts/0/0/trigger/fd", 99.into(), "no descriptor 99"),
        ("/state/interrupts", json!([]), "0 interrupt indices"),
        ("/state/interrupts/0", json!({ "2": { "level": true } }), "vector 2 of an index with 2"),
        ("/state/mappings/0/owner", 5.into(), "is of a file that is not there"),
        ("/state/mappings/0/file/fd", 99.into(), "no descriptor 99"),
        ("/state/mappings/0/last", 0.into(), "has no size"),
        ("/state/mappings/1/first", 0x1_0800.into(), "cannot restore counter"),
    ];
    let device = Rig::new(OpenPolicy::Multi);
    device.shared.context().irqs().set_level(LINE, 1, true).unwrap();
    let (before, _) = device.save();
    for (place, value, expected) in rows {
        let mut damaged = text.clone();
        *damaged.pointer_mut(place).expect(place) = value;
        let error = device.restore(&damaged, &mut table).unwrap_err();
        assert!(error.to_string().contains(expected), "{place}: {error}");
        let (after, _) = device.save();
        assert_eq!(after, before, "{place}: {error}");
        let calls = device.shared.take_calls();
        assert!(
            matches!(calls[..], [] | ["open_device", "open", "open", .., "close_device"]),
            "{place}: {calls:?}"
        );
    }
    // It can still be restored, and used.
    assert_eq!(device.restore(&text, &mut table).unwrap().len(), 2);
    let single = Rig::new(OpenPolicy::Single);
    let error = single.restore(&text, &mut table).unwrap_err();
    assert!(error.to_string().contains("2 files, and it takes one at a time"), "{error}");
}

#[test]
fn device_in_use_is_not_restored() {
    let Used { rig, files, signal: _ } = used();
    let (text, mut table) = rig.save();
    let error = rig.restore(&text, &mut table).unwrap_err();
    assert_eq!(error.errno(), Errno::BUSY);
    drop(files);
    assert_eq!(rig.restore(&text, &mut table).unwrap().len(), 2);
}

#[test]
fn error_state_is_restored_and_ends_with_a_reset() {
    let rig = Rig::new(OpenPolicy::Single);
    let file = rig.open();
    assert_eq!(file.write(REGION, 0, &[0]).unwrap_err().errno(), Errno::IO);
    let (text, mut table) = rig.save();
    let copy = Rig::new(OpenPolicy::Single);
    let restored = copy.restore(&text, &mut table).unwrap();
    assert_eq!(restored[0].read(REGION, 0, &mut [0]).unwrap_err().errno(), Errno::IO);
    restored[0].reset().unwrap();
    restored[0].read(REGION, 0, &mut [0]).unwrap();
}

#[test]
fn golden_file_can_be_restored() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/device-1.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // Its descriptors: two eventfds and a file.
    let mut table = DescriptorTable::new().with_peer(Arc::new(Sevens));
    for fd in [event(), event(), memory(b"hello")] {
        vfiod_core::KeepDescriptors::keep(&mut table, fd.as_fd()).unwrap();
    }
    let rig = Rig::new(OpenPolicy::Multi);
    let files = rig.restore(&golden, &mut table).unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(rig.save().0, golden);
}
