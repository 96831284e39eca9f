//! The registry: every device of a process, and the way to open one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use crate::contain::{Panicked, contain};
use vfiod_tasks::Runtime;

use crate::context::{Context, Home};
use crate::device::{Description, Device, Token};
use crate::dma::MappingInfo;
use crate::error::{Errno, Error, Result};
use crate::event::{Event, Observer};
use crate::file::{File, FileStatus};
use crate::ids::{DeviceId, FileId, IdSequence, Owner, SetId};
use crate::irq::{IrqIndex, VectorCounters};
use crate::region::{Region, RegionIndex};
use crate::registered::Registered;
use crate::set::{Set, SetTable};
use crate::state::ReadTraits;
use crate::sync::atomic::AtomicU8;
use crate::sync::{Condvar, Mutex, lock};
use crate::work::TaskInfo;

/// How many files a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OpenPolicy {
    /// One; a second open gets `EINVAL` (the kernel's cdev path).
    #[default]
    Single,
    /// Any number of one owner; another owner gets `EBUSY` (the kernel's group path).
    Multi,
}

/// What happens to a device's state between its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StatePolicy {
    /// The first open resets the device.
    #[default]
    Reset,
    /// State is kept, so that a client can come back to it.
    Retain,
}

/// How a device is registered.
#[derive(Clone, Debug, Default)]
pub struct DeviceSpec {
    /// The device's name, unique in its registry (`EEXIST`).
    pub name: String,
    /// The set it joins; `None` for a set of its own.
    pub set: Option<SetId>,
    /// How many files it takes.
    pub open: OpenPolicy,
    /// What happens to its state between users.
    pub state: StatePolicy,
    /// Where it is, in the words of its bus, for people and for clients that look for their
    /// neighbours: `0000:01:02.1` for a PCI function. The core makes nothing of it.
    pub location: Option<String>,
    /// What is presented for openers that present no token themselves, because their protocol or
    /// program cannot.
    pub token: Option<Token>,
}

/// How many shards the registry's maps have: a lock each, to be held for a look-up.
const SHARDS: usize = if cfg!(any(loom, shuttle)) { 1 } else { 64 };

/// Every device of a process. Cheap to clone.
///
/// Look-ups, registering and unregistering cost the same however many devices there are. No
/// registry lock is held while a device or an observer is called.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<RegistryInner>,
}

/// A shard of the visible devices.
type ById = Mutex<HashMap<DeviceId, Arc<Registered>>>;
/// A shard of the names. A name has no device while that is being registered or unregistered.
type ByName = Mutex<HashMap<String, Option<Arc<Registered>>>>;

pub(crate) struct RegistryInner {
    by_id: Box<[ById]>,
    by_name: Box<[ByName]>,
    sets: SetTable,
    pub(crate) runtime: Runtime,
    device_ids: IdSequence,
    file_ids: IdSequence,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl RegistryInner {
    pub(crate) fn next_file(&self) -> FileId {
        FileId(self.file_ids.take())
    }

    /// Excludes the number of a restored file, and all below it, from those given out later.
    pub(crate) fn reserve_file(&self, file: FileId) {
        self.file_ids.continue_after(file.0);
    }

    fn ids(&self, id: DeviceId) -> &ById {
        &self.by_id[id.0 as usize % SHARDS]
    }

    fn names(&self, name: &str) -> &ByName {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        &self.by_name[hasher.finish() as usize % SHARDS]
    }
}

impl Registry {
    /// An empty registry with a runtime of its own.
    ///
    /// # Panics
    /// If the process has no descriptors left for it.
    pub fn new() -> Self {
        Self::build(None)
    }

    /// An empty registry that emits events to an observer; panics as [`Registry::new`].
    pub fn with_observer(observer: Arc<dyn Observer>) -> Self {
        Self::build(Some(observer))
    }

    /// An empty registry whose devices' tasks run in a runtime of the caller's, who starts its
    /// workers or runs it.
    pub fn with_runtime(runtime: Runtime, observer: Option<Arc<dyn Observer>>) -> Self {
        Self::in_runtime(runtime, observer)
    }

    /// What runs the devices' tasks. The owner of the registry starts [`vfiod_tasks::Workers`] for it,
    /// or runs it.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    fn build(observer: Option<Arc<dyn Observer>>) -> Self {
        let runtime = Runtime::new().expect("descriptors for a runtime");
        Self::in_runtime(runtime, observer)
    }

