//! vfiod's configuration file: what it can say, reading it, and what is wrong with it; and the
//! table of device models with their options ([`Models`]).
//!
//! ```toml
//! version = 1                      # of this format; the default
//! poll = "50us"                    # poll a busy connection this long before sleeping
//! threads = 16                     # at most so many threads
//! limits = { reserved_connections = 4 }  # connections that each device has for itself
//! dma_files = "memory"             # what clients may map: memory that cannot block, or "any" file
//!
//! [log]
//! level = "info"                   # as --log
//! format = "json"                  # or "text"
//!
//! [bus.backplane]                  # a PCI bus
//! segment = 0
//! number = 1
//! bridge = "root/02.0"             # what it is behind: the bridge at an address of another bus
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
//!
//! [metrics]                        # for Prometheus, besides `/metrics` of the control API
//! listen = "127.0.0.1:9477"        # whoever reaches this address can read them
//!
//! [sandbox]                        # what the daemon may still do when it serves
//! enabled = true                   # the default; false is logged
//! paths = ["/srv/vfiod"]           # allowed besides the directories of the paths above
//! models = ["serial"]              # to be added while the daemon runs, with what they need
//! ```

mod build_error;
mod container;
mod document;
mod examined;
mod keys;
mod load_error;
mod log;
mod manage;
mod model;
mod models;
mod nearest;
mod operations;
mod options;
mod problem;
mod read;
mod reader;
mod regular_file;
mod section;
mod sriov;
mod topology;
mod types;
mod usage;
mod values;

pub use self::build_error::BuildError;
pub use self::document::Document;
pub use self::examined::{Claim, Conflict, Finding, Sharing};
pub use self::keys::{KEYS, Keys, keys_in_markdown};
pub use self::load_error::LoadError;
pub use self::log::{LogFormat, check_filter};
pub use self::model::{ConfiguredModel, ConfiguredParent, Needs, NoOptions};
pub use self::models::{ModelInfo, Models};
pub use self::nearest::{nearest, suggestion};
pub use self::operations::{
    Ending, ModelOperation, Operated, OperatedModel, OperationInfo, Planned,
};
pub use self::options::{ModelOptions, OptionInfo, Options, PathKind};
pub use self::problem::{Problem, Problems};
pub use self::regular_file::open_regular;
pub use self::types::{
    BridgeConfig, BusConfig, Config, ContainerConfig, ControlConfig, DEVICE_CONNECTIONS,
    DeviceConfig, LimitsConfig, MdevConfig, ObjectConfig, OptionSetting, POLLED_DEVICES,
    ParentConfig, SandboxConfig, SlotConfig, SocketAccess, SocketConfig, SriovConfig,
};
pub use self::usage::{UsageError, time_argument};
pub use self::values::{TIME_HELP, mode, place, time};

/// Reads the text of a configuration file. `file` is its name in messages.
///
/// # Errors
/// Every mistake in it.
pub fn read(file: &str, text: &str, models: &Models) -> Result<Config, Problems> {
    read::read(text, models).map_err(|problems| Problems::new(file, text, problems))
}
