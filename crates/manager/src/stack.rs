//! The devices of a configuration, registered and served: started in the order of the
//! configuration, stopped in the reverse order.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use vfiod_config::{Config, Models, Options};
use vfiod_core::event::Observer;
use vfiod_core::{Device, DeviceRef, DeviceSpec, OpenPause, Registration, Registry};
use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice, ObjectId};
use vfiod_pci::{Bus, Placement};
use vfiod_quota::{Resource, Usage};
use vfiod_server::{
    ConnectionInfo, ConnectionTotals, Departures, Listener, Served, Server, ServerOptions,
};
use vfiod_tasks::Workers;

use crate::build::{self, Siblings};
use crate::departure;
use crate::inherited::PassedSockets;
use crate::limits::limits;
use crate::plan::{self, BusPlan, ContainerPlan, DevicePlan, SriovPlan, Unit};
use crate::sockets::{Opened, Source};

/// Most threads that run devices' tasks. A task that does not wait is given another thread.
const MAX_WORKERS: usize = 4;

/// Devices that are registered and served.
pub struct Stack {
    running: Mutex<Vec<RunningUnit>>,
    /// What is known of each device, by its name.
    about: Mutex<HashMap<String, About>>,
    buses: Mutex<Vec<(BusPlan, Arc<Bus>)>>,
    siblings: Mutex<Siblings>,
    /// Where the control API listens, until that takes it.
    control: Mutex<Option<Listener>>,
    registry: Registry,
    // After the devices: the threads that release their files.
    server: Server,
    // After them: the threads that run the devices' tasks, until those have ended.
    _workers: Workers,
}

/// What the manager knows of a device beyond what the core knows.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The model that it was made of; for a mediated device, parent and type.
    pub model: String,
    /// Where clients connect, if that is a path.
    pub socket: Option<String>,
}

/// A unit that runs.
struct RunningUnit {
    plan: Unit,
    container: Option<Arc<Container>>,
    devices: Vec<Running>,
}

/// A device that runs. Its place on the bus is freed last.
struct Running {
    /// Where its clients will come from, until it is served.
    source: Option<Source>,
    served: Option<Served>,
    connected: bool,
    registration: Registration,
    placement: Option<Placement>,
}

impl Stack {
    /// Registers and serves every device of a configuration.
    ///
    /// # Errors
    /// What a model, a socket or the kernel refuses; nothing is left behind then.
    pub fn start(
        config: &Config,
        models: &Models,
        observer: Option<Arc<dyn Observer>>,
    ) -> anyhow::Result<Self> {
        let stack = Self::prepare(config, models, observer, PassedSockets::take(None)?)?;
        if let Err(error) = stack.publish().and_then(|()| stack.serve()) {
            stack.stop(Duration::ZERO);
            return Err(error);
        }
        Ok(stack)
    }

    /// Registers every device of a configuration. None of them can be opened before
    /// [`Stack::publish`] and [`Stack::serve`].
    ///
    /// # Errors
    /// What a model, a socket or the kernel refuses; nothing is left behind then.
    pub(crate) fn prepare(
        config: &Config,
        models: &Models,
        observer: Option<Arc<dyn Observer>>,
        passed: PassedSockets,
    ) -> anyhow::Result<Self> {
        let units = plan::units(config);
        let mut opened = Opened::of_config(config, &units, passed)?;
        let mut options = ServerOptions::default();
        options.poll = config.poll.unwrap_or(options.poll);
        options.max_threads = config.threads.unwrap_or(options.max_threads);
        options.max_connections =
            config.limits.device_connections.unwrap_or(vfiod_config::DEVICE_CONNECTIONS);
        options.limits = limits(config);
        let registry = observer.map_or_else(Registry::new, Registry::with_observer);
        registry.accept_files(config.dma_files);
        let polled = config.limits.polled_devices.unwrap_or(vfiod_config::POLLED_DEVICES);
        registry.runtime().limit_polled(polled);
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers = Workers::start(registry.runtime(), workers.min(MAX_WORKERS))
            .context("cannot start the threads of tasks")?;
        let stack = Self {
            running: Mutex::default(),
            about: Mutex::default(),
            buses: Mutex::default(),
            siblings: Mutex::default(),
            control: Mutex::new(opened.take_control(config)?),
            registry,
            server: Server::new(options)?,
            _workers: workers,
        };
        for unit in units {
            if let Err(error) = stack.add(unit, models, &mut opened) {
                stack.stop(Duration::ZERO);
                return Err(error);
            }
        }
        opened.passed.warn_about_the_rest();
        Ok(stack)
    }

