//! The manager: everything that the daemon has, and every change of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use uuid::Uuid;
use vfiod_config::{Config, Document, Models};
use vfiod_core::event::{Event, Observer};
use vfiod_core::{DeviceRef, Errno, Error, FileId, InUse, Registry, Result, SetKey};
use vfiod_mdev::{Bus, Create, ParentRegistration, PendingRemoval, Removal};
use vfiod_quota::{Resource, Usage};
use vfiod_server::{ConnectionInfo, ConnectionTotals, Departures, Server};

use crate::counters::{AllCounters, Counters};
use crate::definitions::Definitions;
use crate::departure;
use crate::endpoints::Endpoints;
use crate::events::{EventKind, Events, Watch};
use crate::inherited::PassedSockets;
use crate::leaving::Claims;
use crate::limits;
use crate::restarts::Restarts;
use crate::sockets::mistake;
use crate::stack::{About, Stack};

/// Devices, sets, parents, instances, definitions.
///
/// Its methods may be called by any thread. They block on the disk, on sockets and on callbacks of
/// devices, but on clients only if their documentation says so.
pub struct Manager {
    stack: Stack,
    pub(crate) bus: Bus,
    /// What devices and parents are made of.
    pub(crate) models: Models,
    /// Registrations of the parents, each with its model.
    parents: Mutex<Vec<(ParentRegistration, String)>>,
    /// The configuration that runs, where a text can say it.
    pub(crate) document: Mutex<Option<Document>>,
    /// Held over a change of the configuration, but not while users are waited for.
    pub(crate) changing: Mutex<()>,
    /// What changes remove that wait for users.
    pub(crate) leaving: Claims,
    endpoints: Arc<Endpoints>,
    pub(crate) definitions: Option<Definitions>,
    /// Why definitions did not start, by parent and UUID.
    pub(crate) start_failures: Mutex<HashMap<(String, Uuid), String>>,
    pub(crate) events: Arc<Events>,
    counters: Arc<AllCounters>,
    since: SystemTime,
    restarts: OnceLock<Restarts>,
}

/// What a manager starts with.
pub enum Source {
    /// A configuration with its text, which can be changed while the manager runs.
    Document(Box<Document>),
    /// A configuration alone.
    Config(Box<Config>),
}

impl Source {
    /// The configuration.
    pub fn config(&self) -> &Config {
        match self {
            Self::Document(document) => document.config(),
            Self::Config(config) => config,
        }
    }
}

impl From<Document> for Source {
    fn from(document: Document) -> Self {
        Self::Document(Box::new(document))
    }
}

impl From<Config> for Source {
    fn from(config: Config) -> Self {
        Self::Config(Box::new(config))
    }
}

/// An instance to be created.
#[derive(Clone, Debug)]
pub struct NewInstance {
    /// The parent that makes it.
    pub parent: String,
    /// Its type among those of the parent.
    pub type_id: String,
    /// Its UUID; a random one if none is given.
    pub uuid: Option<Uuid>,
    /// Attributes to be set before a client can open it, in this order.
    pub attributes: Vec<(String, String)>,
}

/// Passes events to the watchers, the counters and another observer.
struct Observers(Arc<Events>, Arc<AllCounters>, Option<Arc<dyn Observer>>);

impl Observer for Observers {
    fn event(&self, event: &Event<'_>) {
        self.1.event(event);
        self.0.event(event);
        if let Some(other) = &self.2 {
            other.event(event);
        }
    }
}

impl Manager {
    /// Prepares a manager, and serves: see [`Manager::prepare`] and [`Manager::serve`].
    ///
    /// # Errors
    /// As these.
    pub fn start(
        source: impl Into<Source>,
        models: &Models,
        observer: Option<Arc<dyn Observer>>,
    ) -> anyhow::Result<Self> {
        let manager = Self::prepare(source, models, observer, PassedSockets::take(None)?)?;
        if let Err(error) = manager.publish().and_then(|()| manager.serve()) {
            manager.stop(Duration::ZERO);
            return Err(error);
        }
        Ok(manager)
    }

