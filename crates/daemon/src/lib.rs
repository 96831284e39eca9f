//! A daemon that serves device models over vfio-user, as a library.
//!
//! A program names its models and calls [`Daemon::run`]. It then has a configuration file, options
//! with help, the control API and the commands that use it, parents of mediated devices, logs,
//! signals, service manager, completions and man pages:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     vfiod_daemon::Daemon::new().models(vfiod_devices::catalogue()).run()
//! }
//! ```

mod cli;
mod confine;
mod daemon;
mod generate;
mod held;
mod holder;
pub mod logging;
mod manage;
mod models;
mod notify;
mod option_value;
pub mod output;
mod serve;
mod served;
mod signals;

pub use self::daemon::{Daemon, Program, Run, Tool};
pub use self::option_value::option_value;
pub use self::signals::{Asked, Signals};
