//! The manager: everything that the daemon has, and every change of it. The control API and the
//! view for mdevctl are doors to it; it knows of neither.
//!
//! Its methods may be called by any thread. They wait for the disk, for sockets and for callbacks
//! of devices, but for clients only where that is said.

mod definitions;
mod doors;
pub(crate) mod events;
mod look;
pub(crate) mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use uuid::Uuid;
use vfiod_core::event::{Event, Observer};
use vfiod_core::{DeviceRef, Errno, Error, InUse, Result, SetKey};
use vfiod_mdev::{Bus, Create, ParentRegistration, Removal};

pub(crate) use self::definitions::Change;
use self::doors::Doors;
use self::events::{Events, Kind, Record};
use crate::definitions::Definitions;
use crate::serve::{Stack, access_of, build};
use vfiod_config::{Config, Models};

/// Devices, sets, parents, instances, definitions.
pub(crate) struct Manager {
    stack: Stack,
    bus: Bus,
    /// Parents' models, by the parents' names.
    models: BTreeMap<String, String>,
    parents: Mutex<Vec<ParentRegistration>>,
    doors: Arc<Doors>,
    definitions: Option<Definitions>,
    events: Arc<Events>,
    since: SystemTime,
}

/// A moment for people (RFC 3339, UTC).
fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// An instance that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct NewInstance {
    pub(crate) parent: String,
    pub(crate) type_id: String,
    /// A random one if none is given.
    pub(crate) uuid: Option<Uuid>,
    pub(crate) attributes: Vec<(String, String)>,
}

/// Both the log and the watchers.
struct Tell(Arc<Events>, Option<Arc<dyn Observer>>);

impl Observer for Tell {
    fn event(&self, event: &Event<'_>) {
        self.0.event(event);
        if let Some(other) = &self.1 {
            other.event(event);
        }
    }
}

impl Manager {
    /// Registers and serves every device of a configuration, registers its parents, and starts
    /// the instances that are defined to start by themselves. One of those that fails is logged,
    /// and the rest goes on.
    ///
    /// # Errors
    /// What a model, a socket, the store of definitions or the kernel refuses; nothing is left
    /// behind then.
    pub(crate) fn start(
        config: &Config,
        models: &Models,
        observer: Option<Arc<dyn Observer>>,
    ) -> anyhow::Result<Self> {
        let events = Arc::<Events>::default();
        let definitions = config.mdev.definitions.as_deref().map(Definitions::open).transpose()?;
        let doors = Doors::new(config.mdev.sockets.clone(), access_of(config.mdev.access))?;
        let stack = Stack::start(config, models, Some(Arc::new(Tell(events.clone(), observer))))?;
        let manager = Self {
            bus: Bus::new(stack.registry().clone()),
            stack,
            models: config.parents.iter().map(|p| (p.name.clone(), p.model.clone())).collect(),
            parents: Mutex::default(),
            doors,
            definitions,
            events,
            since: SystemTime::now(),
        };
        for parent in &config.parents {
            let registered =
                build::build_parent(models, parent).map_err(anyhow::Error::new).and_then(
                    |(spec, ops)| manager.bus.register(spec, ops).map_err(anyhow::Error::new),
                );
            match registered {
                Ok(registration) => manager.add_parent(registration),
                Err(error) => {
                    manager.stop(Duration::ZERO);
                    return Err(error.context(format!("parent {}", parent.name)));
                }
            }
        }
        manager.start_defined();
        Ok(manager)
    }

    fn add_parent(&self, registration: ParentRegistration) {
        self.events.tell(Kind::ParentRegistered, registration.name());
        self.parents.lock().unwrap_or_else(PoisonError::into_inner).push(registration);
    }

    /// Unregisters every parent and every device. Clients have `grace` to let go of each.
    pub(crate) fn stop(&self, grace: Duration) {
        let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        let parents = std::mem::take(&mut *parents);
        for parent in parents.into_iter().rev() {
            let name = parent.name().to_owned();
            parent.unregister(Some(grace));
            self.events.tell(Kind::ParentUnregistered, &*name);
            tracing::info!(parent = name, "closed");
        }
        self.stack.stop(grace);
    }

    /// The devices of the configuration file.
    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Parents and instances, for those who look often.
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Everything that happens from now on.
    pub(crate) fn watch(&self) -> tokio::sync::broadcast::Receiver<Record> {
        self.events.watch()
    }

    /// The daemon itself.
    pub(crate) fn daemon(&self) -> view::Daemon {
        view::Daemon {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            since: moment(self.since),
            devices: self.stack.registry().devices().len(),
            instances: self.bus.instances().len(),
            threads: self.stack.server().threads(),
        }
    }

    /// Every device.
    pub(crate) fn devices(&self) -> Vec<view::DeviceSummary> {
        self.stack.registry().devices().iter().map(|device| self.summary(device)).collect()
    }

