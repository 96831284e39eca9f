//! The bus: every parent and every instance of a process.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use uuid::Uuid;
use vfiod_core::contain::contain;
use vfiod_core::{DeviceRef, DeviceSpec, Errno, Error, OpenPolicy, Registry, Result, StatePolicy};
use vfiod_sync::atomic::Ordering;
use vfiod_sync::{Condvar, Mutex, lock, thread, wait, wait_until};

use crate::instance::{self, Endpoint, Instance, Live, Removal, Shared};
use crate::parent::{Capacity, End, NewInstance, Parent, ParentEntry, ParentSpec, TypeInfo};

/// Parents and their instances. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    state: Mutex<State>,
    /// Signalled when an instance was removed, or a creation is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parents: BTreeMap<String, ParentState>,
    instances: HashMap<Uuid, Slot>,
}

struct ParentState {
    entry: Arc<ParentEntry>,
    leaving: bool,
    /// How many [`CreationPause`]s there are.
    creation_pauses: usize,
    /// Instances that are being created.
    creating: usize,
    /// Units taken, by type.
    taken: Vec<u32>,
    instances: BTreeSet<Uuid>,
}

/// A known UUID.
enum Slot {
    /// Being created.
    Reserved,
    /// Live, or being removed.
    Present(Arc<Shared>),
}

impl State {
    /// A parent, by what is registered: not another one of the same name.
    fn parent_of(&mut self, entry: &Arc<ParentEntry>) -> Option<&mut ParentState> {
        let parent = self.parents.get_mut(&entry.spec.name)?;
        Arc::ptr_eq(&parent.entry, entry).then_some(parent)
    }
}

impl ParentState {
    /// How many more instances of a type there can be.
    fn available(&self, mdev_type: usize) -> u32 {
        let left = match self.entry.spec.capacity {
            Capacity::Shared(units) => units.saturating_sub(self.taken.iter().sum()),
            Capacity::PerType(units) => units.saturating_sub(self.taken[mdev_type]),
            Capacity::Own => {
                let id = &self.entry.spec.types[mdev_type].id;
                return contain(|| self.entry.ops.available(id)).unwrap_or(0);
            }
        };
        left / self.entry.spec.types[mdev_type].takes
    }
}

/// What is to be created.
#[derive(Clone, Debug)]
pub struct Create {
    /// The parent's name.
    pub parent: String,
    /// The type's id.
    pub type_id: String,
    /// The instance's UUID, which becomes the device's name.
    pub uuid: Uuid,
    /// Attributes to set before it can be used, in this order.
    pub attributes: Vec<(String, String)>,
    /// How many files it takes.
    pub open: OpenPolicy,
    /// What happens to its state between users.
    pub state: StatePolicy,
}

impl Create {
    /// An instance with no attributes set and the default policies.
    pub fn new(parent: impl Into<String>, type_id: impl Into<String>, uuid: Uuid) -> Self {
        Self {
            parent: parent.into(),
            type_id: type_id.into(),
            uuid,
            attributes: Vec::new(),
            open: OpenPolicy::default(),
            state: StatePolicy::default(),
        }
    }
}

/// A parent at one moment.
#[derive(Clone, Debug)]
pub struct ParentStatus {
    /// Its name.
    pub name: String,
    /// It is being unregistered.
    pub leaving: bool,
    /// Its types.
    pub types: Vec<TypeStatus>,
    /// Its instances.
    pub instances: Vec<Uuid>,
}

/// A type at one moment.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    /// What it is.
    pub info: TypeInfo,
    /// How many more instances there can be (sysfs `available_instances`).
    pub available: u32,
}

impl Bus {
    /// A bus without parents, whose instances are devices of a registry.
    pub fn new(registry: Registry) -> Self {
        let state = Mutex::new(State::default());
        Self { inner: Arc::new(Inner { registry, state, changed: Condvar::new() }) }
    }

    /// Registers a parent.
    ///
    /// # Errors
    /// `EINVAL`: the spec contradicts itself; `EEXIST`: the name is taken; what [`Parent::start`] says.
    pub fn register(
        &self,
        spec: ParentSpec,
        parent: Box<dyn Parent>,
    ) -> Result<ParentRegistration> {
        spec.validate()?;
        let name = spec.name.clone();
        contain(|| parent.start()).unwrap_or_else(|panic| {
            Err(Error::new(Errno::IO, format!("parent {name} failed")).because(panic))
        })?;
        let mut state = lock(&self.inner.state);
        if state.parents.contains_key(&name) {
            let what = format!("there is a parent called {name} already");
            return Err(Error::new(Errno::EXIST, what));
        }
        let taken = vec![0; spec.types.len()];
        let entry = Arc::new(ParentEntry { spec, ops: parent });
        let parent = ParentState {
            entry,
            leaving: false,
            creation_pauses: 0,
            creating: 0,
            taken,
            instances: BTreeSet::new(),
        };
        let entry = Arc::downgrade(&parent.entry);
        state.parents.insert(name.clone(), parent);
        Ok(ParentRegistration { bus: self.clone(), name, entry })
    }

