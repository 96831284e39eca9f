//! The arguments of `demo`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Boot a Linux guest; fetch QEMU and a kernel into the cache of the end-to-end tests if
    /// they are not there.
    #[arg(long, conflicts_with = "without_qemu")]
    pub with_qemu: bool,

    /// Use the built-in client even where a QEMU is at hand.
    #[arg(long)]
    pub without_qemu: bool,

    /// Print JSON, one object for each thing that happened.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the demonstration's client process.
#[derive(Debug, Args)]
pub(crate) struct DemoClient {
    /// The gpio's socket.
    pub gpio: PathBuf,
    /// The gpio's control socket: the world outside.
    pub control: PathBuf,
    /// The edu's socket.
    pub edu: PathBuf,
}