    /// Registers every device of a configuration and its parents, and starts the instances whose
    /// definitions start by themselves. If one of these fails it is logged, and the others are
    /// started. Nobody can open anything yet: sockets have no names.
    ///
    /// # Errors
    /// Errors of a model, a socket, the store of definitions or the kernel; nothing is left behind.
    pub fn prepare(
        source: impl Into<Source>,
        models: &Models,
        observer: Option<Arc<dyn Observer>>,
        passed: PassedSockets,
    ) -> anyhow::Result<Self> {
        let (config, document) = match source.into() {
            Source::Document(document) => (document.config().clone(), Some(*document)),
            Source::Config(config) => (*config, None),
        };
        limits::check(&config)?;
        let events = Arc::<Events>::default();
        let definitions = config.mdev.definitions.as_deref().map(Definitions::open);
        let definitions = definitions.transpose().map_err(mistake).context("the definitions")?;
        let endpoints = Endpoints::new(config.mdev.sockets.clone(), config.mdev.access)?;
        let counters = Arc::<AllCounters>::default();
        let observer = Arc::new(Observers(events.clone(), counters.clone(), observer));
        let stack = Stack::prepare(&config, models, Some(observer), passed)?;
        let manager = Self {
            bus: Bus::new(stack.registry().clone()),
            stack,
            models: models.clone(),
            parents: Mutex::default(),
            document: Mutex::new(document),
            changing: Mutex::default(),
            leaving: Claims::default(),
            endpoints,
            definitions,
            start_failures: Mutex::default(),
            events,
            counters,
            since: SystemTime::now(),
            restarts: OnceLock::new(),
        };
        for parent in &config.parents {
            if let Err(error) = manager.register_parent(parent) {
                manager.stop(Duration::ZERO);
                return Err(error);
            }
        }
        manager.start_defined();
        Ok(manager)
    }

    /// Gives every socket its name. Clients that connect wait until they are served.
    ///
    /// # Errors
    /// Errors of the kernel; somebody listens at a path since it was prepared.
    pub fn publish(&self) -> anyhow::Result<()> {
        self.stack.publish()?;
        Ok(self.endpoints.publish()?)
    }

    /// Serves every device and every instance.
    ///
    /// # Errors
    /// Errors of the kernel: no descriptor is left.
    pub fn serve(&self) -> anyhow::Result<()> {
        self.stack.serve()?;
        Ok(self.endpoints.serve(&self.stack)?)
    }

    pub(crate) fn add_parent(&self, registration: ParentRegistration, model: &str) {
        self.emit(EventKind::ParentRegistered, registration.name());
        vfiod_sync::lock(&self.parents).push((registration, model.to_owned()));
    }

    /// Unregisters a parent with its instances, whose clients have `grace` to close them.
    pub(crate) fn remove_parent(&self, name: &str, grace: Duration) {
        let mut parents = vfiod_sync::lock(&self.parents);
        let at = parents.iter().position(|(parent, _)| parent.name() == name);
        let parent = at.map(|at| parents.remove(at).0);
        drop(parents);
        if let Some(parent) = parent {
            self.unregister_parent(parent, grace);
        }
    }

    fn unregister_parent(&self, parent: ParentRegistration, grace: Duration) {
        let name = parent.name().to_owned();
        parent.unregister(Some(grace));
        self.emit(EventKind::ParentUnregistered, &name);
        tracing::info!(parent = name, "closed");
    }

    /// Unregisters every parent and every device. Clients have `grace` to close them, all of them at
    /// the same time; then their connections are ended.
    pub fn stop(&self, grace: Duration) {
        let parents = std::mem::take(&mut *vfiod_sync::lock(&self.parents));
        // At the same time: whoever takes all of the grace leaves none of it to others otherwise.
        std::thread::scope(|scope| {
            for (parent, _) in parents.into_iter().rev() {
                scope.spawn(|| self.unregister_parent(parent, grace));
            }
            self.stack.stop(grace);
        });
        if let Some(definitions) = &self.definitions {
            definitions.unlock();
        }
        self.stack.server().log_suppressed();
    }

    /// The devices of the configuration.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The models that devices can be made of.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Parents and instances, for those who look often.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// What there is, then everything that happens from now on.
    pub fn watch(&self) -> Watch {
        self.events.watch()
    }

    /// Emits an event that the core does not know of.
    pub(crate) fn emit(&self, kind: EventKind, name: &str) {
        self.events.emit(self.registry().take_event_number(), kind, name);
    }

    /// When the manager was ready.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Says once how the processes before this one have ended.
    pub fn set_restarts(&self, restarts: Restarts) {
        let _ = self.restarts.set(restarts);
    }

    /// How the processes before this one have ended; `None`: it has no holder, or does not serve yet.
    pub fn restarts(&self) -> Option<&Restarts> {
        self.restarts.get()
    }

