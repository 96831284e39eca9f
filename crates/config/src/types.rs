//! What a configuration file says, once it has been read.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use vfiod_core::dma::AcceptedFiles;
use vfiod_core::{OpenPolicy, StatePolicy, Token};
use vfiod_pci::{Address, BusKind, VirtualFunctions};
use vfiod_quota::PerResource;

use crate::log::LogFormat;

/// A file that was read without a mistake.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Log filter.
    pub log: Option<String>,
    /// Log format.
    pub log_format: Option<LogFormat>,
    /// How long a busy connection is polled.
    pub poll: Option<Duration>,
    /// Most threads of the server.
    pub threads: Option<usize>,
    /// What clients may use up.
    pub limits: LimitsConfig,
    /// Which files clients may map for DMA.
    pub dma_files: AcceptedFiles,
    /// PCI buses.
    pub buses: Vec<BusConfig>,
    /// PCI slots.
    pub slots: Vec<SlotConfig>,
    /// Devices, in the order of the file.
    pub devices: Vec<DeviceConfig>,
    /// fsl-mc containers, in the order of the file.
    pub containers: Vec<ContainerConfig>,
    /// Parents of mediated devices, in the order of the file.
    pub parents: Vec<ParentConfig>,
    /// What all mediated devices have in common.
    pub mdev: MdevConfig,
    /// The control API, if there is to be one.
    pub control: Option<ControlConfig>,
    /// The address where metrics are served, if there is to be one.
    pub metrics: Option<SocketAddr>,
    /// The sandbox.
    pub sandbox: SandboxConfig,
}

/// Most devices whose doorbells are polled, where nothing is written.
pub const POLLED_DEVICES: usize = 4;

/// Most connections to one device, where nothing is written.
pub const DEVICE_CONNECTIONS: usize = 256;

/// What clients may use up. `None`: what the server does by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Most connections to one device.
    pub device_connections: Option<usize>,
    /// Connections of all devices beyond those that each has for its own clients.
    pub common_connections: Option<u64>,
    /// Devices whose doorbells are polled.
    pub polled_devices: Option<usize>,
    /// How much there is of the other resources in all.
    pub total: PerResource<Option<u64>>,
    /// How much each device has for its own clients. Of the rest a user has half at most.
    pub reserved: PerResource<Option<u64>>,
}

impl Config {
    /// Where a device is, if it has a place.
    pub fn address(&self, device: &DeviceConfig) -> Option<Address> {
        if let SriovConfig::Virtual { physical, number } = device.sriov {
            let physical = self.devices.get(physical)?;
            let SriovConfig::Physical(functions) = physical.sriov else { return None };
            return functions.address(self.address(physical)?, number);
        }
        let (slot, function) = device.place?;
        let slot = self.slots.get(slot)?;
        let bus = self.buses.get(slot.bus)?;
        Some(Address { segment: bus.segment, bus: bus.number, device: slot.number, function })
    }

    /// The bus that a device is on, as an index.
    pub fn bus(&self, device: &DeviceConfig) -> Option<usize> {
        match device.sriov {
            SriovConfig::Virtual { physical, .. } => self.bus(self.devices.get(physical)?),
            _ => Some(self.slots.get(device.place?.0)?.bus),
        }
    }
}

/// An fsl-mc container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Its name, which is its device's.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// The container that it is inside, which comes before it.
    pub inside: Option<String>,
    /// Where clients connect.
    pub socket: SocketConfig,
    /// What is in it, in the order of the file.
    pub objects: Vec<ObjectConfig>,
}

/// An object in an fsl-mc container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectConfig {
    /// Its name, which is its device's.
    pub name: String,
    /// What it is.
    pub kind: vfiod_fsl_mc::Kind,
    /// Which of its kind.
    pub id: u32,
    /// Where clients connect.
    pub socket: SocketConfig,
}

