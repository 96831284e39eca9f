//! The arguments of `bench`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

pub(crate) use super::isolation::{Attack, BenchAttack};

/// Reads `NAME=SOCKET`.
fn named_socket(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, socket)) if !name.is_empty() && !socket.is_empty() => {
            Ok((name.to_owned(), socket.into()))
        }
        _ => Err("a name, `=` and the path of a socket".to_owned()),
    }
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("own_server").args(["serve", "nvme"]))]
pub(crate) struct Bench {
    /// The server's socket.
    #[arg(required_unless_present_any = ["serve", "idle", "instances", "isolation", "nvme"],
        conflicts_with_all = ["serve", "idle", "instances", "isolation", "nvme"])]
    pub socket: Option<PathBuf>,

    /// Measure another server in the same slices: its name for the table, and its socket.
    /// With --nvme, another NVMe controller, which the driver is to drive as well.
    #[arg(long, value_name = "NAME=SOCKET", conflicts_with_all = ["idle", "instances"],
        value_parser = named_socket)]
    pub against: Vec<(String, PathBuf)>,

    /// Instead, tell how long so many clients, busy at the same time, wait for a read of 4 bytes.
    /// `{}` in a socket's path stands for the client's number, for a server that takes one client.
    #[arg(long, value_name = "CLIENTS", conflicts_with_all = ["idle", "instances"],
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub busy: Option<u32>,

    /// With --idle, tell instead what so many clients cost that are connected and say nothing.
    #[arg(long, value_name = "CLIENTS", requires = "idle",
        value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub clients: Option<u64>,

    /// Instead, tell what so many served devices cost that nobody uses; with --nvme, so many controllers that
    /// a driver has enabled.
    #[arg(long, value_name = "DEVICES", conflicts_with = "serve",
        value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    pub idle: Option<u64>,

    /// Instead, tell what creating, opening and removing a mediated device costs through the
    /// control API while there are so many, and what each takes.
    #[arg(long, value_name = "N,…", num_args = 0..=1, value_delimiter = ',',
        default_missing_value = "10,1000,10000", conflicts_with_all = ["serve", "idle"],
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub instances: Option<Vec<u64>>,

    /// Instead, attack a daemon of its own, and tell how long clients of its other devices wait,
    /// beside those of a daemon that nobody attacks. Fails if a client does not get every reply.
    #[arg(long, conflicts_with_all = ["serve", "idle", "instances", "busy", "against"])]
    pub isolation: bool,

    /// With --isolation, only this attack; several times for several.
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        requires = "isolation",
        hide_possible_values = true
    )]
    pub attack: Vec<Attack>,

    /// With --isolation, list the attacks and do none.
    #[arg(long, requires = "isolation")]
    pub list: bool,

    /// With --isolation, how long each attack is measured, half of it at each daemon; with --nvme --idle, how
    /// long the daemon's processor time is.
    #[arg(long, default_value_t = 16,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// With --isolation, clients of each daemon that are measured.
    #[arg(long, requires = "isolation", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub victims: u32,

    /// Instead, drive an NVMe controller of a daemon of its own, whose disk is nothing, by the driver in
    /// user space: reads of 4 KiB at random places, in turns with several depths and queues.
    #[arg(long, conflicts_with_all = ["serve", "instances", "isolation", "busy"])]
    pub nvme: bool,

    /// With --nvme, the disk is this image or block device instead, which is only read; `fio` takes turns
    /// with it, if it is installed.
    #[arg(long, value_name = "FILE", requires = "nvme")]
    pub file: Option<PathBuf>,

    /// With --nvme, also measure so many controllers of one daemon at the same time.
    #[arg(long, value_name = "N", requires = "nvme", conflicts_with_all = ["idle", "deallocate"],
        value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub controllers: Option<u32>,

    /// With --nvme, tell instead how long reads of one queue wait while another one deallocates the whole
    /// disk. This image is made for it, and removed; it must not be there.
    #[arg(long, value_name = "FILE", requires = "nvme", conflicts_with_all = ["file", "idle", "against"])]
    pub deallocate: Option<PathBuf>,

    /// With --deallocate, the size of the image in MiB.
    #[arg(long, value_name = "MIB", requires = "deallocate", default_value_t = 1024,
        value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub size_mib: u64,

    /// Serve the bench device in a process of its own, and measure that.
    #[arg(long, conflicts_with = "region")]
    pub serve: bool,

    /// Run both ends on this CPU.
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,

    /// Run the other ends, of the server with --serve and of the bare socket, on this CPU.
    #[arg(long, value_name = "N")]
    pub server_cpu: Option<usize>,

    /// Rounds for each figure: it is measured for so many times --time-ms, in slices of 1 to 5 ms,
    /// in turns with the bare socket.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// Length of a round in milliseconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub time_ms: u64,

    /// The server's polling time with --serve or --nvme, e.g. `50us`; `0` never.
    #[arg(long, value_name = "TIME", requires = "own_server")]
    pub poll: Option<String>,

    /// Poll the socket instead of sleeping in the client.
    #[arg(long)]
    pub spin: bool,

    /// Numbers of DMA windows that are mapped meanwhile.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 1024, 65000],
        value_parser = clap::value_parser!(u64).range(1..=4_000_000))]
    pub windows: Vec<u64>,

    /// Access this region, which is written to as well. Without it the bench device's memory, or
    /// a foreign device's configuration space by reads alone.
    #[arg(long, value_name = "N")]
    pub region: Option<u32>,

    /// Where in the region.
    #[arg(long, value_name = "BYTES", default_value_t = 0, requires = "region")]
    pub offset: u64,

    /// Only the measures, with --nvme the jobs, whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the bare socket's server process.
#[derive(Debug, Args)]
pub(crate) struct BenchFloor {
    /// Where to listen.
    pub socket: PathBuf,
    /// Poll instead of sleeping.
    #[arg(long)]
    pub spin: bool,
}
