//! A device that counts writes, and what clients set up on it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vfiod_core::dma::{Attachment, Backing, Completion, DmaPeer, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{
    Context, Description, DescriptorTable, Device, DeviceFlags, DeviceSpec, Errno, Error, File,
    Format, IrqFlags, IrqIndex, IrqInfo, OpenPolicy, Owner, Persistence, Region, RegionIndex,
    Registration, Registry, ResetCause, Result, SaveState, Saved,
};
use vfiod_tasks::Runtime;

pub(crate) const LINE: IrqIndex = IrqIndex(0);
pub(crate) const COUNTER: Format = Format { kind: "counter", version: 1 };
pub(crate) const REGION: RegionIndex = RegionIndex(0);

/// Counts writes; a write of 0 panics.
#[derive(Default)]
pub(crate) struct Counter {
    writes: u32,
    shared: Arc<Shared>,
}

/// What tests see of the device.
#[derive(Default)]
pub(crate) struct Shared {
    context: Mutex<Option<Context>>,
    calls: Mutex<Vec<&'static str>>,
}

impl Shared {
    pub(crate) fn context(&self) -> Context {
        self.context.lock().unwrap().clone().unwrap()
    }

    pub(crate) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Counter {
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    fn note(&self, call: &'static str) {
        self.shared.calls.lock().unwrap().push(call);
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CounterState {
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
pub(crate) struct Sevens;

impl DmaPeer for Sevens {
    fn start_read(&self, _iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        completion.complete(Ok(vec![7; len]));
    }
    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Ok(()));
    }
}

pub(crate) struct Rig {
    registry: Registry,
    pub(crate) registration: Registration,
    pub(crate) shared: Arc<Shared>,
}

impl Rig {
    pub(crate) fn new(open: OpenPolicy) -> Self {
        Self::of(&Registry::new(), "counter", open)
    }

    /// Two devices of one registry.
    pub(crate) fn pair() -> [Self; 2] {
        let registry = Registry::new();
        ["a", "b"].map(|name| Self::of(&registry, name, OpenPolicy::Single))
    }

    fn of(registry: &Registry, name: &str, open: OpenPolicy) -> Self {
        let device = Counter::default();
        let shared = device.shared.clone();
        let spec = DeviceSpec { name: name.to_owned(), open, ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(device)).unwrap();
        Self { registry: registry.clone(), registration, shared }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn open(&self) -> File {
        self.registration.device().open(Owner::in_process("test")).unwrap()
    }

    pub(crate) fn save(&self) -> (Value, DescriptorTable) {
        let mut table = DescriptorTable::new().with_peer(Arc::new(Sevens));
        let saved = self.registration.device().save(&mut table).unwrap();
        (serde_json::to_value(saved).unwrap(), table)
    }

    pub(crate) fn restore(&self, text: &Value, table: &mut DescriptorTable) -> Result<Vec<File>> {
        let saved: Saved = serde_json::from_value(text.clone()).unwrap();
        self.registration.device().restore(&saved, None, table)
    }
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub(crate) fn signals(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

pub(crate) fn eventfds(fd: &OwnedFd) -> IrqData<'static> {
    IrqData::EventFds(vec![Some(fd.try_clone().unwrap())])
}

pub(crate) fn map(file: &File, iova: u64, backing: Backing) {
    let perm = Perm::READ | Perm::WRITE;
    file.dma_map(MapRequest { iova, size: 0x1000, perm, backing }).unwrap();
}

pub(crate) fn memory(content: &[u8]) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 0x2000).unwrap();
    rustix::io::pwrite(&fd, content, 0x1000).unwrap();
    fd
}

/// A device with two files, of which the first has set up everything.
pub(crate) struct Used {
    pub(crate) rig: Rig,
    pub(crate) files: Vec<File>,
    pub(crate) signal: OwnedFd,
}

pub(crate) fn used() -> Used {
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

/// Guest memory as the device of a file reaches it.
pub(crate) fn guest(file: &File, iova: u64, bytes: &mut [u8]) -> Result<()> {
    let dma = Attachment::new(&file.space().unwrap());
    Runtime::new().unwrap().block_on(None, dma.read(iova, bytes)).unwrap()
}
