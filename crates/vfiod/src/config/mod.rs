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
//! ```

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
