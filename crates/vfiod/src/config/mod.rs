//! The configuration file: what it can say, reading it, and what is wrong with it.
//!
//! ```toml
//! poll = "50us"                    # poll a busy connection this long before sleeping
//! threads = 16                     # at most so many threads
//!
//! [log]
//! level = "info"                   # as --log
//! format = "json"                  # or "text"
//!
//! [bus.backplane]                  # a PCI bus
//! segment = 0
//! number = 1
//! bridge = "root/02.0"             # what it hangs off: the bridge in a place of another bus
//! reset = "slot"                   # a reset reaches one "slot", the whole "bus", or "none":
//!                                  # who is reset together is one device set
//!
//! [slot.card]                      # a slot on it
//! bus = "backplane"
//! number = 2
//!
//! [device.lines]
//! model = "gpio"
//! slot = "card"
//! function = 0
//! open = "single"                  # or "multi"
//! state = "reset"                  # or "retain"
//! socket = { path = "/run/vfiod/lines.sock", mode = "0660", owner = "qemu", group = "kvm" }
//! options = { }
//!
//! [device.nic]                     # an SR-IOV physical function
//! model = "edu"
//! slot = "card"
//! function = 1
//! virtual_functions = 8            # or { total = 8, offset = 128, stride = 1 }
//! socket = "/run/vfiod/nic.sock"
//!
//! [device.nic-0]                   # a virtual function of it, the first one
//! model = "edu"
//! physical_function = "nic"
//! function = 0
//! vf_token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"    # for clients that present none
//! socket = "/run/vfiod/nic-0.sock"
//!
//! [container.fabric]               # an fsl-mc container: it and its objects are one device set
//! id = 2
//! socket = "/run/vfiod/dprc.2.sock"
//!
//! [container.fabric.object.portal] # an object in it, a device called `portal`
//! kind = "dpmcp"                   # or "dpbp", "dpcon"
//! id = 1
//! socket = "/run/vfiod/dpmcp.1.sock"
//!
//! [container.inner]                # a container inside it, written after it: a set of its own
//! inside = "fabric"
//! id = 3
//! socket = "/run/vfiod/dprc.3.sock"
//!
//! [parent.ports]                   # offers mediated devices: see `vfiod devices`
//! model = "serial"
//! options = { }
//!
//! [mdev]                           # mediated devices
//! sockets = "/run/vfiod/mdev"      # the directory of their sockets, UUID.sock
//! access = { mode = "0660", owner = "qemu", group = "kvm" }      # of each socket
//! definitions = "/var/lib/vfiod/mdevctl.d"     # what outlasts the daemon, in mdevctl's format
//! sysfs = "/run/vfiod/root"        # a root directory for mdevctl (MDEVCTL_ENV_ROOT)
//!
//! [control]                        # the API, for `vfiod list` and programs
//! socket = { path = "/run/vfiod/control.sock", mode = "0660", group = "vfiod" }
//! users = ["alice", 1000]          # who may use it besides root and the daemon's own user
//! groups = ["vfiod"]
//! ```

mod container;
mod manage;
mod problem;
mod read;
mod section;
mod sriov;
#[cfg(test)]
mod tests;
mod topology;
mod values;

use std::fs;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use vfiod_core::{OpenPolicy, StatePolicy, Token};
use vfiod_pci::{Address, BusKind, VirtualFunctions};
use vfiod_server::SocketAccess;

pub(crate) use self::problem::{Problem, Problems};
pub(crate) use self::values::{TIME_HELP, mode, time};
use crate::logging::Format;
use crate::models::{Model, OptionValue};

/// A file that was read without a mistake.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Log filter.
    pub(crate) log: Option<String>,
    /// Log format.
    pub(crate) log_format: Option<Format>,
    /// How long a busy connection is polled.
    pub(crate) poll: Option<Duration>,
    /// Most threads of the server.
    pub(crate) threads: Option<usize>,
    /// PCI buses.
    pub(crate) buses: Vec<BusConfig>,
    /// PCI slots.
    pub(crate) slots: Vec<SlotConfig>,
    /// Devices, in the order of the file.
    pub(crate) devices: Vec<DeviceConfig>,
    /// fsl-mc containers, in the order of the file.
    pub(crate) containers: Vec<ContainerConfig>,
    /// Parents of mediated devices, in the order of the file.
    pub(crate) parents: Vec<ParentConfig>,
    /// What all mediated devices have in common.
    pub(crate) mdev: MdevConfig,
    /// The control API, if there is to be one.
    pub(crate) control: Option<ControlConfig>,
}

impl Config {
    /// Where a device is, if it has a place.
    pub(crate) fn address(&self, device: &DeviceConfig) -> Option<Address> {
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
    pub(crate) fn bus(&self, device: &DeviceConfig) -> Option<usize> {
        match device.sriov {
            SriovConfig::Virtual { physical, .. } => self.bus(self.devices.get(physical)?),
            _ => Some(self.slots.get(device.place?.0)?.bus),
        }
    }
}

/// An fsl-mc container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerConfig {
    /// Its name, which is its device's.
    pub(crate) name: String,
    /// Its number.
    pub(crate) id: u32,
    /// The container that it is inside, which comes before it.
    pub(crate) inside: Option<String>,
    /// Where clients connect.
    pub(crate) socket: SocketConfig,
    /// What is in it, in the order of the file.
    pub(crate) objects: Vec<ObjectConfig>,
}

