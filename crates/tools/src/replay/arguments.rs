//! The arguments of `replay`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  no difference
  1  differences, or the capture cannot be read")]
pub(crate) struct Replay {
    /// The captured session.
    pub file: PathBuf,

    /// The model of the device to play it to.
    #[arg(long, value_name = "MODEL")]
    pub device: String,

    /// An option of the model, as when the session was captured.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    /// After every message, save everything, drop it, and build it again from what was saved.
    #[arg(long)]
    pub rebuild: bool,
}