    /// Checks that an attribute of a type can be set to a value, as [`Parent::check_attribute`].
    ///
    /// # Errors
    /// `ENODEV`, `EINVAL`: there is no such parent or type; `ENOENT`: no such attribute; `EACCES`: it
    /// can only be read; `EINVAL`: not to this value; `EIO`: the parent panicked.
    pub fn check_attribute(
        &self,
        parent: &str,
        type_id: &str,
        name: &str,
        value: &str,
    ) -> Result<()> {
        let found = lock(&self.inner.state).parents.get(parent).map(|found| found.entry.clone());
        let none = || Error::new(Errno::NODEV, format!("there is no parent `{parent}`"));
        let entry = found.ok_or_else(none)?;
        let mdev_type = entry.spec.types.iter().find(|mdev_type| mdev_type.id == type_id);
        let none = || Error::new(Errno::INVAL, format!("parent {parent} has no type `{type_id}`"));
        let mdev_type = mdev_type.ok_or_else(none)?;
        if !mdev_type.attribute(name)?.writable {
            let what = format!("attribute `{name}` of {type_id} can only be read");
            return Err(Error::new(Errno::ACCESS, what));
        }
        instance::contained(mdev_type, || entry.ops.check_attribute(type_id, name, value))
    }

    /// Creates an instance: made by its parent, its attributes set, registered, its endpoint
    /// opened.
    /// After an error nothing of it is left, and nothing of it could be seen.
    ///
    /// `endpoint` opens the instance's endpoint, before the device becomes visible. It must not open the
    /// device.
    ///
    /// # Errors
    /// As listed in the crate's documentation.
    pub fn create(
        &self,
        create: &Create,
        endpoint: impl FnOnce(&DeviceRef) -> Result<Box<dyn Endpoint>>,
    ) -> Result<Instance> {
        let reserved = self.reserve(create)?;
        let shared = Arc::new(reserved.make(create, endpoint)?);
        let instance = Instance { shared };
        reserved.fill(&instance);
        tracing::debug!(uuid = %create.uuid, parent = create.parent, mdev_type = create.type_id, "created");
        Ok(instance)
    }