    /// Gives every socket of a device its name. Nobody is served yet.
    ///
    /// # Errors
    /// Errors of the kernel, with the device's name; somebody listens there since it was prepared.
    pub(crate) fn publish(&self) -> anyhow::Result<()> {
        let running = vfiod_sync::lock(&self.running);
        let publisher = |device: &Running| match &device.source {
            Some(Source::Listener(listener)) => {
                let name = device.registration.device().name().to_owned();
                listener.publisher().map(|publisher| (name, publisher))
            }
            _ => None,
        };
        let devices = running.iter().flat_map(|unit| &unit.devices);
        let publishers: Vec<_> = devices.filter_map(publisher).collect();
        // Without the lock: somebody may hold up a socket's directory.
        drop(running);
        for (name, publisher) in publishers {
            publisher.publish().with_context(|| format!("device {name}"))?;
        }
        Ok(())
    }

    /// Serves every device that is not served yet.
    ///
    /// # Errors
    /// Errors of the kernel, with the device's name.
    pub(crate) fn serve(&self) -> anyhow::Result<()> {
        let mut running = vfiod_sync::lock(&self.running);
        for device in running.iter_mut().flat_map(|unit| &mut unit.devices) {
            let target = device.registration.device().clone();
            let name = target.name().to_owned();
            let served = match device.source.take() {
                None => continue,
                Some(Source::Listener(listener)) => {
                    let path = listener.path().map(|path| path.display().to_string());
                    let (model, address) = (self.about(&name).model, target.location());
                    tracing::info!(device = name, model, address, path, "served");
                    self.server.serve(listener, target)
                }
                Some(Source::Connected(socket)) => {
                    device.connected = true;
                    self.server.serve_connected(socket, target)
                }
            };
            device.served = Some(served.with_context(|| format!("device {name}"))?);
        }
        Ok(())
    }

    /// Registers a unit. `opened` are sockets that are open already.
    ///
    /// # Errors
    /// What a model, a socket or the kernel refuses; nothing of the unit is left behind then.
    pub(crate) fn add(
        &self,
        unit: Unit,
        models: &Models,
        opened: &mut Opened,
    ) -> anyhow::Result<()> {
        let mut running = RunningUnit { plan: unit, container: None, devices: Vec::new() };
        let (started, what) = match running.plan.clone() {
            Unit::Device(plan) => (self.add_device(&plan, models, opened, &mut running), "device"),
            Unit::Container(plan) => (self.add_container(&plan, opened, &mut running), "container"),
        };
        if let Err(error) = started {
            let name = running.plan.name().to_owned();
            self.stop_units(vec![running], Duration::ZERO);
            return Err(error.context(format!("{what} {name}")));
        }
        vfiod_sync::lock(&self.running).push(running);
        Ok(())
    }

    fn add_device(
        &self,
        plan: &DevicePlan,
        models: &Models,
        opened: &mut Opened,
        running: &mut RunningUnit,
    ) -> anyhow::Result<()> {
        let source = opened.take(&plan.socket)?;
        let placement = match &plan.place {
            Some(place) => {
                let bus = self.bus(&place.bus)?;
                let at = place.address;
                let placement = bus.place(at.device, at.function, &plan.name)?;
                let is_virtual = matches!(plan.sriov, SriovPlan::Virtual(_));
                Some(if is_virtual { placement.virtual_function() } else { placement })
            }
            None => None,
        };
        let spec = DeviceSpec {
            name: plan.name.clone(),
            id: None,
            set: placement.as_ref().and_then(Placement::set),
            open: plan.open,
            state: plan.state,
            location: placement.as_ref().map(|placement| placement.address().to_string()),
            token: plan.token,
        };
        let device = build::build(models, plan, &mut vfiod_sync::lock(&self.siblings))?;
        running.devices.push(self.register(source, spec, device, &plan.model, placement)?);
        Ok(())
    }