/// An object in an fsl-mc container.
#[derive(Clone, Debug)]
pub(crate) struct ObjectConfig {
    /// Its name, which is its device's.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: vfiod_fsl_mc::Kind,
    /// Which of its kind.
    pub(crate) id: u32,
    /// Where clients connect.
    pub(crate) socket: SocketConfig,
}

/// A parent of mediated devices.
#[derive(Clone, Debug)]
pub(crate) struct ParentConfig {
    /// Its name.
    pub(crate) name: String,
    /// The model's name.
    pub(crate) model: String,
    /// The model's options.
    pub(crate) options: Vec<OptionSetting>,
    /// Bytes of the file that a mistake in the parent as a whole is shown at.
    pub(crate) span: Range<usize>,
}

/// What all mediated devices have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct MdevConfig {
    /// The directory of their sockets. Without one they can be created, but not be served.
    pub(crate) sockets: Option<PathBuf>,
    /// Mode and owner of each socket.
    pub(crate) access: SocketAccess,
    /// The directory of their definitions.
    pub(crate) definitions: Option<PathBuf>,
    /// Where the view for mdevctl is mounted.
    pub(crate) sysfs: Option<PathBuf>,
}

/// The control API.
#[derive(Clone, Debug)]
pub(crate) struct ControlConfig {
    /// Where it listens.
    pub(crate) socket: SocketConfig,
    /// Users who may use it.
    pub(crate) users: Vec<u32>,
    /// Groups whose members may use it.
    pub(crate) groups: Vec<u32>,
}

/// A PCI bus.
#[derive(Clone, Debug)]
pub(crate) struct BusConfig {
    /// Its name.
    pub(crate) name: String,
    /// PCI segment (Linux says domain).
    pub(crate) segment: u16,
    /// Number of the bus in its segment.
    pub(crate) number: u8,
    /// What a reset reaches, and so who shares a set.
    pub(crate) kind: BusKind,
    /// The bridge that it hangs off, if that has a place.
    pub(crate) bridge: Option<BridgeConfig>,
}

/// A bridge: where it is. Nobody is served there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BridgeConfig {
    /// Index in [`Config::buses`]; no bus is behind itself.
    pub(crate) bus: usize,
    /// Its device number there.
    pub(crate) device: u8,
    /// Its function number.
    pub(crate) function: u8,
}

/// A PCI slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotConfig {
    /// Index in [`Config::buses`].
    pub(crate) bus: usize,
    /// Number of the slot on its bus, 0 to 31.
    pub(crate) number: u8,
}

/// A device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceConfig {
    /// Its name.
    pub(crate) name: String,
    /// The model's name.
    pub(crate) model: String,
    /// Index in [`Config::slots`], and the function there.
    pub(crate) place: Option<(usize, u8)>,
    /// What it is to its SR-IOV siblings.
    pub(crate) sriov: SriovConfig,
    /// Presented for clients that present no VF token.
    pub(crate) token: Option<Token>,
    /// How many connections it takes.
    pub(crate) open: OpenPolicy,
    /// What happens to its state between its users.
    pub(crate) state: StatePolicy,
    /// The model's options.
    pub(crate) options: Vec<OptionSetting>,
    /// Where clients connect.
    pub(crate) socket: SocketConfig,
    /// Bytes of the file that a mistake in the device as a whole is shown at.
    pub(crate) span: Range<usize>,
}

/// What a device is to its SR-IOV siblings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SriovConfig {
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
pub(crate) struct OptionSetting {
    /// Its name.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: OptionValue,
    /// Bytes of the file that a mistake in it is shown at.
    pub(crate) span: Range<usize>,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketConfig {
    /// A path to listen at.
    Path(PathBuf, SocketAccess),
    /// A descriptor that the parent process passes.
    Descriptor(RawFd),
    /// The socket of this name that the service manager passes; `None`: the only one.
    Activated(Option<String>),
}

/// Reads a file's text.
///
/// # Errors
/// Every mistake in it.
pub(crate) fn read(file: &str, text: &str, models: &[Model]) -> Result<Config, Problems> {
    read::read(text, models).map_err(|problems| Problems::new(file, text, problems))
}

/// Reads a file, and lets `check` look for what only shows when devices are built.
///
/// # Errors
/// The file cannot be read; [`Problems`].
pub(crate) fn load(
    path: &Path,
    models: &[Model],
    check: impl FnOnce(&Config) -> Vec<Problem>,
) -> anyhow::Result<Config> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    let file = path.display().to_string();
    let config = read(&file, &text, models)?;
    let problems = check(&config);
    if problems.is_empty() { Ok(config) } else { Err(Problems::new(&file, &text, problems).into()) }
}