    /// Where every device is registered.
    pub fn registry(&self) -> &Registry {
        self.stack.registry()
    }

    /// What serves every device.
    pub fn server(&self) -> &Server {
        self.stack.server()
    }

    /// Counts of events, by the names of devices.
    pub fn counters(&self) -> Vec<(String, Arc<Counters>)> {
        self.counters.all()
    }

    /// Every device.
    pub fn devices(&self) -> Vec<DeviceRef> {
        self.registry().devices()
    }

    /// What the manager knows of a device.
    pub fn about(&self, device: &DeviceRef) -> About {
        match self.instance_of(device) {
            Some(instance) => self.about_instance(&instance),
            None => self.stack.about(device.name()),
        }
    }

    /// What the manager knows of an instance, also if that has been removed.
    pub fn about_instance(&self, instance: &vfiod_mdev::Instance) -> About {
        About {
            model: format!("{}/{}", instance.parent(), instance.mdev_type().id),
            socket: self.socket(instance.uuid()),
        }
    }

    /// The connections to a device.
    pub fn connections(&self, device: &DeviceRef) -> Vec<ConnectionInfo> {
        match self.instance_of(device) {
            Some(instance) => self.endpoints.clients(instance.uuid()),
            None => self.stack.clients(device.name()),
        }
    }

    /// What a device has of its share of a resource; `None` if it is not served.
    pub fn usage(&self, device: &DeviceRef, resource: Resource) -> Option<Usage> {
        match self.instance_of(device) {
            Some(instance) => self.endpoints.usage(instance.uuid(), resource),
            None => self.stack.usage(device.name(), resource),
        }
    }

    /// What was counted on all connections to a device, those that have ended included.
    pub fn connection_totals(&self, device: &DeviceRef) -> ConnectionTotals {
        match self.instance_of(device) {
            Some(instance) => self.endpoints.totals(instance.uuid()),
            None => self.stack.totals(device.name()),
        }
    }

    /// The clients of a device that have hung up.
    pub(crate) fn departures(&self, device: &DeviceRef) -> Option<Departures> {
        match self.instance_of(device) {
            Some(instance) => self.endpoints.departures(instance.uuid()),
            None => self.stack.departures(device.name()),
        }
    }

    pub(crate) fn instance_of(&self, device: &DeviceRef) -> Option<vfiod_mdev::Instance> {
        let instance = self.bus.instance(device.name().parse().ok()?)?;
        (instance.device().id() == device.id()).then_some(instance)
    }

    /// Where clients of an instance connect.
    pub fn socket(&self, uuid: Uuid) -> Option<String> {
        Some(self.endpoints.path(uuid)?.display().to_string())
    }

    /// Finds a device by its name.
    ///
    /// # Errors
    /// `ENOENT`: no device has this name.
    pub fn find(&self, name: &str) -> Result<DeviceRef> {
        let none = || Error::new(Errno::NOENT, format!("there is no device `{name}`"));
        self.registry().find(name).ok_or_else(none)
    }

    /// Every device set with its name and its members, by the id of the first member.
    pub fn sets(&self) -> Vec<(String, Vec<DeviceRef>)> {
        let mut sets: Vec<(String, Vec<DeviceRef>)> = Vec::new();
        let mut places: HashMap<SetKey, usize> = HashMap::new();
        for device in self.devices() {
            let place = *places.entry(device.set_key()).or_insert_with(|| {
                sets.push((device.set_name().to_owned(), Vec::new()));
                sets.len() - 1
            });
            sets[place].1.push(device);
        }
        sets
    }

    /// The members of a device set.
    ///
    /// # Errors
    /// `ENOENT`: no set has this name.
    pub fn set(&self, name: &str) -> Result<Vec<DeviceRef>> {
        let mut devices = self.devices();
        let key = devices.iter().find(|device| device.set_name() == name).map(DeviceRef::set_key);
        let none = || Error::new(Errno::NOENT, format!("there is no device set `{name}`"));
        let key = key.ok_or_else(none)?;
        devices.retain(|device| device.set_key() == key);
        Ok(devices)
    }

