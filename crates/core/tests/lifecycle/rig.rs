//! A device that writes down what is done to it, and fails or panics where a test wants it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use vfiod_core::device::{Features, Request};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, Errno, Error, Event, File, FileId,
    IrqFlags, IrqInfo, OpenPolicy, Owner, OwnerIdentity, Region, RegionIndex, Registration,
    Registry, ResetCause, Result, SetId, SetObject, StatePolicy,
};

/// What a callback shall do instead of succeeding, once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Fail(Errno),
    Panic,
}

/// One journal for devices and events, in the order of what happened.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<JournalState>>);

#[derive(Default)]
struct JournalState {
    lines: Vec<String>,
    faults: HashMap<String, Vec<Fault>>,
}

impl Journal {
    fn state(&self) -> MutexGuard<'_, JournalState> {
        self.0.lock().unwrap()
    }

    pub(crate) fn write(&self, line: impl Into<String>) {
        self.state().lines.push(line.into());
    }

    /// What was written since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.state().lines)
    }

    /// How often a line was written since the last `take`.
    pub(crate) fn count(&self, line: &str) -> usize {
        self.state().lines.iter().filter(|written| *written == line).count()
    }

    /// Lets the next call of this name go wrong; several times: one after the other.
    pub(crate) fn fault(&self, call: &str, fault: Fault) {
        self.state().faults.entry(call.to_owned()).or_default().push(fault);
    }

    fn call(&self, device: &str, call: &str, detail: &str) -> Result<()> {
        let fault = {
            let mut state = self.state();
            let space = if detail.is_empty() { "" } else { " " };
            state.lines.push(format!("{device}.{call}{space}{detail}"));
            match state.faults.get_mut(&format!("{device}.{call}")) {
                Some(faults) if !faults.is_empty() => Some(faults.remove(0)),
                _ => None,
            }
        };
        match fault {
            None => Ok(()),
            Some(Fault::Fail(errno)) => Err(Error::new(errno, format!("{call} was told to fail"))),
            Some(Fault::Panic) => panic!("{call} was told to panic"),
        }
    }

    /// An observer that writes every event down.
    pub(crate) fn observer(&self) -> Arc<dyn vfiod_core::Observer> {
        let journal = self.clone();
        Arc::new(move |event: &Event<'_>| journal.write(told(event)))
    }
}

fn told(event: &Event<'_>) -> String {
    match *event {
        Event::SetCreated(s) => format!("event: set {} created", s.set),
        Event::Registered(s) => format!("event: {} registered", s.name),
        Event::DeviceOpened(s) => format!("event: {} in use", s.name),
        Event::FileOpened { subject: s, count, .. } => format!("event: {} opened, {count}", s.name),
        Event::FileReleased { subject: s, count, .. } => {
            format!("event: {} released, {count}", s.name)
        }
        Event::DeviceClosed(s) => format!("event: {} idle", s.name),
        Event::Reset { subject: s, cause } => format!("event: {} reset {cause:?}", s.name),
        Event::Failed(s) => format!("event: {} failed", s.name),
        Event::Requested { subject: s, n } => format!("event: {} requested {n}", s.name),
        Event::Revoked { subject: s, .. } => format!("event: {} revoked", s.name),
        Event::Unregistered(s) => format!("event: {} unregistered", s.name),
        Event::SetGone(s) => format!("event: set {} gone", s.set),
    }
}

/// The device.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) journal: Journal,
    pub(crate) description: Description,
    /// Has the power to ask; the answer it gives.
    pub(crate) request: Option<bool>,
    /// Called by `request`.
    pub(crate) on_request: Box<dyn FnMut(u32) + Send>,
    /// Called by `read`.
    pub(crate) on_read: Box<dyn FnMut() + Send>,
    /// Called by `reset`.
    pub(crate) on_reset: Box<dyn FnMut(ResetCause) + Send>,
    /// Called by `release`.
    pub(crate) on_release: Box<dyn FnMut() + Send>,
    /// Where it leaves its context.
    pub(crate) context: Arc<Mutex<Option<Context>>>,
}

pub(crate) const REGISTERS: RegionIndex = RegionIndex(0);

impl Probe {
    pub(crate) fn new(name: &'static str, journal: &Journal) -> Self {
        let flags = DeviceFlags::RESET | DeviceFlags::PCI;
        let irqs = vec![IrqInfo { flags: IrqFlags::EVENTFD, count: 1 }; 5];
        Self {
            name,
            journal: journal.clone(),
            description: Description { flags, regions: vec![Region::registers(0x100)], irqs },
            request: None,
            on_request: Box::new(|_| {}),
            on_read: Box::new(|| {}),
            on_reset: Box::new(|_| {}),
            on_release: Box::new(|| {}),
            context: Arc::default(),
        }
    }

