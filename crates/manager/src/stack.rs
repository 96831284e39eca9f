//! The devices of a configuration, registered and served: started in the order of the file,
//! stopped in the reverse order.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use vfiod_core::event::Observer;
use vfiod_core::{Device, DeviceSpec, Registration, Registry};
use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice, ObjectId};
use vfiod_pci::{Bus, Placement, Role};
use vfiod_server::{ConnectionInfo, Listener, Served, Server, ServerOptions};

use crate::build;
use crate::inherited::{self, Inherited};
use vfiod_config::{
    BusConfig, Config, ContainerConfig, DeviceConfig, Models, SocketConfig, UsageError,
};

/// Devices at work.
pub struct Stack {
    running: Mutex<Vec<Running>>,
    /// Where the control API listens, until that takes it.
    control: Mutex<Option<Listener>>,
    registry: Registry,
    // After the devices: the threads that let go of their files.
    server: Server,
}

/// What the manager knows of a device beyond what the core knows.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The model that it was made of; for a mediated device, parent and type.
    pub model: String,
    /// Where clients connect, if that is a path.
    pub socket: Option<String>,
}

/// One device at work. Its place on the bus is free again when the rest is gone.
struct Running {
    model: String,
    path: Option<String>,
    served: Served,
    connected: bool,
    registration: Registration,
    placement: Option<Placement>,
}

/// Where a device's clients come from.
enum Source {
    Listener(Listener),
    Connected(OwnedFd),
}

impl Stack {
    /// Registers and serves every device.
    ///
    /// # Errors
    /// What a model, a socket or the kernel refuses; nothing is left behind then.
    pub fn start(
        config: &Config,
        models: &Models,
        observer: Option<Arc<dyn Observer>>,
    ) -> anyhow::Result<Self> {
        let mut options = ServerOptions::default();
        options.poll = config.poll.unwrap_or(options.poll);
        options.max_threads = config.threads.unwrap_or(options.max_threads);
        let server = Server::new(options)?;
        let registry = observer.map_or_else(Registry::new, Registry::with_observer);
        let buses = buses(config)?;
        let roles = build::roles(config)?;
        let mut activated = Activated::take()?;
        let (running, control) = Default::default();
        let stack = Self { running, control, registry, server };
        for (device, role) in config.devices.iter().zip(roles) {
            let started = stack
                .add(models, config, device, role, &buses, &mut activated)
                .with_context(|| format!("device {}", device.name));
            match started {
                Ok(running) => stack.running().push(running),
                Err(error) => {
                    stack.stop(Duration::ZERO);
                    return Err(error);
                }
            }
        }
        // By their names; those that have others inside come first.
        let mut containers = HashMap::new();
        for container in &config.containers {
            let started = stack
                .add_container(container, &containers, &mut activated)
                .with_context(|| format!("container {}", container.name));
            match started {
                Ok(started) => containers.insert(container.name.as_str(), started),
                Err(error) => {
                    stack.stop(Duration::ZERO);
                    return Err(error);
                }
            };
        }
        if let Some(control) = &config.control {
            let listener = match source(&control.socket, &mut activated) {
                Ok(Source::Listener(listener)) => Ok(listener),
                Ok(Source::Connected(_)) => Err(anyhow!("its socket is not listening")),
                Err(error) => Err(error),
            };
            match listener {
                Ok(listener) => *stack.control() = Some(listener),
                Err(error) => {
                    stack.stop(Duration::ZERO);
                    return Err(error.context("the control API"));
                }
            }
        }
        activated.warn_about_the_rest();
        Ok(stack)
    }

    fn add(
        &self,
        models: &Models,
        config: &Config,
        device: &DeviceConfig,
        role: Role,
        buses: &[Arc<Bus>],
        activated: &mut Activated,
    ) -> anyhow::Result<Running> {
        let source = source(&device.socket, activated)?;
        let placement = match (config.bus(device), config.address(device)) {
            (Some(bus), Some(at)) => {
                let placement = buses[bus].place(at.device, at.function, &device.name)?;
                let is_virtual = matches!(role, Role::Virtual(_));
                Some(if is_virtual { placement.virtual_function() } else { placement })
            }
            _ => None,
        };
        let spec = DeviceSpec {
            name: device.name.clone(),
            set: placement.as_ref().and_then(Placement::set),
            open: device.open,
            state: device.state,
            location: placement.as_ref().map(|placement| placement.address().to_string()),
            token: device.token,
        };
        self.serve(
            source,
            spec,
            build::build(models, config, device, role)?,
            &device.model,
            placement,
        )
    }