    fn reserve(&self, create: &Create) -> Result<Reserved<'_>> {
        let Create { parent: name, type_id, uuid, .. } = create;
        if uuid.is_nil() {
            return Err(Error::new(Errno::INVAL, "the nil UUID names no device"));
        }
        let mut state = lock(&self.inner.state);
        let State { parents, instances } = &mut *state;
        let Some(parent) = parents.get_mut(name) else {
            let known: Vec<_> = parents.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let what = format!("there is no parent `{name}`; there is: {known}");
            return Err(Error::new(Errno::NODEV, what));
        };
        let types = &parent.entry.spec.types;
        let Some(mdev_type) = types.iter().position(|mdev_type| mdev_type.id == *type_id) else {
            let known: Vec<_> = types.iter().map(|mdev_type| mdev_type.id.as_str()).collect();
            let what =
                format!("parent {name} has no type `{type_id}`; its types: {}", known.join(", "));
            return Err(Error::new(Errno::INVAL, what));
        };
        if parent.leaving {
            return Err(Error::new(Errno::NODEV, format!("parent {name} is leaving")));
        }
        if parent.creation_pauses > 0 {
            let what = format!("parent {name} is about to be removed; try again");
            return Err(Error::new(Errno::BUSY, what));
        }
        let Entry::Vacant(entry) = instances.entry(*uuid) else {
            let what = format!("there is an instance {uuid} already");
            return Err(Error::new(Errno::EXIST, what));
        };
        // A parent that counts itself decides it when it makes the instance.
        let counts = parent.entry.spec.capacity != Capacity::Own;
        if counts && parent.available(mdev_type) == 0 {
            let what = format!("parent {name} has no {type_id} left");
            return Err(Error::new(Errno::USERS, what));
        }
        entry.insert(Slot::Reserved);
        parent.taken[mdev_type] += parent.entry.spec.types[mdev_type].takes;
        parent.creating += 1;
        let parent = parent.entry.clone();
        Ok(Reserved { bus: self, uuid: *uuid, parent, mdev_type, filled: false })
    }

    /// Removes an instance. Returns when its device is unregistered and its UUID can be used again.
    ///
    /// While another thread removes it, [`Removal::Wait`] waits for that, and
    /// [`Removal::Deadline`] revokes the files of the instance after its time.
    ///
    /// # Errors
    /// `ENOENT`: there is no such instance. `EBUSY`: it is being created; or it is in use or
    /// being removed, and [`Removal::Refuse`] was asked for.
    pub fn remove(&self, uuid: Uuid, removal: Removal) -> Result<()> {
        let shared = self.present(uuid)?;
        let end = match removal {
            Removal::Deadline(time) => Instant::now().checked_add(time),
            Removal::Refuse | Removal::Wait => None,
        };
        loop {
            let given_back = shared.given_back.load(Ordering::SeqCst);
            if let Some(live) = shared.take(removal)? {
                let removal = match end {
                    Some(end) => Removal::Deadline(end.saturating_duration_since(Instant::now())),
                    None => removal,
                };
                self.end(&shared, live, removal);
                return Ok(());
            }
            if self.await_removal(&shared, given_back, end) {
                return Ok(());
            }
        }
    }

    /// An instance that is not being created.
    pub(crate) fn present(&self, uuid: Uuid) -> Result<Arc<Shared>> {
        match lock(&self.inner.state).instances.get(&uuid) {
            None => Err(Error::new(Errno::NOENT, format!("there is no instance {uuid}"))),
            Some(Slot::Reserved) => {
                let what = format!("instance {uuid} is being created");
                Err(Error::new(Errno::BUSY, what))
            }
            Some(Slot::Present(shared)) => Ok(shared.clone()),
        }
    }

    /// Takes an instance apart, and frees its UUID.
    pub(crate) fn end(&self, shared: &Shared, live: Live, removal: Removal) {
        self.take_apart(shared, live, removal);
        self.forget(shared);
        tracing::debug!(uuid = %shared.uuid, "removed");
    }

    /// Ends an instance, and tells its parent unless that is unregistered as well.
    fn take_apart(&self, shared: &Shared, live: Live, removal: Removal) {
        live.end(removal);
        let parent = lock(&self.inner.state).parent_of(&shared.parent).map(|parent| parent.leaving);
        // With its parent it ends for now: the next start may find what it leaves.
        if parent == Some(false) {
            shared.parent.ended(shared.mdev_type, shared.uuid, End::Removed);
        }
    }

    /// Lets others remove an instance whose removal is given up.
    pub(crate) fn give_back(&self, shared: &Shared, live: Live) {
        shared.give_back(live);
        // Whoever waits has looked before, or holds the lock.
        drop(lock(&self.inner.state));
        self.inner.changed.notify_all();
    }

    /// Refuses to create instances of a parent (`EBUSY`) for as long as the result exists, if it has
    /// none; otherwise nothing changes.
    ///
    /// # Errors
    /// `ENOENT`: there is no such parent; `EBUSY`: it has instances; the message says how many.
    pub fn pause_creation_if_unused(&self, parent: &str) -> Result<CreationPause> {
        let mut state = lock(&self.inner.state);
        let Some(found) = state.parents.get_mut(parent) else {
            return Err(Error::new(Errno::NOENT, format!("there is no parent `{parent}`")));
        };
        let count = found.instances.len() + found.creating;
        if count > 0 {
            let what = format!("parent {parent}, which has {count} instances");
            return Err(Error::new(Errno::BUSY, what));
        }
        found.creation_pauses += 1;
        Ok(CreationPause { bus: self.clone(), parent: found.entry.clone() })
    }

    /// Gives back the UUID and the units of an instance that has ended.
    fn forget(&self, shared: &Shared) {
        let removed;
        {
            let mut state = lock(&self.inner.state);
            removed = state.instances.remove(&shared.uuid);
            let parent = state.parent_of(&shared.parent).expect("a parent outlives its instances");
            parent.taken[shared.mdev_type] -= shared.parent.spec.types[shared.mdev_type].takes;
            parent.instances.remove(&shared.uuid);
        }
        // Its attributes go with it, which is foreign code.
        drop(removed);
        self.inner.changed.notify_all();
    }

    /// Waits until another thread has removed an instance, whose files are revoked at `end`. Returns
    /// `false` if it was given back more often than `given_back` says.
    fn await_removal(
        &self,
        shared: &Arc<Shared>,
        given_back: usize,
        mut end: Option<Instant>,
    ) -> bool {
        let present = |state: &State| match state.instances.get(&shared.uuid) {
            Some(Slot::Present(there)) => Arc::ptr_eq(there, shared),
            Some(Slot::Reserved) | None => false,
        };
        let mut state = lock(&self.inner.state);
        while present(&state) {
            if shared.given_back.load(Ordering::SeqCst) != given_back {
                return false;
            }
            state = match end {
                None => wait(&self.inner.changed, &self.inner.state, state, Duration::MAX),
                Some(moment) => {
                    match wait_until(&self.inner.changed, &self.inner.state, state, moment) {
                        Some(state) => state,
                        None => {
                            end = None;
                            shared.device.revoke_all();
                            lock(&self.inner.state)
                        }
                    }
                }
            };
        }
        true
    }

    /// An instance, live or leaving.
    pub fn instance(&self, uuid: Uuid) -> Option<Instance> {
        match lock(&self.inner.state).instances.get(&uuid)? {
            Slot::Present(shared) => Some(Instance { shared: shared.clone() }),
            Slot::Reserved => None,
        }
    }

    /// Every instance, in the order in which they were created.
    pub fn instances(&self) -> Vec<Instance> {
        let mut instances = Vec::new();
        for slot in lock(&self.inner.state).instances.values() {
            if let Slot::Present(shared) = slot {
                instances.push(Instance { shared: shared.clone() });
            }
        }
        instances.sort_unstable_by_key(|instance| instance.device().id());
        instances
    }

    /// A parent.
    pub fn parent(&self, name: &str) -> Option<ParentStatus> {
        lock(&self.inner.state).parents.get(name).map(status)
    }

    /// Every parent, by name.
    pub fn parents(&self) -> Vec<ParentStatus> {
        lock(&self.inner.state).parents.values().map(status).collect()
    }

    /// The names of every parent, in order.
    pub fn parent_names(&self) -> Vec<String> {
        lock(&self.inner.state).parents.keys().cloned().collect()
    }

    /// The types of a parent, in a time that does not grow with the number of its instances.
    pub fn types(&self, parent: &str) -> Option<Vec<TypeStatus>> {
        lock(&self.inner.state).parents.get(parent).map(types)
    }

    /// How many more instances of a type there can be; `None`: no such parent or type.
    pub fn available(&self, parent: &str, type_id: &str) -> Option<u32> {
        let state = lock(&self.inner.state);
        let parent = state.parents.get(parent)?;
        let mdev_type =
            parent.entry.spec.types.iter().position(|mdev_type| mdev_type.id == type_id)?;
        Some(parent.available(mdev_type))
    }
}