    fn call(&self, call: &str, detail: &str) -> Result<()> {
        self.journal.call(self.name, call, detail)
    }
}

impl Device for Probe {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        // Cannot fail; panics if told to.
        let _ = self.call("describe", "");
        self.description.clone()
    }

    fn init(&mut self, ctx: &Context) -> Result<()> {
        *self.context.lock().unwrap() = Some(ctx.clone());
        self.call("init", "")
    }

    fn open_device(&mut self) -> Result<()> {
        self.call("open_device", "")
    }

    fn close_device(&mut self) {
        let _ = self.call("close_device", "");
    }

    fn open(&mut self, _file: FileId, owner: &Owner) -> Result<()> {
        let OwnerIdentity::InProcess(owner) = owner.identity() else { unreachable!() };
        self.call("open", owner)
    }

    fn release(&mut self, _file: FileId) {
        (self.on_release)();
        let _ = self.call("release", "");
    }

    fn read(&mut self, _region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        (self.on_read)();
        data.fill(offset as u8);
        self.call("read", &format!("{offset:#x}+{}", data.len()))
    }

    fn write(&mut self, _region: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        self.call("write", &format!("{offset:#x} {data:x?}"))
    }

    fn reset(&mut self, cause: ResetCause) -> Result<()> {
        (self.on_reset)(cause);
        self.call("reset", &format!("{cause:?}"))
    }

    fn as_request(&mut self) -> Option<&mut dyn Request> {
        self.request.is_some().then_some(self as &mut dyn Request)
    }

    fn as_features(&mut self) -> Option<&mut dyn Features> {
        Some(self)
    }
}

impl Request for Probe {
    fn request(&mut self, n: u32) -> bool {
        let _ = self.call("request", &n.to_string());
        (self.on_request)(n);
        self.request.unwrap_or(false)
    }
}

impl Features for Probe {
    fn probe(&mut self, index: u16) -> (bool, bool) {
        (index == 1, false)
    }

    fn get(&mut self, index: u16, argument: &[u8]) -> Result<Vec<u8>> {
        self.call("get", &format!("{index} {argument:?}"))?;
        Ok(vec![7])
    }

    fn set(&mut self, _index: u16, _data: &[u8]) -> Result<()> {
        Err(Error::new(Errno::NOTTY, "cannot be set"))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // A fault may be a panic; not while another is unwinding.
        if !std::thread::panicking() {
            let _ = self.call("drop", "");
        }
    }
}

/// The identity of a set in tests.
pub(crate) struct Slot(pub(crate) &'static str);

impl SetObject for Slot {
    fn set_name(&self) -> String {
        self.0.to_owned()
    }
}

/// A registry whose devices and events share a journal.
pub(crate) struct Rig {
    pub(crate) journal: Journal,
    pub(crate) registry: Registry,
}

impl Rig {
    /// Without events in the journal.
    pub(crate) fn new() -> Self {
        Self { journal: Journal::default(), registry: Registry::new() }
    }

    pub(crate) fn with_events() -> Self {
        let journal = Journal::default();
        Self { registry: Registry::with_observer(journal.observer()), journal }
    }

    pub(crate) fn probe(&self, name: &'static str) -> Probe {
        Probe::new(name, &self.journal)
    }

    pub(crate) fn add(&self, spec: DeviceSpec, probe: Probe) -> Registration {
        let registration = self.registry.register(spec, Box::new(probe)).unwrap();
        self.journal.take();
        registration
    }

    pub(crate) fn single(&self, name: &'static str) -> Registration {
        self.add(spec(name), self.probe(name))
    }

    pub(crate) fn multi(&self, name: &'static str) -> Registration {
        self.add(DeviceSpec { open: OpenPolicy::Multi, ..spec(name) }, self.probe(name))
    }

    pub(crate) fn member(&self, name: &'static str, slot: &Arc<Slot>) -> Registration {
        self.join(slot, self.probe(name))
    }

    pub(crate) fn join(&self, slot: &Arc<Slot>, probe: Probe) -> Registration {
        let spec = DeviceSpec {
            set: Some(SetId::of(slot)),
            state: StatePolicy::Retain,
            open: OpenPolicy::Multi,
            ..spec(probe.name)
        };
        self.add(spec, probe)
    }
}

pub(crate) fn spec(name: &str) -> DeviceSpec {
    DeviceSpec { name: name.to_owned(), ..DeviceSpec::default() }
}

pub(crate) fn owner(name: &str) -> Owner {
    Owner::in_process(name)
}

pub(crate) fn open(registration: &Registration) -> Result<File> {
    registration.device().open(owner("me"))
}

/// The errno of what must have failed.
#[track_caller]
pub(crate) fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}
