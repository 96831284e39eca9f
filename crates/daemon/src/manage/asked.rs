//! Which daemon a command asks, and how the answer is shown.

use std::path::PathBuf;

use clap::Args;

/// Which daemon, and how its answer looks.
#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// The daemon's control socket.
    #[arg(
        long,
        value_name = "SOCKET",
        env = "VFIOD_CONTROL",
        default_value = vfiod_control::DEFAULT_SOCKET
    )]
    pub control: PathBuf,

    /// Print JSON, as the API answers.
    #[arg(long)]
    pub json: bool,
}