    /// Registers a container and what is in it.
    fn add_container(
        &self,
        plan: &ContainerPlan,
        opened: &mut Opened,
        running: &mut RunningUnit,
    ) -> anyhow::Result<()> {
        let ContainerPlan { config, outer } = plan;
        let container = Container::new(config.id);
        let outer = outer.as_ref().and_then(|outer| self.container(&outer.config.name));
        let mut add = |name: &str, socket, id: ObjectId, device: Box<dyn Device>| {
            let within = match (&outer, id.kind) {
                (Some(outer), Kind::Dprc) => outer.id(),
                _ => container.id(),
            };
            let spec = DeviceSpec {
                name: name.to_owned(),
                set: Some(container.set()),
                location: Some(format!("dprc.{within}/{id}")),
                ..DeviceSpec::default()
            };
            let source = opened.take(socket)?;
            running.devices.push(self.register(source, spec, device, id.kind.name(), None)?);
            anyhow::Ok(())
        };
        let id = ObjectId { kind: Kind::Dprc, id: config.id };
        let device = Box::new(match &outer {
            Some(outer) => ContainerDevice::inside(&container, outer)?,
            None => ContainerDevice::new(&container),
        });
        add(&config.name, &config.socket, id, device)?;
        for object in &config.objects {
            let plugged = container.plug(object.kind, object.id)?;
            let (id, device) = (plugged.id(), Box::new(ObjectDevice::new(plugged)?));
            add(&object.name, &object.socket, id, device)
                .with_context(|| format!("object {}", object.name))?;
        }
        running.container = Some(container);
        Ok(())
    }

    fn container(&self, name: &str) -> Option<Arc<Container>> {
        let running = vfiod_sync::lock(&self.running);
        running.iter().find(|unit| unit.plan.name() == name)?.container.clone()
    }

    fn register(
        &self,
        source: Source,
        spec: DeviceSpec,
        device: Box<dyn Device>,
        model: &str,
        placement: Option<Placement>,
    ) -> anyhow::Result<Running> {
        let registration = self.registry.register(spec, device)?;
        let path = match &source {
            Source::Listener(listener) => listener.path().map(|path| path.display().to_string()),
            Source::Connected(_) => None,
        };
        let about = About { model: model.to_owned(), socket: path };
        vfiod_sync::lock(&self.about).insert(registration.device().name().to_owned(), about);
        Ok(Running {
            source: Some(source),
            served: None,
            connected: false,
            registration,
            placement,
        })
    }

    /// The bus of a plan, made if it is not there. Those above it are made first.
    fn bus(&self, plan: &BusPlan) -> vfiod_core::Result<Arc<Bus>> {
        let known = |(known, bus): &(BusPlan, Arc<Bus>)| (known == plan).then(|| bus.clone());
        if let Some(bus) = vfiod_sync::lock(&self.buses).iter().find_map(known) {
            return Ok(bus);
        }
        let new = match &plan.bridge {
            None => Bus::new(plan.segment, plan.number, plan.kind),
            Some((above, device, function)) => {
                let name = format!("the bridge of bus {}", plan.name);
                let bridge = self.bus(above)?.place(*device, *function, &name)?;
                Bus::behind(bridge, plan.number, plan.kind)
            }
        };
        vfiod_sync::lock(&self.buses).push((plan.clone(), new.clone()));
        Ok(new)
    }

    /// Where the control API is to listen, if one is configured; once. It has no name yet.
    pub fn take_control(&self) -> Option<Listener> {
        vfiod_sync::lock(&self.control).take()
    }