    /// Resets every member of a device set on the administrator's authority.
    ///
    /// # Errors
    /// `ENOENT`: there is no such set; `EBUSY`: a member is in use, or busy for too long; what a
    /// member says that could not be reset.
    pub fn reset_set(&self, name: &str, in_use: InUse) -> Result<()> {
        let devices = self.registry().devices();
        let none = || Error::new(Errno::NOENT, format!("there is no device set `{name}`"));
        let member = devices.iter().find(|device| device.set_name() == name).ok_or_else(none)?;
        let key = member.set_key();
        let members = devices.iter().filter(|device| device.set_key() == key);
        let departures: Vec<_> = members.filter_map(|device| self.departures(device)).collect();
        departure::past_departures(&departures, || member.reset_set(in_use))?;
        tracing::info!(set = name, "reset");
        Ok(())
    }

    /// Finds the device that has a file open.
    ///
    /// # Errors
    /// `ENOENT`: no file has this id, or it has been released.
    pub fn find_file(&self, file: FileId) -> Result<DeviceRef> {
        let none = || Error::new(Errno::NOENT, format!("there is no file {}", file.0));
        let has = |device: &DeviceRef| device.status().files.iter().any(|open| open.id == file);
        self.devices().into_iter().find(has).ok_or_else(none)
    }

    /// Revokes a file: every later operation on it fails with `ENODEV`.
    ///
    /// # Errors
    /// `ENOENT`: no file has this id, or it has been released.
    pub fn revoke_file(&self, file: FileId) -> Result<()> {
        self.find_file(file)?.revoke(file)
    }

    /// Revokes every file of a device. Returns how many there were.
    ///
    /// # Errors
    /// `ENOENT`: there is no such device.
    pub fn revoke_device(&self, name: &str) -> Result<usize> {
        Ok(self.find(name)?.revoke_all())
    }

    /// The model of a parent.
    pub fn parent_model(&self, parent: &str) -> Option<String> {
        let parents = vfiod_sync::lock(&self.parents);
        let found = parents.iter().find(|(registration, _)| registration.name() == parent);
        found.map(|(_, model)| model.clone())
    }

    /// Finds an instance.
    ///
    /// # Errors
    /// `ENOENT`: no instance has this UUID.
    pub fn find_instance(&self, uuid: Uuid) -> Result<vfiod_mdev::Instance> {
        let none = || Error::new(Errno::NOENT, format!("there is no instance {uuid}"));
        self.bus.instance(uuid).ok_or_else(none)
    }

    /// Creates an instance that lasts until it is removed or the daemon ends. Another thread may have
    /// removed it already when this returns.
    ///
    /// # Errors
    /// As [`Bus::create`]; what the socket says.
    pub fn create(&self, new: NewInstance) -> Result<vfiod_mdev::Instance> {
        let NewInstance { parent, type_id, uuid, attributes } = new;
        let uuid = uuid.unwrap_or_else(Uuid::new_v4);
        let create = Create { attributes, ..Create::new(parent, type_id, uuid) };
        let endpoint = |device: &DeviceRef| self.endpoints.make(&self.stack, uuid, device);
        let instance = self.bus.create(&create, endpoint)?;
        tracing::info!(%uuid, parent = create.parent, mdev_type = create.type_id, "created");
        Ok(instance)
    }

    /// Removes an instance. Waits for its users, as far as `removal` says so.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this UUID; `EBUSY`: it is in use, and that is to be respected.
    pub fn remove(&self, uuid: Uuid, removal: Removal) -> Result<()> {
        let departures = self.endpoints.departures(uuid);
        departure::past_departures(departures.as_slice(), || self.bus.remove(uuid, removal))?;
        tracing::info!(%uuid, "removed");
        Ok(())
    }

    /// Begins to remove an instance, without waiting for its users; `None` if it is being removed already.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this UUID; `EBUSY`: it is being created.
    pub fn begin_removal(&self, uuid: Uuid) -> Result<Option<PendingRemoval>> {
        self.bus.begin_removal(uuid)
    }

    /// Sets attributes of an instance, one after the other. Returns the instance.
    ///
    /// # Errors
    /// As [`vfiod_mdev::Instance::set_attribute`]; those before the one that failed are set.
    pub fn set_attributes(
        &self,
        uuid: Uuid,
        attributes: &[(String, String)],
    ) -> Result<vfiod_mdev::Instance> {
        let instance = self.find_instance(uuid)?;
        let departures = self.endpoints.departures(uuid);
        attributes.iter().try_for_each(|(name, value)| {
            let set = || instance.set_attribute(name, value);
            departure::past_departures(departures.as_slice(), set)
        })?;
        Ok(instance)
    }
}