fn types(parent: &ParentState) -> Vec<TypeStatus> {
    let types = parent.entry.spec.types.iter().enumerate();
    types
        .map(|(at, info)| TypeStatus { info: info.clone(), available: parent.available(at) })
        .collect()
}

fn status(parent: &ParentState) -> ParentStatus {
    ParentStatus {
        name: parent.entry.spec.name.clone(),
        leaving: parent.leaving,
        types: types(parent),
        instances: parent.instances.iter().copied().collect(),
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

/// Refuses to create instances of a parent until it is dropped; see
/// [`Bus::pause_creation_if_unused`].
#[must_use = "dropping it allows creation again"]
pub struct CreationPause {
    bus: Bus,
    parent: Arc<ParentEntry>,
}

impl Drop for CreationPause {
    fn drop(&mut self) {
        let mut state = lock(&self.bus.inner.state);
        // Another parent may have the name by now.
        if let Some(parent) = state.parent_of(&self.parent) {
            parent.creation_pauses -= 1;
        }
    }
}

impl fmt::Debug for CreationPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CreationPause").field(&self.parent.spec.name).finish()
    }
}

/// The UUID and the units of an instance that is being created; given back unless filled.
struct Reserved<'a> {
    bus: &'a Bus,
    uuid: Uuid,
    parent: Arc<ParentEntry>,
    mdev_type: usize,
    filled: bool,
}