    /// Where every device is registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What serves every device.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The plans of all that runs, in the order in which they were started.
    pub(crate) fn plans(&self) -> Vec<Unit> {
        vfiod_sync::lock(&self.running).iter().map(|unit| unit.plan.clone()).collect()
    }

    /// What runs is from now on what a configuration says of a device, whose options an operation has
    /// changed.
    pub(crate) fn set_options(&self, name: &str, options: &[(String, Value)]) {
        let set = |plan: &mut DevicePlan| {
            if plan.name == name {
                plan.options = options.to_vec();
            }
        };
        for unit in vfiod_sync::lock(&self.running).iter_mut() {
            if let Unit::Device(plan) = &mut unit.plan {
                set(plan);
                if let SriovPlan::Virtual(physical) = &mut plan.sriov {
                    set(physical);
                }
            }
        }
    }

    /// The options of a device of the configuration that was made of a model.
    pub(crate) fn options(&self, name: &str) -> Option<Options> {
        let running = vfiod_sync::lock(&self.running);
        running.iter().find_map(|unit| match &unit.plan {
            Unit::Device(plan) if plan.name == name => Some(plan.options.iter().cloned().collect()),
            _ => None,
        })
    }

    /// Refuses opens of every device of a unit.
    pub(crate) fn pause_opens(&self, unit: &str) -> Vec<OpenPause> {
        let running = vfiod_sync::lock(&self.running);
        let unit = running.iter().find(|running| running.plan.name() == unit);
        let devices = unit.into_iter().flat_map(|unit| &unit.devices);
        devices.map(|device| device.registration.pause_opens()).collect()
    }

    /// Refuses opens of every device of a unit that is not open; the others are returned, too.
    pub(crate) fn pause_opens_of_unused(&self, unit: &str) -> (Vec<OpenPause>, Vec<DeviceRef>) {
        let running = vfiod_sync::lock(&self.running);
        let unit = running.iter().find(|running| running.plan.name() == unit);
        let (mut pauses, mut in_use) = (Vec::new(), Vec::new());
        for Running { registration, .. } in unit.into_iter().flat_map(|unit| &unit.devices) {
            match registration.pause_opens_if_unused() {
                Ok(pause) => pauses.push(pause),
                Err(_) => in_use.push(registration.device().clone()),
            }
        }
        (pauses, in_use)
    }

    /// The model of a device of the configuration, and the path where clients connect.
    pub fn about(&self, name: &str) -> About {
        vfiod_sync::lock(&self.about).get(name).cloned().unwrap_or_default()
    }

    /// Whether a device is one of the configuration.
    pub(crate) fn has(&self, name: &str) -> bool {
        vfiod_sync::lock(&self.about).contains_key(name)
    }

    /// The connections to a device of the configuration.
    pub fn clients(&self, name: &str) -> Vec<ConnectionInfo> {
        let running = vfiod_sync::lock(&self.running);
        let mut devices = running.iter().flat_map(|unit| &unit.devices);
        let device = devices.find(|device| device.registration.device().name() == name);
        device.and_then(|device| device.served.as_ref()).map_or_else(Vec::new, Served::clients)
    }

    /// What a device of the configuration has of its share of a resource.
    pub fn usage(&self, name: &str, resource: Resource) -> Option<Usage> {
        let running = vfiod_sync::lock(&self.running);
        let mut devices = running.iter().flat_map(|unit| &unit.devices);
        let device = devices.find(|device| device.registration.device().name() == name);
        device.and_then(|device| device.served.as_ref()).map(|served| served.usage(resource))
    }

    /// What was counted on all connections to a device of the configuration.
    pub fn totals(&self, name: &str) -> ConnectionTotals {
        let running = vfiod_sync::lock(&self.running);
        let mut devices = running.iter().flat_map(|unit| &unit.devices);
        let device = devices.find(|device| device.registration.device().name() == name);
        let served = device.and_then(|device| device.served.as_ref());
        served.map_or_else(ConnectionTotals::default, Served::totals)
    }

