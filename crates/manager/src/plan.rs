//! What a configuration asks to run, in units that can be compared: a device, or an fsl-mc container
//! with everything in it. A unit that differs from the one that runs is removed and added.

use serde_json::Value;
use vfiod_config::{
    BridgeConfig, BusConfig, Config, ContainerConfig, DeviceConfig, SocketConfig, SriovConfig,
};
use vfiod_core::{OpenPolicy, StatePolicy, Token};
use vfiod_pci::{Address, BusKind, VirtualFunctions};

/// What is started and stopped as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unit {
    Device(Box<DevicePlan>),
    Container(Box<ContainerPlan>),
}

/// A device, with everything that decides how it is made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DevicePlan {
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) options: Vec<(String, Value)>,
    pub(crate) open: OpenPolicy,
    pub(crate) state: StatePolicy,
    pub(crate) token: Option<Token>,
    pub(crate) socket: SocketConfig,
    pub(crate) place: Option<PlacePlan>,
    /// Its function number, if there are other functions in its slot.
    pub(crate) multifunction: Option<u8>,
    pub(crate) sriov: SriovPlan,
}

/// Where a device is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlacePlan {
    pub(crate) bus: BusPlan,
    pub(crate) address: Address,
}

/// A PCI bus and what it is behind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BusPlan {
    pub(crate) name: String,
    pub(crate) segment: u16,
    pub(crate) number: u8,
    pub(crate) kind: BusKind,
    /// The bus of the bridge, and its device and function number there.
    pub(crate) bridge: Option<(Box<BusPlan>, u8, u8)>,
}

/// What a device is to its SR-IOV siblings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SriovPlan {
    None,
    Physical(VirtualFunctions),
    /// Of this physical function, which it is made with.
    Virtual(Box<DevicePlan>),
}

/// A container, and the one that it is inside.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub(crate) config: ContainerConfig,
    pub(crate) outer: Option<Box<ContainerPlan>>,
}

/// Every unit of a configuration, in the order in which they are started.
pub(crate) fn units(config: &Config) -> Vec<Unit> {
    let devices = config.devices.iter().map(|one| Unit::Device(Box::new(device(config, one))));
    let containers =
        config.containers.iter().map(|one| Unit::Container(Box::new(container(config, one))));
    devices.chain(containers).collect()
}

/// The plan of one device of a configuration.
pub(crate) fn device(config: &Config, device: &DeviceConfig) -> DevicePlan {
    let slot_of = |device: &DeviceConfig| device.place.map(|(slot, _)| slot);
    let shares = |slot| config.devices.iter().filter(|d| slot_of(d) == Some(slot)).count() > 1;
    let multifunction = device.place.filter(|(slot, _)| shares(*slot)).map(|place| place.1);
    let place = match (config.bus(device), config.address(device)) {
        (Some(index), Some(address)) => Some(PlacePlan { bus: bus(config, index), address }),
        _ => None,
    };
    let sriov = match device.sriov {
        SriovConfig::None => SriovPlan::None,
        SriovConfig::Physical(functions) => SriovPlan::Physical(functions),
        SriovConfig::Virtual { physical, .. } => match config.devices.get(physical) {
            Some(physical) => SriovPlan::Virtual(Box::new(self::device(config, physical))),
            None => SriovPlan::None,
        },
    };
    let options = device.options.iter().map(|set| (set.name.clone(), set.value.clone())).collect();
    DevicePlan {
        name: device.name.clone(),
        model: device.model.clone(),
        options,
        open: device.open,
        state: device.state,
        token: device.token,
        socket: device.socket.clone(),
        place,
        multifunction,
        sriov,
    }
}

/// Ends: no bus is behind itself.
fn bus(config: &Config, index: usize) -> BusPlan {
    let BusConfig { name, segment, number, kind, bridge } = &config.buses[index];
    let bridge = bridge.map(|BridgeConfig { bus: above, device, function }| {
        (Box::new(bus(config, above)), device, function)
    });
    BusPlan { name: name.clone(), segment: *segment, number: *number, kind: *kind, bridge }
}

fn container(config: &Config, container: &ContainerConfig) -> ContainerPlan {
    let outer = container.inside.as_ref().and_then(|name| {
        let outer = config.containers.iter().find(|outer| outer.name == *name)?;
        Some(Box::new(self::container(config, outer)))
    });
    ContainerPlan { config: container.clone(), outer }
}

impl Unit {
    /// Its name: that of the device or the container.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Device(device) => &device.name,
            Self::Container(container) => &container.config.name,
        }
    }

    /// Its name, and those of what is in it.
    fn names(&self) -> Vec<&str> {
        let objects = match self {
            Self::Device(_) => &[][..],
            Self::Container(container) => &container.config.objects,
        };
        std::iter::once(self.name()).chain(objects.iter().map(|object| &*object.name)).collect()
    }

    /// Whether it cannot be there beside `other`, or may not: they have a name in common, both are on PCI buses, or
    /// both are containers.
    pub(crate) fn excludes(&self, other: &Self) -> bool {
        if self.names().iter().any(|name| other.names().contains(name)) {
            return true;
        }
        let has_place = |plan: &DevicePlan| plan.place.is_some() || plan.sriov != SriovPlan::None;
        match (self, other) {
            (Self::Device(one), Self::Device(other)) => has_place(one) && has_place(other),
            (Self::Container(_), Self::Container(_)) => true,
            _ => false,
        }
    }

    /// The sockets of its devices.
    pub(crate) fn sockets(&self) -> Vec<&SocketConfig> {
        match self {
            Self::Device(device) => vec![&device.socket],
            Self::Container(container) => {
                let objects = container.config.objects.iter().map(|object| &object.socket);
                std::iter::once(&container.config.socket).chain(objects).collect()
            }
        }
    }

    /// Whether this unit, which runs, does what `wanted` asks for. A function that was one of
    /// several stays as it is when it becomes the only one: its header may say so.
    pub(crate) fn serves_as(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Device(runs), Self::Device(wanted)) if wanted.multifunction.is_none() => {
                let alone = DevicePlan { multifunction: None, ..(**runs).clone() };
                alone == **wanted
            }
            (runs, wanted) => runs == wanted,
        }
    }
}
