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

mod manage;
mod problem;
mod read;
mod section;
#[cfg(test)]
mod tests;
mod values;

use std::fs;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_pci::BusKind;
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
    /// Parents of mediated devices, in the order of the file.
    pub(crate) parents: Vec<ParentConfig>,
    /// What all mediated devices have in common.
    pub(crate) mdev: MdevConfig,
    /// The control API, if there is to be one.
    pub(crate) control: Option<ControlConfig>,
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
    /// PCI segment (Linux says domain).
    pub(crate) segment: u16,
    /// Number of the bus in its segment.
    pub(crate) number: u8,
    /// What a reset reaches, and so who shares a set.
    pub(crate) kind: BusKind,
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