    fn summary(&self, device: &DeviceRef) -> view::DeviceSummary {
        let (model, socket) = match self.instance_of(device) {
            Some(instance) => (
                format!("{}/{}", instance.parent(), instance.kind().id),
                self.socket(instance.uuid()),
            ),
            None => self.stack.about(device.name()),
        };
        look::summary(device, model, socket)
    }

    fn instance_of(&self, device: &DeviceRef) -> Option<vfiod_mdev::Instance> {
        let instance = self.bus.instance(device.name().parse().ok()?)?;
        (instance.device().id() == device.id()).then_some(instance)
    }

    fn socket(&self, uuid: Uuid) -> Option<String> {
        Some(self.doors.path(uuid)?.display().to_string())
    }

    /// A device.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name.
    pub(crate) fn device(&self, name: &str) -> Result<view::Device> {
        let device = self.find(name)?;
        let clients = match self.instance_of(&device) {
            Some(instance) => self.doors.clients(instance.uuid()),
            None => self.stack.clients(name),
        };
        let connections = clients.iter().map(look::connection).collect();
        Ok(look::device(&device, self.summary(&device), connections))
    }

    fn find(&self, name: &str) -> Result<DeviceRef> {
        let none = || Error::new(Errno::NOENT, format!("there is no device `{name}`"));
        self.stack.registry().find(name).ok_or_else(none)
    }

    fn member(&self, device: &DeviceRef) -> view::Member {
        view::Member { device: self.summary(device), files: look::files(device) }
    }

    /// Every device set, by the number of its first member.
    pub(crate) fn sets(&self) -> Vec<view::Set> {
        let mut sets: Vec<view::Set> = Vec::new();
        let mut places: HashMap<SetKey, usize> = HashMap::new();
        let devices = self.stack.registry().devices();
        for device in &devices {
            let member = self.member(device);
            let place = *places.entry(device.set_key()).or_insert_with(|| {
                let name = device.set_name().to_owned();
                sets.push(view::Set { name, open: 0, members: Vec::new() });
                sets.len() - 1
            });
            let set = &mut sets[place];
            set.open += usize::from(!member.files.is_empty());
            set.members.push(member);
        }
        sets
    }

    /// A device set.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name.
    pub(crate) fn set(&self, name: &str) -> Result<view::Set> {
        let mut devices = self.stack.registry().devices();
        let key = devices.iter().find(|device| device.set_name() == name).map(DeviceRef::set_key);
        let none = || Error::new(Errno::NOENT, format!("there is no device set `{name}`"));
        let key = key.ok_or_else(none)?;
        devices.retain(|device| device.set_key() == key);
        let members: Vec<_> = devices.iter().map(|device| self.member(device)).collect();
        let open = members.iter().filter(|member| !member.files.is_empty()).count();
        Ok(view::Set { name: name.to_owned(), open, members })
    }

    /// Resets every member of a device set on the administrator's authority.
    ///
    /// # Errors
    /// `ENOENT`: there is no such set; `EBUSY`: a member is in use, or busy for too long; what a
    /// member says that could not be reset.
    pub(crate) fn reset_set(&self, name: &str, in_use: InUse) -> Result<()> {
        let devices = self.stack.registry().devices();
        let none = || Error::new(Errno::NOENT, format!("there is no device set `{name}`"));
        let member = devices.iter().find(|device| device.set_name() == name).ok_or_else(none)?;
        member.reset_set(in_use)?;
        tracing::info!(set = name, "reset");
        Ok(())
    }

    /// Every file: who has what open since when.
    pub(crate) fn files(&self) -> Vec<view::File> {
        self.stack.registry().devices().iter().flat_map(look::files).collect()
    }

    /// A file.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this number (any more).
    pub(crate) fn file(&self, number: u64) -> Result<view::File> {
        self.find_file(number).map(|(_, file)| file)
    }

    fn find_file(&self, number: u64) -> Result<(DeviceRef, view::File)> {
        let devices = self.stack.registry().devices().into_iter();
        let mut files = devices.flat_map(|device| {
            let files = look::files(&device);
            files.into_iter().map(move |file| (device.clone(), file))
        });
        let none = || Error::new(Errno::NOENT, format!("there is no file {number}"));
        files.find(|(_, file)| file.number == number).ok_or_else(none)
    }

    /// Takes a file from its user, who gets `ENODEV` from then on.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this number (any more).
    pub(crate) fn revoke_file(&self, number: u64) -> Result<()> {
        let (device, _) = self.find_file(number)?;
        device.revoke(vfiod_core::FileId(number))
    }

    /// Takes every file of a device from its users; how many there were.
    ///
    /// # Errors
    /// `ENOENT`: there is no such device.
    pub(crate) fn revoke_device(&self, name: &str) -> Result<usize> {
        Ok(self.find(name)?.revoke_all())
    }