    fn in_runtime(runtime: Runtime, observer: Option<Arc<dyn Observer>>) -> Self {
        let inner = RegistryInner {
            by_id: (0..SHARDS).map(|_| Mutex::default()).collect(),
            by_name: (0..SHARDS).map(|_| Mutex::default()).collect(),
            sets: SetTable::new(SHARDS),
            runtime,
            device_ids: IdSequence::new(),
            file_ids: IdSequence::new(),
            observer,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Gives out only numbers above these from now on: the last ones that the process had given
    /// out whose state is being restored. Call it before the first device is registered.
    pub fn continue_after(&self, device: DeviceId, file: FileId) {
        self.inner.device_ids.continue_after(device.0);
        self.inner.file_ids.continue_after(file.0);
    }

    /// Registers a device: `describe`, `init`, join the set, become visible. After an error the
    /// device has been dropped and was never visible.
    ///
    /// # Errors
    /// `EEXIST`: the name is taken (until a device of that name has been unregistered in full);
    /// `EINVAL`: no name, or the description contradicts itself; what `init` says; `EIO`: a
    /// panic in `describe` or `init`.
    pub fn register(&self, spec: DeviceSpec, device: Box<dyn Device>) -> Result<Registration> {
        let mut device = Candidate(Some(device));
        let registered = self.admit(spec, &mut device)?;
        Ok(Registration { device: DeviceRef { registered } })
    }

    fn admit(&self, spec: DeviceSpec, candidate: &mut Candidate) -> Result<Arc<Registered>> {
        let DeviceSpec { name, set, open, state, location, token } = spec;
        if name.is_empty() {
            return Err(Error::new(Errno::INVAL, "a device needs a name"));
        }
        let device = candidate.0.as_mut().expect("not admitted yet");
        let description = contain(|| device.describe()).map_err(|panic| refused(&name, panic))?;
        let works = contain(|| device.as_worker().is_some());
        let works = works.map_err(|panic| refused(&name, panic))?;
        for (index, region) in (0..).map(RegionIndex).zip(&description.regions) {
            region.validate(index, works)?;
        }

        let reserved = Reservation::new(&self.inner, &name)?;
        let id = DeviceId(self.inner.device_ids.take());
        let runtime = self.inner.runtime.clone();
        let context = Context::new(id, name.clone(), &description, works, runtime);
        contain(|| device.init(&context)).map_err(|panic| refused(&name, panic))??;

        let (set, created) = match &set {
            Some(id) => self.inner.sets.join(id),
            None => (Set::singleton(), true),
        };
        let registered = set.lock_idle().join(|slot| {
            Arc::new(Registered {
                registry: self.inner.clone(),
                context,
                description,
                open_policy: open,
                state_policy: state,
                location,
                token,
                set: set.clone(),
                slot,
                barred: AtomicU8::new(0),
                failure: Mutex::default(),
                model: Mutex::new(candidate.0.take()),
                entrance: Mutex::new(()),
                resumed: Condvar::new(),
                drained: Condvar::new(),
            })
        });
        let home: Arc<dyn Home> = registered.clone();
        registered.context.set_home(Arc::downgrade(&home));
        tracing::debug!(device = name, id = id.0, set = registered.set_name(), "registered");
        if created {
            registered.emit(Event::SetCreated);
        }
        // Emit `Registered` before the device becomes visible, so that it precedes `DeviceOpened`.
        registered.emit(Event::Registered);
        reserved.fill(&registered);
        lock(self.inner.ids(id)).insert(id, registered.clone());
        Ok(registered)
    }

    /// A visible device by name: registered, and not being unregistered.
    pub fn find(&self, name: &str) -> Option<DeviceRef> {
        let registered = lock(self.inner.names(name)).get(name)?.clone()?;
        Some(DeviceRef { registered })
    }

    /// A visible device by number.
    pub fn get(&self, id: DeviceId) -> Option<DeviceRef> {
        let registered = lock(self.inner.ids(id)).get(&id)?.clone();
        Some(DeviceRef { registered })
    }

    /// All visible devices, in the order of their numbers.
    pub fn devices(&self) -> Vec<DeviceRef> {
        let mut devices = Vec::new();
        for shard in &self.inner.by_id {
            let shard = lock(shard);
            devices.extend(shard.values().cloned().map(|registered| DeviceRef { registered }));
        }
        devices.sort_unstable_by_key(DeviceRef::id);
        devices
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cold]
fn refused(name: &str, panic: Panicked) -> Error {
    tracing::error!(device = name, error = %panic, "the device failed while being registered");
    Error::new(Errno::IO, format!("{name} failed while being registered")).because(panic)
}

/// A device that is being registered. If that fails it is dropped, and a panic of its drop caught.
struct Candidate(Option<Box<dyn Device>>);

impl Drop for Candidate {
    fn drop(&mut self) {
        let device = self.0.take();
        if let Err(panic) = contain(|| drop(device)) {
            tracing::error!(error = %panic, "dropping a device failed");
        }
    }
}

/// A name reserved for a device that is being registered; freed unless filled.
struct Reservation<'a> {
    registry: &'a RegistryInner,
    name: &'a str,
    filled: bool,
}

impl<'a> Reservation<'a> {
    fn new(registry: &'a RegistryInner, name: &'a str) -> Result<Self> {
        match lock(registry.names(name)).entry(name.to_owned()) {
            Entry::Occupied(_) => Err(Error::new(
                Errno::EXIST,
                format!("a device named {name} is already registered"),
            )),
            Entry::Vacant(entry) => {
                entry.insert(None);
                Ok(Self { registry, name, filled: false })
            }
        }
    }

    fn fill(mut self, device: &Arc<Registered>) {
        self.filled = true;
        lock(self.registry.names(self.name)).insert(self.name.to_owned(), Some(device.clone()));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            lock(self.registry.names(self.name)).remove(self.name);
        }
    }
}

/// A registered device. Keeps it allocated, not registered.
#[derive(Clone)]
pub struct DeviceRef {
    pub(crate) registered: Arc<Registered>,
}

impl DeviceRef {
    /// The device's number.
    pub fn id(&self) -> DeviceId {
        self.registered.id()
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.registered.name()
    }

