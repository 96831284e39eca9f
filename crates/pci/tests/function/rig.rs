//! A model that writes down what is done to it, and a guest that does it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_core::dma::Attachment;
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{
    DeviceSpec, File, IrqIndex, Owner, Quiesce, RegionIndex, Registration, Registry, Result,
    StatePolicy, Why,
};
use vfiod_pci::{
    Bar, BarKind, Capability, Cx, Fitting, Function, FunctionSpec, Interrupts, Model, Pin,
    Stateless, Task, Worker, Works,
};

pub(crate) const CONFIG: RegionIndex = RegionIndex(7);

/// Where [`everything`] has its capabilities.
pub(crate) const POWER: u64 = 0x40;
pub(crate) const EXPRESS: u64 = 0x48;
pub(crate) const MSI: u64 = 0x84;
pub(crate) const MSIX: u64 = 0x9c;
pub(crate) const VENDOR: u64 = 0xa8;
/// Where its MSI-X structures are in BAR 4: 70 entries, and bits in two quadwords.
pub(crate) const TABLE: u64 = 0x1000;
pub(crate) const PENDING: u64 = 0x2000;

/// A function with one of everything.
pub(crate) fn everything(power: Capability) -> FunctionSpec {
    FunctionSpec::new(0x1af4, 0x1234)
        .subsystem(0x5678, 0x9abc)
        .class(0x12_34_56)
        .revision(0x78)
        .pin(Pin::A)
        .bar(0, Bar::memory32(0x1000))
        .bar(1, Bar::io(0x40))
        .bar(2, Bar::new(BarKind::Memory64 { prefetchable: true }, 1 << 33))
        .bar(4, Bar::memory32(0x4000))
        .capability(power)
        .capability(Capability::Express)
        .capability(Capability::Msi { vectors: 4 })
        .capability(Capability::Msix {
            vectors: 70,
            table: (4, TABLE as u32),
            pba: (4, PENDING as u32),
        })
        .capability(Capability::Vendor(vec![0xaa, 0xbb, 0xcc]))
        .capability(Capability::SerialNumber(0x0011_2233_4455_6677))
        .capability(Capability::VendorExtended { id: 0x4242, revision: 3, data: vec![1, 2, 3] })
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) resets: u32,
    pub(crate) reads: Vec<(u8, u64, usize)>,
    pub(crate) writes: Vec<(u8, u64, Vec<u8>)>,
    interrupts: Option<Interrupts>,
    /// The guest's memory, as a task has it.
    dma: Option<Attachment>,
}

struct Probe {
    spec: FunctionSpec,
    seen: Arc<Mutex<Seen>>,
}

impl Model for Probe {
    type State = Works<Stateless>;

    fn spec(&self) -> FunctionSpec {
        self.spec.clone()
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        self.seen.lock().unwrap().interrupts = Some(cx.interrupts().clone());
        Ok(())
    }

    fn read(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
        self.seen.lock().unwrap().reads.push((bar, offset, data.len()));
    }

    fn write(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        self.seen.lock().unwrap().writes.push((bar, offset, data.to_vec()));
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        self.seen.lock().unwrap().resets += 1;
    }
}

/// Its only task shows the test what a task has.
impl Worker for Probe {
    fn quiesce(&mut self, _cx: &Cx<Self>, _why: Why) -> Quiesce {
        Quiesce::Cancel
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        let seen = self.seen.clone();
        if seen.lock().unwrap().dma.is_none() {
            let show = |task: Task<Self>| async move {
                seen.lock().unwrap().dma = Some(task.dma().clone());
            };
            cx.spawn("show", show).expect("a task");
        }
    }
}

/// Who drives an open function.
pub(crate) struct Guest {
    pub(crate) file: File,
    seen: Arc<Mutex<Seen>>,
    registration: Registration,
}

/// An eventfd that an interrupt goes to.
pub(crate) struct Counter(OwnedFd);

impl Counter {
    fn new() -> Self {
        Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap())
    }

    /// How often it was signalled since the last time.
    pub(crate) fn take(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            Err(rustix::io::Errno::AGAIN) => 0,
            other => panic!("{other:?}"),
        }
    }
}

