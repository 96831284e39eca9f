//! What a daemon has: devices of a configuration, parents of mediated devices with their
//! instances and definitions, and the events of all of them.
//!
//! [`Manager`] is everything that a management interface needs; the control API and the sysfs view
//! are built on it, and it knows of neither.
//!
//! ```
//! use vfiod_config::{Models, read};
//! use vfiod_manager::Manager;
//! # use vfiod_devices::catalogue;
//!
//! # fn main() -> anyhow::Result<()> {
//! let directory = tempfile::tempdir()?;
//! let socket = directory.path().join("edu.sock");
//! let text = format!("[device.edu]\nmodel = \"edu\"\nsocket = {socket:?}\n");
//! let models: Models = catalogue();
//! let manager = Manager::start(read("vfiod.toml", &text, &models)?, &models, None)?;
//! assert_eq!(manager.devices().len(), 1);
//! assert!(socket.exists());
//! manager.stop(std::time::Duration::ZERO);
//! # Ok(())
//! # }
//! ```

mod apply;
mod build;
mod changes;
mod check;
mod counters;
mod defined;
mod definitions;
mod departure;
mod endpoints;
mod event_log;
mod events;
mod examine;
mod inherited;
mod leaving;
mod limits;
mod manager;
mod operations;
mod paths;
mod plan;
mod restarts;
mod sandbox;
mod saved;
mod sockets;
mod stack;

pub use self::build::{Built, build_device, find_mistakes};
pub use self::changes::{Changes, InUsePolicy, Origin, Removing};
pub use self::check::check;
pub use self::counters::Counters;
pub use self::defined::Change;
pub use self::definitions::{Damaged, Definition, Listing, Start};
pub use self::event_log::{EventLog, owner_name};
pub use self::events::{EventKind, Record, Watch};
pub use self::examine::{Examination, examine};
pub use self::inherited::PassedSockets;
pub use self::leaving::{Leaving, request_close};
pub use self::manager::{Manager, NewInstance, Source};
pub use self::paths::{Listable, listable_directories};
pub use self::restarts::Restarts;
pub use self::sandbox::rules as sandbox_rules;
pub use self::saved::SavedDevice;
pub use self::stack::{About, Stack};