    /// Registers and serves a container and what is in it.
    fn add_container(
        &self,
        config: &ContainerConfig,
        others: &HashMap<&str, Arc<Container>>,
        activated: &mut Activated,
    ) -> anyhow::Result<Arc<Container>> {
        let container = Container::new(config.id);
        let outer = config.inside.as_deref().and_then(|name| others.get(name));
        let add = |name: &str, socket, id: ObjectId, device: Box<dyn Device>, activated: &mut _| {
            let within = outer.filter(|_| id.kind == Kind::Dprc).unwrap_or(&container).id();
            let spec = DeviceSpec {
                name: name.to_owned(),
                set: Some(container.set()),
                location: Some(format!("dprc.{within}/{id}")),
                ..DeviceSpec::default()
            };
            let source = source(socket, activated)?;
            let running = self.serve(source, spec, device, id.kind.name(), None)?;
            self.running().push(running);
            anyhow::Ok(())
        };
        let id = ObjectId { kind: Kind::Dprc, id: config.id };
        let device = Box::new(match outer {
            Some(outer) => ContainerDevice::inside(&container, outer)?,
            None => ContainerDevice::new(&container),
        });
        add(&config.name, &config.socket, id, device, activated)?;
        for object in &config.objects {
            let plugged = container.plug(object.kind, object.id)?;
            let (id, device) = (plugged.id(), Box::new(ObjectDevice::new(plugged)?));
            add(&object.name, &object.socket, id, device, activated)
                .with_context(|| format!("object {}", object.name))?;
        }
        Ok(container)
    }

    fn serve(
        &self,
        source: Source,
        spec: DeviceSpec,
        device: Box<dyn Device>,
        model: &str,
        placement: Option<Placement>,
    ) -> anyhow::Result<Running> {
        let registration = self.registry.register(spec, device)?;
        let target = registration.device().clone();
        let (name, address) = (target.name().to_owned(), target.location().map(str::to_owned));
        let mut path = None;
        let (served, connected) = match source {
            Source::Listener(listener) => {
                path = listener.path().map(|path| path.display().to_string());
                let served = self.server.serve(listener, target)?;
                tracing::info!(device = name, model, address, path, "served");
                (served, false)
            }
            Source::Connected(socket) => (self.server.serve_connected(socket, target)?, true),
        };
        let model = model.to_owned();
        Ok(Running { model, path, served, connected, registration, placement })
    }

    fn control(&self) -> MutexGuard<'_, Option<Listener>> {
        vfiod_sync::lock(&self.control)
    }

    /// Where the control API is to listen, if one is configured; once.
    pub fn take_control(&self) -> Option<Listener> {
        self.control().take()
    }

    /// Where every device is registered.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What serves every device.
    pub fn server(&self) -> &Server {
        &self.server
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        vfiod_sync::lock(&self.running)
    }

    /// The model of a device of the configuration, and the path where clients connect.
    pub fn about(&self, name: &str) -> About {
        let about = |running: &Running| About {
            model: running.model.clone(),
            socket: running.path.clone(),
        };
        self.running().iter().find(|running| running.is(name)).map(about).unwrap_or_default()
    }

    /// The connections to a device of the configuration.
    pub fn clients(&self, name: &str) -> Vec<ConnectionInfo> {
        let running = self.running();
        let device = running.iter().find(|running| running.is(name));
        device.map_or_else(Vec::new, |running| running.served.clients())
    }

    /// How many clients there are.
    pub fn connections(&self) -> usize {
        self.running().iter().map(|running| running.served.connections()).sum()
    }

    /// Whether there can be no other client than the one that was there at the start.
    pub fn one_client_only(&self) -> bool {
        let running = self.running();
        !running.is_empty() && running.iter().all(|running| running.connected)
    }

    /// Ends every connection and unregisters every device, last first. Clients' files that are
    /// still there after `grace` are revoked.
    pub fn stop(&self, grace: Duration) {
        loop {
            // Not in the loop's head: the lock would be held in its body.
            let last = self.running().pop();
            let Some(Running { served, registration, placement, .. }) = last else { break };
            let name = registration.device().name().to_owned();
            drop(served);
            registration.unregister(Some(grace));
            drop(placement);
            tracing::info!(device = name, "closed");
        }
    }
}