    /// Where it is, in the words of its bus; see [`DeviceSpec::location`].
    pub fn location(&self) -> Option<&str> {
        self.registered.location.as_deref()
    }

    /// The name of its set; a set of its own is called like the device.
    pub fn set_name(&self) -> &str {
        self.registered.set_name()
    }

    /// Identifies the set, also among sets of one name, for as long as this reference is kept:
    /// devices of one set have the same key.
    pub fn set_key(&self) -> SetKey {
        SetKey(Arc::as_ptr(&self.registered.set).addr())
    }

    /// How often an interrupt vector did what. `EINVAL`: there is no such vector.
    pub fn irq_counters(&self, index: IrqIndex, vector: u32) -> Result<VectorCounters> {
        self.registered.context.irqs().counters(index, vector)
    }

    /// Whether any vector of an interrupt index has an eventfd.
    pub fn irq_enabled(&self, index: IrqIndex) -> bool {
        self.registered.context.irqs().is_enabled(index)
    }

    /// The DMA mappings of the device's address space, by address.
    pub fn dma_mappings(&self) -> Vec<MappingInfo> {
        self.registered.context.dma().mappings()
    }

    /// What the device has.
    pub fn description(&self) -> &Description {
        &self.registered.description
    }

    /// What a read of a region does, as far as the device declares it. Takes the device lock.
    ///
    /// # Errors
    /// `EINVAL`: no such region, or outside it; `ENODEV`: the device has been unregistered.
    pub fn read_traits(&self, region: RegionIndex, offset: u64, len: usize) -> Result<ReadTraits> {
        let found = self.description().regions.get(region.0 as usize);
        let within =
            |found: &Region| offset.checked_add(len as u64).is_some_and(|end| end <= found.size);
        match found {
            Some(found) if within(found) => {
                self.registered.call(|device| Ok(device.read_traits(region, offset, len)))
            }
            _ => {
                let what = format!("{} has no {len} bytes at {offset:#x} of {region}", self.name());
                Err(Error::new(Errno::INVAL, what))
            }
        }
    }

    /// How the device is used now. Takes the set lock, which is never held during a callback.
    pub fn status(&self) -> Status {
        let device = &*self.registered;
        let mut guard = device.set.lock();
        let member = guard.find(device);
        Status {
            leaving: member.as_ref().is_none_or(|member| member.leaving),
            files: member.map_or_else(Vec::new, |member| {
                member.files.values().map(|file| file.status()).collect()
            }),
            failed: device.is_in_error_state(),
            failure: lock(&device.failure).clone(),
            tasks: device.context.tasks(),
        }
    }

    /// Revokes a file: the core calls [`Device::release`] for it, and every later operation on it
    /// fails with `ENODEV`. If its `open` is still running, that open fails with `ENODEV`.
    ///
    /// Blocks while a callback of the device runs or its set is being reset. Takes the set lock and
    /// the device lock: not to be called from a device callback or an observer.
    ///
    /// # Errors
    /// `ENOENT`: the device has no file with this id, or has released it.
    pub fn revoke(&self, file: FileId) -> Result<()> {
        self.registered.revoke(file)
    }

