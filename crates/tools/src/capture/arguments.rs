//! The arguments of `capture`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `capture`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vfiod capture /run/edu.sock edu.capture --listen /run/captured.sock &
  qemu-system-x86_64 … -device vfio-user-pci,socket='{\"type\": \"unix\", \"path\": \"/run/captured.sock\"}'
  vfiod replay edu.capture --device edu

The client's memory must be a memfd, or a file of a tmpfs or hugetlbfs.

The file contains guest data: what the guest wrote to the device, and the memory that the device
read and wrote. Look at it before you give it to others.")]
pub(crate) struct Capture {
    /// The server's socket.
    pub socket: PathBuf,

    /// The file to be written. It must not exist.
    pub file: PathBuf,

    /// Where the client connects; the server's socket with `.capture` behind it if absent.
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,
}