impl Reserved<'_> {
    fn make(
        &self,
        create: &Create,
        endpoint: impl FnOnce(&DeviceRef) -> Result<Box<dyn Endpoint>>,
    ) -> Result<Shared> {
        let mdev_type = &self.parent.spec.types[self.mdev_type];
        let new =
            instance::contained(mdev_type, || self.parent.ops.create(&create.type_id, self.uuid))?;
        self.register(create, endpoint, new).inspect_err(|_| {
            self.parent.ended(self.mdev_type, self.uuid, End::NotCreated);
        })
    }

    fn register(
        &self,
        create: &Create,
        endpoint: impl FnOnce(&DeviceRef) -> Result<Box<dyn Endpoint>>,
        NewInstance { device, attributes }: NewInstance,
    ) -> Result<Shared> {
        let mdev_type = &self.parent.spec.types[self.mdev_type];
        for (name, value) in &create.attributes {
            instance::set(attributes.as_ref(), mdev_type, name, value)?;
        }
        let spec = DeviceSpec {
            name: self.uuid.to_string(),
            open: create.open,
            state: create.state,
            ..DeviceSpec::default()
        };
        // If there is no endpoint, nothing of the device was visible.
        let registry = &self.bus.inner.registry;
        let (registration, endpoint) = registry.register_with(spec, device, endpoint)?;
        let live = Live { endpoint, registration, listening: true };
        Ok(Shared::new(self.uuid, self.parent.clone(), self.mdev_type, attributes, live))
    }

    fn fill(mut self, instance: &Instance) {
        self.filled = true;
        let mut state = lock(&self.bus.inner.state);
        state.instances.insert(self.uuid, Slot::Present(instance.shared.clone()));
        let parent = state.parent_of(&self.parent).expect("a parent waits for this");
        parent.instances.insert(self.uuid);
        // The destructor of `self` signals that the creation is over.
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.bus.inner.state);
            // A parent waits for instances that are being created.
            if let Some(parent) = state.parent_of(&self.parent) {
                parent.creating -= 1;
                if !self.filled {
                    parent.taken[self.mdev_type] -= self.parent.spec.types[self.mdev_type].takes;
                    state.instances.remove(&self.uuid);
                }
            }
        }
        self.bus.inner.changed.notify_all();
    }
}

/// A parent's registration. Dropping it unregisters the parent and revokes the files of its
/// instances at once.
#[must_use = "dropping a registration unregisters the parent"]
#[derive(Debug)]
pub struct ParentRegistration {
    bus: Bus,
    name: String,
    /// What is registered: another parent can have the name once this one is unregistered.
    entry: Weak<ParentEntry>,
}

impl ParentRegistration {
    /// The parent's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Unregisters: nothing can be created from now on (`ENODEV`), and every instance is removed.
    /// Their users are asked to close them, all at the same time; with a deadline, the files that
    /// are left by then are revoked. Returns when the last instance is removed.
    pub fn unregister(self, deadline: Option<Duration>) {
        self.finish(deadline);
        // The destructor finds the parent removed.
    }

    fn finish(&self, deadline: Option<Duration>) {
        let Inner { state: mutex, changed, .. } = &*self.bus.inner;
        let uuids: Vec<Uuid> = {
            let mut state = lock(mutex);
            loop {
                let Some(parent) = state.parents.get_mut(&self.name) else { return };
                if !std::ptr::eq(Arc::as_ptr(&parent.entry), self.entry.as_ptr()) {
                    return;
                }
                parent.leaving = true;
                if parent.creating == 0 {
                    break parent.instances.iter().copied().collect();
                }
                state = wait(changed, mutex, state, Duration::MAX);
            }
        };
        let end = deadline.and_then(|time| Instant::now().checked_add(time));
        let mut removers = Vec::new();
        for uuid in uuids {
            // Most are idle, and removed at once. One that is in use gets a thread, so that its
            // users are asked at the same time as those of the others.
            if self.bus.remove(uuid, Removal::Refuse).is_ok() {
                continue;
            }
            let bus = self.bus.clone();
            let remove = move || {
                let removal = match (deadline, end) {
                    (Some(Duration::ZERO), _) => Removal::Deadline(Duration::ZERO),
                    (_, None) => Removal::Wait,
                    // Also where the time is over by now users are asked: that takes some.
                    (_, Some(end)) => {
                        let left = end.saturating_duration_since(Instant::now());
                        Removal::Deadline(left.max(Duration::from_nanos(1)))
                    }
                };
                // Fails only if another thread has removed it.
                let _ = bus.remove(uuid, removal);
            };
            match thread::Builder::new().name(format!("remove {uuid}")).spawn(remove.clone()) {
                Ok(thread) => removers.push(thread),
                Err(error) => {
                    tracing::warn!(%uuid, %error, "cannot start a removal thread; removing on the calling thread");
                    remove();
                }
            }
        }
        for remover in removers {
            let _ = remover.join();
        }
        let gone = lock(mutex).parents.remove(&self.name);
        if let Err(panic) = contain(|| drop(gone)) {
            tracing::error!(parent = self.name, error = %panic, "dropping a parent failed");
        }
        tracing::debug!(parent = self.name, "unregistered");
    }
}

impl Drop for ParentRegistration {
    fn drop(&mut self) {
        self.finish(Some(Duration::ZERO));
    }
}