/// A parent of mediated devices.
#[derive(Clone, Debug)]
pub struct ParentConfig {
    /// Its name.
    pub name: String,
    /// The model's name.
    pub model: String,
    /// The model's options.
    pub options: Vec<OptionSetting>,
    /// Bytes of the file that a mistake in the parent as a whole is shown at.
    pub span: Range<usize>,
}

/// What all mediated devices have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MdevConfig {
    /// The directory of their sockets. Without one they can be created, but not be served.
    pub sockets: Option<PathBuf>,
    /// Mode and owner of each socket.
    pub access: SocketAccess,
    /// The directory of their definitions.
    pub definitions: Option<PathBuf>,
    /// Where the view for mdevctl is mounted.
    pub sysfs: Option<PathBuf>,
}

/// The control API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// Where it listens.
    pub socket: SocketConfig,
    /// Users who may use it.
    pub users: Vec<u32>,
    /// Groups whose members may use it.
    pub groups: Vec<u32>,
}

/// The sandbox that the daemon enters before it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Whether it is entered.
    pub enabled: bool,
    /// What is allowed there beside the paths that the configuration names otherwise.
    pub paths: Vec<PathBuf>,
    /// Models whose needs are met beside those of the configured devices.
    pub models: Vec<String>,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self { enabled: true, paths: Vec::new(), models: Vec::new() }
    }
}

/// A PCI bus.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// Its name.
    pub name: String,
    /// PCI segment (Linux says domain).
    pub segment: u16,
    /// Number of the bus in its segment.
    pub number: u8,
    /// What a reset reaches, and so who shares a set.
    pub kind: BusKind,
    /// The bridge that it is behind, if that has a PCI address.
    pub bridge: Option<BridgeConfig>,
}

/// A bridge: where it is. Nobody is served there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Index in [`Config::buses`]; no bus is behind itself.
    pub bus: usize,
    /// Its device number there.
    pub device: u8,
    /// Its function number.
    pub function: u8,
}

/// A PCI slot.
#[derive(Clone, Debug)]
pub struct SlotConfig {
    /// Index in [`Config::buses`].
    pub bus: usize,
    /// Number of the slot on its bus, 0 to 31.
    pub number: u8,
}

/// A device.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Its name.
    pub name: String,
    /// The model's name.
    pub model: String,
    /// Index in [`Config::slots`], and the function there.
    pub place: Option<(usize, u8)>,
    /// What it is to its SR-IOV siblings.
    pub sriov: SriovConfig,
    /// Presented for clients that present no VF token.
    pub token: Option<Token>,
    /// How many connections it takes.
    pub open: OpenPolicy,
    /// What happens to its state between its users.
    pub state: StatePolicy,
    /// The model's options.
    pub options: Vec<OptionSetting>,
    /// Where clients connect.
    pub socket: SocketConfig,
    /// Bytes of the file that a mistake in the device as a whole is shown at.
    pub span: Range<usize>,
}

/// What a device is to its SR-IOV siblings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SriovConfig {
    /// It has none.
    #[default]
    None,
    /// The physical function, with a place in a slot.
    Physical(VirtualFunctions),
    /// A virtual function.
    Virtual {
        /// Index in [`Config::devices`].
        physical: usize,
        /// Which of its virtual functions, from 0.
        number: u16,
    },
}

/// An option of a model as it was given.
#[derive(Clone, Debug)]
pub struct OptionSetting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: serde_json::Value,
    /// Bytes of the file that a mistake in it is shown at.
    pub span: Range<usize>,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketConfig {
    /// A path to listen at.
    Path(PathBuf, SocketAccess),
    /// A descriptor that the parent process passes.
    Descriptor(RawFd),
    /// The socket of this name that the service manager passes; `None`: the only one.
    Activated(Option<String>),
}

/// Who may use a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, e.g. `0o660`; `None` leaves what the umask allows.
    pub mode: Option<u32>,
    /// User id that is to own it.
    pub uid: Option<u32>,
    /// Group id that is to own it.
    pub gid: Option<u32>,
}