impl Running {
    fn is(&self, name: &str) -> bool {
        self.registration.device().name() == name
    }
}

/// The buses, those above before those behind their bridges.
fn buses(config: &Config) -> vfiod_core::Result<Vec<Arc<Bus>>> {
    fn bus(
        config: &Config,
        index: usize,
        made: &mut [Option<Arc<Bus>>],
    ) -> vfiod_core::Result<Arc<Bus>> {
        if let Some(bus) = &made[index] {
            return Ok(bus.clone());
        }
        let BusConfig { name, segment, number, kind, bridge } = &config.buses[index];
        let new = match bridge {
            None => Bus::new(*segment, *number, *kind),
            // Ends: no bus is behind itself.
            Some(bridge) => {
                let above = bus(config, bridge.bus, made)?;
                let name = format!("the bridge of bus {name}");
                Bus::behind(above.place(bridge.device, bridge.function, &name)?, *number, *kind)
            }
        };
        made[index] = Some(new.clone());
        Ok(new)
    }
    let mut made = vec![None; config.buses.len()];
    (0..config.buses.len()).map(|index| bus(config, index, &mut made)).collect()
}

fn source(socket: &SocketConfig, activated: &mut Activated) -> anyhow::Result<Source> {
    let inherited = match socket {
        SocketConfig::Path(path, access) => {
            return Ok(Source::Listener(Listener::bind(path, access_of(*access))?));
        }
        SocketConfig::Descriptor(number) => {
            inherited::socket(*number).map_err(|error| UsageError(format!("--fd: {error:#}")))?
        }
        SocketConfig::Activated(Some(name)) => activated.named(name)?,
        SocketConfig::Activated(None) => activated.only()?,
    };
    Ok(match inherited {
        Inherited::Listening(fd) => Source::Listener(Listener::from_fd(fd)?),
        Inherited::Connected(fd) => Source::Connected(fd),
    })
}

/// A socket's access as the server knows it.
pub(crate) fn access_of(access: vfiod_config::SocketAccess) -> vfiod_server::SocketAccess {
    let vfiod_config::SocketAccess { mode, uid, gid } = access;
    vfiod_server::SocketAccess { mode, uid, gid }
}

/// The sockets that the service manager passed, by name.
struct Activated(BTreeMap<String, Vec<Inherited>>);

impl Activated {
    fn take() -> anyhow::Result<Self> {
        let mut sockets: BTreeMap<String, Vec<Inherited>> = BTreeMap::new();
        for (name, socket) in inherited::activated()? {
            sockets.entry(name).or_default().push(socket);
        }
        Ok(Self(sockets))
    }

    fn named(&mut self, name: &str) -> anyhow::Result<Inherited> {
        let list = self.0.get_mut(name).filter(|list| !list.is_empty());
        if let Some(list) = list {
            return Ok(list.remove(0));
        }
        let names: Vec<_> = self.0.keys().map(String::as_str).collect();
        bail!(
            "the service manager passed no socket named `{name}` (FileDescriptorName= in the \
             .socket unit); passed: {}",
            if names.is_empty() { "none".into() } else { names.join(", ") }
        )
    }

    fn only(&mut self) -> anyhow::Result<Inherited> {
        let mut all: Vec<_> = std::mem::take(&mut self.0).into_values().flatten().collect();
        match (all.pop(), all.len()) {
            (Some(socket), 0) => Ok(socket),
            (Some(_), more) => bail!("{} sockets were passed for one device", more + 1),
            (None, _) => Err(UsageError(
                "no socket: give --socket-path or --fd, or let a service manager pass one \
                 (LISTEN_FDS)"
                    .into(),
            )
            .into()),
        }
    }

    fn warn_about_the_rest(&self) {
        for (name, list) in self.0.iter().filter(|(_, list)| !list.is_empty()) {
            tracing::warn!(name, count = list.len(), "sockets passed for no device");
        }
    }
}
