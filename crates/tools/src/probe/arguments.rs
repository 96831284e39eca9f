//! The arguments of `probe`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// The server's socket.
    pub socket: PathBuf,

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