    /// Revokes every file that the device has now, as [`DeviceRef::revoke`]. Returns how many were
    /// revoked.
    pub fn revoke_all(&self) -> usize {
        let files = self.status().files;
        files.iter().filter(|file| self.revoke(file.id).is_ok()).count()
    }

    /// Opens the device for an owner.
    ///
    /// The first open resets the device (unless its state is retained and sound) and calls
    /// [`Device::open_device`], with the set marked; then, and for every further open,
    /// [`Device::open`] without the mark. Blocks while a callback of the device runs, and up to two
    /// seconds while its set is being opened, closed, reset or saved.
    ///
    /// # Errors
    /// `ENODEV`: the device is being unregistered, or the file was revoked; `EINVAL`: it is
    /// single-open and open; `EBUSY`: another owner has it open, its set does not become idle, or it
    /// is stuck; `EIO`: a callback panicked, or the device is open and in the error state; errors of
    /// `reset`, `open_device` and `open`.
    pub fn open(&self, owner: Owner) -> Result<File> {
        self.open_with(owner, None)
    }

    /// Opens the device for an owner who presents a token, or none
    /// ([`Admission`](crate::Admission), [`DeviceSpec::token`]).
    ///
    /// # Errors
    /// As [`DeviceRef::open`]; `EINVAL`: the device takes no token; errors of
    /// [`Admission::admit`](crate::Admission::admit), such as `EACCES`.
    pub fn open_with(&self, owner: Owner, token: Option<Token>) -> Result<File> {
        let file = self.registered.open_file(owner, token)?;
        Ok(File::new(self.clone(), file))
    }
}

impl fmt::Debug for DeviceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRef").field("id", &self.id().0).field("name", &self.name()).finish()
    }
}

/// The identity of a live device set, for telling sets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey(usize);

/// How a device is used at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Its files, oldest first; `open` or `release` may still be running for one.
    pub files: Vec<FileStatus>,
    /// It is in the error state.
    pub failed: bool,
    /// Why it is in the error state.
    pub failure: Option<String>,
    /// Its tasks.
    pub tasks: Vec<TaskInfo>,
    /// It is being unregistered, or has been.
    pub leaving: bool,
}

/// A device's registration. Dropping it unregisters the device and revokes its files at once.
#[must_use = "dropping a registration unregisters the device"]
pub struct Registration {
    device: DeviceRef,
}

impl Registration {
    /// The device.
    pub fn device(&self) -> &DeviceRef {
        &self.device
    }

    /// Unregisters the device: bars opens, and asks the users to close it ([`Request`]), at once and
    /// at growing intervals, until the last file is released. With a deadline, files that are left
    /// then are revoked: the core releases them, and their holders get `ENODEV`. Without one it
    /// waits for ever, so the caller must not hold a file itself.
    ///
    /// Returns when the device has left its set and was dropped. Waits for callbacks of the
    /// device that are running, also past the deadline.
    ///
    /// [`Request`]: crate::device::Request
    pub fn unregister(self, deadline: Option<Duration>) {
        self.finish(deadline);
        // Its drop finds the device gone.
    }

    /// Bars opens (`ENODEV`), as the first step of [`Registration::unregister`], if the device is not
    /// open; otherwise nothing changes. Takes the set lock.
    ///
    /// # Errors
    /// `EBUSY`: the device is in use; the message names its owner.
    pub fn bar_opens_if_unused(&self) -> Result<()> {
        self.device.registered.bar_opens_if_unused()
    }

    fn finish(&self, deadline: Option<Duration>) {
        let device = &self.device.registered;
        let (id, name) = (device.id(), device.name());
        let registry = &*device.registry;
        if lock(registry.ids(id)).remove(&id).is_none() {
            return;
        }
        if let Some(entry) = lock(registry.names(name)).get_mut(name) {
            *entry = None;
        }
        device.drain(deadline);
        device.leave();
        let set_gone = registry.sets.leave(&device.set);
        lock(registry.names(name)).remove(name);
        tracing::debug!(device = name, id = id.0, set_gone, "unregistered");
        device.emit(Event::Unregistered);
        if set_gone {
            device.emit(Event::SetGone);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.finish(Some(Duration::ZERO));
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registration").field(&self.device).finish()
    }
}