impl Guest {
    pub(crate) fn new(spec: FunctionSpec) -> Self {
        Self::of(spec, Fitting::default())
    }

    /// One of [`everything`], which keeps its state in D3hot.
    pub(crate) fn of_everything() -> Self {
        Self::new(everything(Capability::PowerManagement))
    }

    /// A function that fits in.
    fn of(spec: FunctionSpec, fitting: Fitting) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let function = Function::fitted(Probe { spec, seen: seen.clone() }, fitting).unwrap();
        let spec = DeviceSpec {
            name: "probe".to_owned(),
            state: StatePolicy::Retain,
            ..DeviceSpec::default()
        };
        let registry = Registry::new();
        let registration = registry.register(spec, Box::new(function)).unwrap();
        let file = registration.device().open(Owner::in_process("test")).unwrap();
        registry.runtime().run_until_idle();
        Self { file, seen, registration }
    }

    pub(crate) fn multifunction(spec: FunctionSpec, number: u8) -> Self {
        Self::of(spec, Fitting { multifunction: Some(number), ..Fitting::default() })
    }

    pub(crate) fn integrated(spec: FunctionSpec) -> Self {
        Self::of(spec, Fitting { integrated: true, ..Fitting::default() })
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// The guest's memory, as the function's tasks reach it.
    pub(crate) fn dma(&self) -> Attachment {
        self.seen().dma.clone().unwrap()
    }

    pub(crate) fn interrupts(&self) -> Interrupts {
        self.seen().interrupts.clone().unwrap()
    }

    pub(crate) fn read<const N: usize>(&self, region: RegionIndex, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.file.read(region, offset, &mut data).unwrap();
        data
    }

    pub(crate) fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) {
        self.file.write(region, offset, data).unwrap();
    }

    pub(crate) fn config8(&self, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(CONFIG, offset))
    }

    pub(crate) fn config16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(CONFIG, offset))
    }

    pub(crate) fn config32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(CONFIG, offset))
    }

    pub(crate) fn set_config16(&self, offset: u64, value: u16) {
        self.write(CONFIG, offset, &value.to_le_bytes());
    }

    pub(crate) fn set_config32(&self, offset: u64, value: u32) {
        self.write(CONFIG, offset, &value.to_le_bytes());
    }

    /// The whole configuration space in one access, as QEMU reads it.
    pub(crate) fn config(&self) -> Vec<u8> {
        let mut all = vec![0xee; self.file.region(CONFIG).unwrap().size as usize];
        self.file.read(CONFIG, 0, &mut all).unwrap();
        all
    }

    /// Sets up eventfds on the vectors from 0 on.
    pub(crate) fn listen(&self, index: IrqIndex, vectors: u32) -> Vec<Counter> {
        let counters: Vec<_> = (0..vectors).map(|_| Counter::new()).collect();
        let fds = counters.iter().map(|counter| Some(counter.0.try_clone().unwrap())).collect();
        let data = IrqData::EventFds(fds);
        self.file.set_irqs(index, 0, vectors, IrqAction::Trigger, data).unwrap();
        counters
    }

    /// Removes the device, at once; the file stays with its user.
    pub(crate) fn remove(self) -> File {
        self.registration.unregister(Some(Duration::from_millis(1)));
        self.file
    }

    /// Closes the device, and opens it again after `between`.
    pub(crate) fn reopened(self, between: impl FnOnce()) -> Self {
        let Self { file, seen, registration } = self;
        drop(file);
        between();
        let file = registration.device().open(Owner::in_process("test")).unwrap();
        Self { file, seen, registration }
    }

    /// Takes all eventfds of an index away.
    pub(crate) fn silence(&self, index: IrqIndex) {
        self.file.set_irqs(index, 0, 0, IrqAction::Trigger, IrqData::None).unwrap();
    }

    pub(crate) fn unmask(&self, index: IrqIndex) {
        self.file.set_irqs(index, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    }
}

/// What each vector got since the last time.
pub(crate) fn taken(counters: &[Counter]) -> Vec<u64> {
    counters.iter().map(Counter::take).collect()
}