    /// The clients of a device of the configuration that have hung up.
    pub(crate) fn departures(&self, name: &str) -> Option<Departures> {
        let running = vfiod_sync::lock(&self.running);
        let mut devices = running.iter().flat_map(|unit| &unit.devices);
        let device = devices.find(|device| device.registration.device().name() == name)?;
        device.served.as_ref().map(Served::departures)
    }

    /// The clients of all devices of a unit that have hung up.
    pub(crate) fn departures_of_unit(&self, unit: &str) -> Vec<Departures> {
        let running = vfiod_sync::lock(&self.running);
        let unit = running.iter().find(|running| running.plan.name() == unit);
        let devices = unit.into_iter().flat_map(|unit| &unit.devices);
        devices.flat_map(|device| &device.served).map(Served::departures).collect()
    }

    /// How many clients there are.
    pub fn connections(&self) -> usize {
        let running = vfiod_sync::lock(&self.running);
        let devices = running.iter().flat_map(|unit| &unit.devices);
        devices.flat_map(|device| &device.served).map(Served::connections).sum()
    }

    /// Whether there can be no other client than the one that was there at the start.
    pub fn one_client_only(&self) -> bool {
        let running = vfiod_sync::lock(&self.running);
        let mut devices = running.iter().flat_map(|unit| &unit.devices).peekable();
        devices.peek().is_some() && devices.all(|device| device.connected)
    }

    /// Removes units, the last one first. Files that are still open after `grace` are revoked.
    pub(crate) fn remove(&self, names: &[&str], grace: Duration) {
        let mut running = vfiod_sync::lock(&self.running);
        let all = std::mem::take(&mut *running);
        let (gone, kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|unit| names.contains(&unit.plan.name()));
        *running = kept;
        drop(running);
        vfiod_sync::lock(&self.siblings).retain(|name, _| !names.contains(&name.as_str()));
        self.stop_units(gone, grace);
    }

    /// Forgets buses that none of `units` is on or behind.
    pub(crate) fn forget_buses(&self, units: &[Unit]) {
        fn above<'a>(bus: &'a BusPlan, wanted: &mut Vec<&'a BusPlan>) {
            wanted.push(bus);
            if let Some((bridge, ..)) = &bus.bridge {
                above(bridge, wanted);
            }
        }
        let mut wanted = Vec::new();
        for unit in units {
            if let Unit::Device(device) = unit
                && let Some(place) = &device.place
            {
                above(&place.bus, &mut wanted);
            }
        }
        vfiod_sync::lock(&self.buses).retain(|(bus, _)| wanted.contains(&bus));
    }

    /// Removes units, the last device first. The users of all devices are asked to close them, at the
    /// same time; connections that are left after `grace` are ended, and their files revoked.
    fn stop_units(&self, units: Vec<RunningUnit>, grace: Duration) {
        let mut devices: Vec<_> = units.into_iter().flat_map(|unit| unit.devices).collect();
        for device in &mut devices {
            device.source = None;
            if let Some(served) = &mut device.served {
                served.stop_listening();
            }
        }
        let leaving: Vec<_> = devices.iter().map(|device| &device.registration).collect();
        departure::ask_to_close(&leaving, grace);
        let mut closing = Vec::with_capacity(devices.len());
        for Running { served, registration, placement, .. } in devices {
            // The connection ends before the file is revoked: nothing waits for the client then.
            drop(served);
            closing.push((registration, placement));
        }
        departure::revoke_all(closing.iter().map(|(registration, _)| registration));
        for (registration, placement) in closing.into_iter().rev() {
            let name = registration.device().name().to_owned();
            registration.unregister(Some(Duration::ZERO));
            drop(placement);
            vfiod_sync::lock(&self.about).remove(&name);
            tracing::info!(device = name, "closed");
        }
    }

    /// Unregisters every device, the last one first. The users of all of them have `grace` to close
    /// them; connections that are left then are ended, and their files revoked.
    pub fn stop(&self, grace: Duration) {
        let units = std::mem::take(&mut *vfiod_sync::lock(&self.running));
        self.stop_units(units, grace);
    }
}
