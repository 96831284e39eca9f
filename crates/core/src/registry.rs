//! The registry: every device of a process, and the way to open one.

use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use vfiod_quota::Lines;
use vfiod_tasks::{Runtime, Waiters};

use crate::contain::{Panicked, contain};
use crate::context::{Context, Home};
use crate::device::{Device, Token};
use crate::device_ref::DeviceRef;
use crate::dma::{AcceptedFiles, Space};
use crate::environment::{Environment, FindSpace};
use crate::error::{Errno, Error, Result};
use crate::event::{Event, Observer};
use crate::held;
use crate::ids::{DeviceId, FileId, IdSequence, NUMBER_LIMIT, Numbers, Owner, SetId};
use crate::open_pause::OpenPause;
use crate::policy::{OpenPolicy, StatePolicy};
use crate::region::RegionIndex;
use crate::registered::{BY_THIS_THREAD, Registered, Set, Transition};
use crate::set::{Phase, SetTable};
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use crate::sync::{Condvar, FairMutex, Mutex, lock};

/// How a device is registered.
#[derive(Clone, Debug, Default)]
pub struct DeviceSpec {
    /// The device's name, unique in its registry (`EEXIST`).
    pub name: String,
    /// The number that it had before the process was restored; `None`: a new one.
    pub id: Option<DeviceId>,
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

/// Longer names fill lines of logs and tables of people who did not choose them.
const NAME_LEN: usize = 255;

/// Whether a device may have this name. Names are shown in terminals and logs: with control
/// characters one could write there what another program seems to have said.
///
/// # Errors
/// `EINVAL`, with the rule: 1 to 255 bytes, all of it printable.
pub fn check_device_name(name: &str) -> Result<()> {
    // Quotes and backslashes are printable, and escaped for another reason.
    let plain = name.replace(['\'', '"', '\\'], "");
    let printable = plain.escape_debug().eq(plain.chars());
    if name.is_empty() {
        return Err(Error::new(Errno::INVAL, "a device needs a name"));
    }
    if name.len() > NAME_LEN || !printable {
        let shown: String = name.chars().take(40).collect();
        let what = format!(
            "`{}` is no name for a device: up to {NAME_LEN} bytes of printable characters",
            shown.escape_debug()
        );
        return Err(Error::new(Errno::INVAL, what));
    }
    Ok(())
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

/// A shard of the numbers. A restored number has no device while that is being registered.
type ById = Mutex<HashMap<DeviceId, Option<Arc<Registered>>, BuildHasherDefault<IdHasher>>>;
/// A shard of the names. A name has no device while that is being registered or unregistered.
type ByName = Mutex<HashMap<String, Option<Arc<Registered>>>>;

/// Hashes numbers of devices, which the registry gives out itself: none is chosen to collide.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The table uses the highest and the lowest bits.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

struct RegistryInner {
    by_id: Box<[ById]>,
    by_name: Box<[ByName]>,
    sets: SetTable<Registered>,
    device_ids: IdSequence,
    environment: Arc<Environment>,
}

impl RegistryInner {
    fn ids(&self, id: DeviceId) -> &ById {
        &self.by_id[id.0 as usize % SHARDS]
    }

    /// Reserves the number of a device that is being restored.
    fn restored_id(&self, id: DeviceId) -> Result<DeviceId> {
        if id.0 >= NUMBER_LIMIT {
            return Err(Error::new(Errno::INVAL, format!("the number of {id} is out of range")));
        }
        match lock(self.ids(id)).entry(id) {
            Entry::Occupied(_) => {
                Err(Error::new(Errno::EXIST, format!("{id} is already registered")))
            }
            Entry::Vacant(entry) => {
                entry.insert(None);
                self.device_ids.continue_after(id.0);
                Ok(id)
            }
        }
    }

    /// Waits until a device that is not visible any more has no files, and removes it.
    fn retire(&self, device: &Arc<Registered>, deadline: Option<Duration>) {
        let (id, name) = (device.id(), device.name());
        device.drain(deadline);
        device.leave();
        // Number the events before the set and the name are free: a successor's come after them.
        let unregistered = device.environment.next_event();
        let set_gone = self.sets.leave(&device.set, || device.environment.next_event());
        lock(self.names(name)).remove(name);
        device.emit_numbered(unregistered, Event::Unregistered);
        if let Some(number) = set_gone {
            device.emit_numbered(number, Event::SetGone);
        }
        tracing::debug!(device = name, id = id.0, set_gone = set_gone.is_some(), "unregistered");
    }

    fn names(&self, name: &str) -> &ByName {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        &self.by_name[hasher.finish() as usize % SHARDS]
    }
}

impl FindSpace for RegistryInner {
    fn find_space(&self, device: DeviceId, file: FileId, owner: &Owner) -> Result<Space> {
        let registered = lock(self.ids(device)).get(&device).cloned().flatten();
        let missing = || Error::new(Errno::NOENT, format!("{device}, which is not registered"));
        registered.ok_or_else(missing)?.space_for(file, owner)
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
        &self.inner.environment.runtime
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
            device_ids: IdSequence::new(),
            environment: Environment::new(runtime, observer),
        };
        let inner = Arc::new(inner);
        let spaces: Arc<dyn FindSpace> = inner.clone();
        inner.environment.set_spaces(Arc::downgrade(&spaces));
        Self { inner }
    }

    /// Says which files clients may map for DMA; without it, memory that cannot block. Takes effect
    /// once, for devices that are registered afterwards.
    pub fn accept_files(&self, files: AcceptedFiles) {
        self.inner.environment.set_accepted_files(files);
    }

    /// The next numbers of the registry, to be saved.
    pub fn numbers(&self) -> Numbers {
        let environment = &self.inner.environment;
        Numbers {
            device: self.inner.device_ids.next(),
            file: environment.file_ids().next(),
            set: self.inner.sets.numbers().next(),
            event: environment.event_numbers().next(),
        }
    }

    /// Takes a number of the registry's events for an event of the caller's, so that both are in one
    /// sequence.
    pub fn take_event_number(&self) -> u64 {
        self.inner.environment.event_numbers().take()
    }

    /// Gives out no number below these from now on: those of the process whose state is being
    /// restored. Call it before the first device is registered.
    ///
    /// # Errors
    /// `EINVAL`: a number is out of range; nothing has changed then.
    pub fn continue_at(&self, numbers: Numbers) -> Result<()> {
        numbers.check()?;
        let environment = &self.inner.environment;
        let sequences = [
            (&self.inner.device_ids, numbers.device),
            (environment.file_ids(), numbers.file),
            (self.inner.sets.numbers(), numbers.set),
            (environment.event_numbers(), numbers.event),
        ];
        for (sequence, next) in sequences {
            if let Some(last) = next.checked_sub(1) {
                sequence.continue_after(last);
            }
        }
        Ok(())
    }

    /// Registers a device: `describe`, `init`, join the set, become visible. After an error the
    /// device has been dropped and was never visible.
    ///
    /// # Errors
    /// `EBUSY`: called by a task that runs while its thread waits with a set marked or a device
    /// stopped, and the set that the device would join does not become idle (at once, if it is that
    /// set, otherwise after two seconds). `EEXIST`: the
    /// name or the number is taken (until the device that has it has been unregistered in
    /// full); `EINVAL`: no good name ([`check_device_name`]), a number out of range, or the description contradicts itself; what `init` says; `EIO`: a
    /// panic in `describe` or `init`.
    pub fn register(&self, spec: DeviceSpec, device: Box<dyn Device>) -> Result<Registration> {
        self.admit(spec, &mut Candidate(Some(device)), None)
    }

    /// Registers a device as [`Registry::register`] does, and calls `ready` before it becomes visible: to
    /// open the sockets where clients reach it, for example. An open that comes meanwhile waits, and
    /// so do the opens of its set. If `ready` fails or panics, the device has been dropped and was never
    /// visible, and such an open fails with `ENODEV`. `ready` must not open, reset or save a device of
    /// the set.
    ///
    /// # Errors
    /// As [`Registry::register`]; errors of `ready`; `EBUSY` at once if the calling thread, further down
    /// its stack, has marked a set or stopped a device, or if the set is not idle within two seconds.
    pub fn register_with<R>(
        &self,
        spec: DeviceSpec,
        device: Box<dyn Device>,
        ready: impl FnOnce(&DeviceRef) -> Result<R>,
    ) -> Result<(Registration, R)> {
        if held::holds_any() {
            // What follows a failure could not be put off.
            return Err(Error::new(Errno::BUSY, format!("{} is registered too early", spec.name)));
        }
        let (mut ready, mut result) = (Some(ready), None);
        let mut call = |device: &DeviceRef| {
            if let Some(ready) = ready.take() {
                result = Some(ready(device)?);
            }
            Ok(())
        };
        let registration = self.admit(spec, &mut Candidate(Some(device)), Some(&mut call))?;
        let result = result.expect("called once, and it has succeeded");
        Ok((registration, result))
    }

    fn admit(
        &self,
        spec: DeviceSpec,
        candidate: &mut Candidate,
        ready: Option<&mut Ready<'_>>,
    ) -> Result<Registration> {
        let DeviceSpec { name, id, set, open, state, location, token } = spec;
        check_device_name(&name)?;
        let device = candidate.0.as_mut().expect("not admitted yet");
        let device_type = (&**device as &dyn Any).type_id();
        let description = contain(|| device.describe()).map_err(|panic| refused(&name, panic))?;
        let works = contain(|| device.as_worker().is_some());
        let works = works.map_err(|panic| refused(&name, panic))?;
        for (index, region) in (0..).map(RegionIndex).zip(&description.regions) {
            region.validate(index, works)?;
        }

        let reserved = Reservation::new(&self.inner, &name)?;
        let id = match id {
            Some(id) => self.inner.restored_id(id)?,
            None => DeviceId(self.inner.device_ids.take()),
        };
        let mut reserved_id = ReservedId { registry: &self.inner, id, visible: false };
        let environment = &self.inner.environment;
        let (runtime, files) = (environment.runtime.clone(), environment.accepted_files());
        let surroundings = (runtime, files, environment.common.clone());
        let context = Context::new(id, name.clone(), &description, works, surroundings);
        let initialised = contain(|| device.init(&context));
        // Taken also if the device is refused: both can keep the context.
        let (data_path, report) = (context.take_data_path(), context.take_report());
        initialised.map_err(|panic| refused(&name, panic))??;

        let set = match &set {
            Some(id) => self.inner.sets.join(id).0,
            None => Set::singleton(),
        };
        let guard = if held::holds_any() { set.try_lock_idle() } else { Ok(set.lock_idle()) };
        let mut guard = guard.map_err(|phase| {
            self.inner.sets.leave(&set, || self.inner.environment.next_event());
            let by = if set.is_mine() { BY_THIS_THREAD } else { "" };
            Error::new(Errno::BUSY, format!("the set of {name} is {phase}{by}"))
        })?;
        let registered = guard.join(|slot| {
            Arc::new(Registered {
                environment: self.inner.environment.clone(),
                context,
                data_path,
                report: Mutex::new(report),
                description,
                device_type,
                open_policy: open,
                state_policy: state,
                retained: Mutex::default(),
                users: Lines::default(),
                location,
                token,
                set: set.clone(),
                slot,
                barred: AtomicU8::new(0),
                failure: Mutex::default(),
                model: FairMutex::new(candidate.0.take()),
                sending: AtomicU32::new(0),
                setup: AtomicU64::new(0),
                resumed: Waiters::new(),
                drained: Condvar::new(),
            })
        });
        drop(guard);
        let mut joined = Joined {
            registry: &self.inner,
            registered: registered.clone(),
            mark: None,
            visible: false,
        };
        let home: Arc<dyn Home> = registered.clone();
        registered.context.set_home(Arc::downgrade(&home));
        let device = DeviceRef { registered: registered.clone() };
        if let Some(ready) = ready {
            let mark = set.try_begin(Phase::Opening);
            joined.mark = Some(mark.map_err(|phase| registered.set_is(phase))?);
            ready(&device)?;
        }
        joined.visible = true;
        // Not every member that `sets` counts is visible: the first that is says so.
        let set_created = set.lock().is_new().then(|| self.inner.environment.next_event());
        if let Some(number) = set_created {
            registered.emit_numbered(number, Event::SetCreated);
        }
        tracing::debug!(device = name, id = id.0, set = registered.set_name(), "registered");
        // Emit `Registered` before the device becomes visible, so that it precedes `DeviceOpened`.
        registered.emit(Event::Registered);
        reserved.fill(&registered);
        lock(self.inner.ids(id)).insert(id, Some(registered.clone()));
        reserved_id.visible = true;
        Ok(Registration { registry: self.inner.clone(), device })
    }

    /// A visible device by name: registered, and not being unregistered.
    pub fn find(&self, name: &str) -> Option<DeviceRef> {
        let registered = lock(self.inner.names(name)).get(name)?.clone()?;
        Some(DeviceRef { registered })
    }

    /// A visible device by number.
    pub fn get(&self, id: DeviceId) -> Option<DeviceRef> {
        let registered = lock(self.inner.ids(id)).get(&id)?.clone()?;
        Some(DeviceRef { registered })
    }

    /// All visible devices, in the order of their numbers.
    pub fn devices(&self) -> Vec<DeviceRef> {
        let mut devices = Vec::new();
        for shard in &self.inner.by_id {
            let shard = lock(shard);
            devices.extend(
                shard.values().flatten().cloned().map(|registered| DeviceRef { registered }),
            );
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

/// What is called before a device becomes visible.
type Ready<'a> = dyn FnMut(&DeviceRef) -> Result<()> + 'a;

/// A device that has joined its set; it leaves it again unless it becomes visible.
struct Joined<'a> {
    registry: &'a RegistryInner,
    registered: Arc<Registered>,
    /// Opens of the device wait for it to be given up.
    mark: Option<Transition<'a>>,
    visible: bool,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if self.visible {
            return;
        }
        let Self { registry, registered, mark, .. } = self;
        // Before the mark is given up: an open that waits for that finds the device barred.
        registered.bar_opens();
        drop(mark.take());
        registered.leave();
        // A set that was never said to be there is not said to be gone.
        let environment = &registered.environment;
        let last = || registered.set.lock().is_announced().then(|| environment.next_event());
        if let Some(Some(number)) = registry.sets.leave(&registered.set, last) {
            registered.emit_numbered(number, Event::SetGone);
        }
    }
}

/// The number of a device that is being registered; freed unless it becomes visible.
struct ReservedId<'a> {
    registry: &'a RegistryInner,
    id: DeviceId,
    visible: bool,
}

impl Drop for ReservedId<'_> {
    fn drop(&mut self) {
        if !self.visible {
            lock(self.registry.ids(self.id)).remove(&self.id);
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

/// A device's registration. Dropping it unregisters the device and revokes its files at once.
#[must_use = "dropping a registration unregisters the device"]
pub struct Registration {
    registry: Arc<RegistryInner>,
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
    /// It returns at once if the calling thread, further down its stack, has marked a set, has stopped a
    /// device, or opens or releases a file of this one: called by a task that this thread runs while it
    /// waits (as happens without workers), or in a callback of a device. Then the device is not visible
    /// any more, and the rest follows in the same thread when all of that has ended.
    ///
    /// [`Request`]: crate::device::Request
    pub fn unregister(self, deadline: Option<Duration>) {
        self.finish(deadline);
        // Its drop finds the device gone.
    }

    /// Bars opens (`ENODEV`), as the first step of [`Registration::unregister`]. Files that there are
    /// stay. Takes the set lock.
    pub fn bar_opens(&self) {
        self.device.registered.bar_opens();
    }

    /// Bars opens (`ENODEV`), as the first step of [`Registration::unregister`], if the device is not
    /// open; otherwise nothing changes. Takes the set lock.
    ///
    /// # Errors
    /// `EBUSY`: the device is in use; the message names its owner.
    pub fn bar_opens_if_unused(&self) -> Result<()> {
        self.device.registered.bar_opens_if_unused()
    }

    /// Refuses opens (`EBUSY`) for as long as the result exists, if the device is not open; otherwise
    /// nothing changes. Takes the set lock.
    ///
    /// # Errors
    /// `EBUSY`: the device is in use; the message names its owner.
    pub fn pause_opens_if_unused(&self) -> Result<OpenPause> {
        OpenPause::if_unused(&self.device.registered)
    }

    /// Refuses opens (`EBUSY`) for as long as the result exists. Files that there are stay.
    pub fn pause_opens(&self) -> OpenPause {
        OpenPause::of(&self.device.registered)
    }

    fn finish(&self, deadline: Option<Duration>) {
        let device = &self.device.registered;
        let (id, name) = (device.id(), device.name());
        let registry = &*self.registry;
        if lock(registry.ids(id)).remove(&id).is_none() {
            return;
        }
        if let Some(entry) = lock(registry.names(name)).get_mut(name) {
            *entry = None;
        }
        device.bar_opens();
        if !held::holds_any_or_is_inside(&**device) {
            return registry.retire(device, deadline);
        }
        let (registry, device) = (self.registry.clone(), device.clone());
        held::defer_unregister(move || registry.retire(&device, deadline));
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