    /// Every parent, by name.
    pub(crate) fn parents(&self) -> Vec<view::Parent> {
        self.bus.parents().into_iter().map(|parent| self.show_parent(parent)).collect()
    }

    /// A parent.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name.
    pub(crate) fn parent(&self, name: &str) -> Result<view::Parent> {
        let none = || Error::new(Errno::NOENT, format!("there is no parent `{name}`"));
        Ok(self.show_parent(self.bus.parent(name).ok_or_else(none)?))
    }

    fn show_parent(&self, parent: vfiod_mdev::ParentStatus) -> view::Parent {
        let vfiod_mdev::ParentStatus { name, leaving, types, instances } = parent;
        let model = self.models.get(&name).cloned().unwrap_or_default();
        let types = types.into_iter().map(|kind| look::kind(&name, kind)).collect();
        view::Parent { name, model, leaving, types, instances }
    }

    /// Every type of every parent.
    pub(crate) fn types(&self) -> Vec<view::Type> {
        self.parents().into_iter().flat_map(|parent| parent.types).collect()
    }

    /// Every instance, in the order in which they were created.
    pub(crate) fn instances(&self) -> Vec<view::InstanceSummary> {
        self.bus.instances().iter().map(|instance| self.instance_summary(instance)).collect()
    }

    fn instance_summary(&self, instance: &vfiod_mdev::Instance) -> view::InstanceSummary {
        let (state, open) = look::state(instance.device());
        view::InstanceSummary {
            uuid: instance.uuid(),
            parent: instance.parent().to_owned(),
            type_id: instance.kind().id.clone(),
            state,
            open,
            socket: self.socket(instance.uuid()),
        }
    }

    fn find_instance(&self, uuid: Uuid) -> Result<vfiod_mdev::Instance> {
        let none = || Error::new(Errno::NOENT, format!("there is no instance {uuid}"));
        self.bus.instance(uuid).ok_or_else(none)
    }

    /// An instance.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this UUID.
    pub(crate) fn instance(&self, uuid: Uuid) -> Result<view::Instance> {
        let instance = self.find_instance(uuid)?;
        let connections = self.doors.clients(uuid);
        let connections = connections.iter().map(look::connection).collect();
        let summary = self.summary(instance.device());
        let value = |attribute: &vfiod_mdev::AttributeInfo| {
            let value = instance.attribute(&attribute.name).unwrap_or_else(|e| e.to_string());
            (attribute.name.clone(), value)
        };
        Ok(view::Instance {
            summary: self.instance_summary(&instance),
            attributes: instance.kind().attributes.iter().map(value).collect(),
            defined: self.defined(&instance),
            device: look::device(instance.device(), summary, connections),
        })
    }

    /// Creates an instance that is gone when it is removed or the daemon ends.
    ///
    /// # Errors
    /// As [`Bus::create`]; what the socket says.
    pub(crate) fn create(&self, new: NewInstance) -> Result<view::Instance> {
        let NewInstance { parent, type_id, uuid, attributes } = new;
        let uuid = uuid.unwrap_or_else(Uuid::new_v4);
        let create = Create { attributes, ..Create::new(parent, type_id, uuid) };
        self.bus.create(&create, |device| self.doors.make(&self.stack, uuid, device))?;
        tracing::info!(%uuid, parent = create.parent, kind = create.type_id, "created");
        self.instance(uuid)
    }

    /// Removes an instance. Waits for its users, as far as `removal` says so.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this UUID; `EBUSY`: it is in use, and that is to be respected.
    pub(crate) fn remove(&self, uuid: Uuid, removal: Removal) -> Result<()> {
        self.bus.remove(uuid, removal)?;
        tracing::info!(%uuid, "removed");
        Ok(())
    }

    /// Removes an instance once its users have let go, or at the deadline: on a thread of its own.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this UUID; what the kernel says to a thread more.
    pub(crate) fn remove_when_free(self: &Arc<Self>, uuid: Uuid, removal: Removal) -> Result<()> {
        self.find_instance(uuid)?;
        let manager = self.clone();
        let remove = move || {
            if let Err(error) = manager.remove(uuid, removal) {
                tracing::debug!(%uuid, %error, "not removed");
            }
        };
        let thread = std::thread::Builder::new().name("remove".into()).spawn(remove);
        thread.map(drop).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
            Error::new(errno, "no thread to wait for the users with")
        })
    }

    /// Sets attributes of an instance, one after the other.
    ///
    /// # Errors
    /// As [`vfiod_mdev::Instance::set_attribute`]; those before the one that failed are set.
    pub(crate) fn set_attributes(&self, uuid: Uuid, attributes: &[(String, String)]) -> Result<()> {
        let instance = self.find_instance(uuid)?;
        attributes.iter().try_for_each(|(name, value)| instance.set_attribute(name, value))
    }
}
