//! The arguments of `replay`.

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Args;
use vfiod_config::Models;

/// Arguments of `replay`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  vfiod replay edu.capture --device edu --option dma_mask=65535
  vfiod replay edu.capture --config vfiod.toml --device card0

Exit codes:
  0  no difference
  1  differences, or the capture cannot be read")]
pub(crate) struct Replay {
    /// The models of the program.
    #[arg(skip)]
    pub models: Models,

    /// The captured session.
    pub file: PathBuf,

    /// The model of the device to play it to; with --config, the name of the device there.
    #[arg(long, value_name = "MODEL")]
    pub device: String,

    /// The configuration of the server that the session was captured with: options and place of the
    /// device. What connects it with the host (control sockets, links) is left out.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// An option of the model, as when the session was captured.
    #[arg(long = "option", value_name = "KEY=VALUE", conflicts_with = "config")]
    pub options: Vec<String>,

    /// After every message, save everything, drop it, and build it again from what was saved.
    #[arg(long)]
    pub rebuild: bool,

    /// Rebuild after every Nth message only: what a long capture is tested with in less time.
    #[arg(long, value_name = "N", requires = "rebuild", default_value_t = NonZeroU64::MIN)]
    pub rebuild_every: NonZeroU64,
}
