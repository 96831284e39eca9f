//! The arguments of `probe`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// The server's socket.
    pub socket: PathBuf,

    /// The control socket of its daemon, which is asked who has a device open that refuses the probe.
    #[arg(
        long,
        value_name = "SOCKET",
        env = "VFIOD_CONTROL",
        default_value = vfiod_control::DEFAULT_SOCKET
    )]
    pub control: PathBuf,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// Also print the configuration space's bytes.
    #[arg(long, short = 'x')]
    pub hex: bool,

    /// Give up after this time.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub timeout: String,
}
