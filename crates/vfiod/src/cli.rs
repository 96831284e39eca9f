//! The command line as `clap` sees it; help, completions and man pages come from here.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
use vfiod_config::LogFormat;

use crate::manage::Manage;

const EXIT_CODES: &str = "\
Exit codes:
  0  all went well
  1  something failed
  2  a mistake on the command line, in a configuration file or in what was asked of a daemon
  3  what was named is not there
  4  not now: it is in use, it exists already, or none is left
  5  no daemon answers at the control socket
  6  the daemon does not let you

Environment:
  VFIOD_CONTROL  the daemon's control socket, as --control
  VFIOD_LOG      log filter, as --log
  LISTEN_FDS     sockets passed by the service manager
  NOTIFY_SOCKET  where the service manager is told READY and STOPPING";

/// VFIO in user space: software devices for virtual machines, served over vfio-user.
#[derive(Debug, Parser)]
#[command(name = "vfiod", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log: a level (error, warn, info, debug, trace) or levels by module, such as
    /// `info,vfiod_server=trace`.
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// How a log line looks.
    #[arg(long, global = true, value_parser = log_formats(), value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

fn log_formats() -> impl TypedValueParser<Value = LogFormat> {
    let names = LogFormat::NAMES.map(|(name, _)| name);
    PossibleValuesParser::new(names).map(|name| {
        let found = LogFormat::NAMES.into_iter().find(|(known, _)| *known == name);
        found.map_or_else(LogFormat::default, |(_, format)| format)
    })
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Manage(Manage),
    /// Serve devices: all of a configuration file, or one named on the command line.
    Serve(Serve),
    /// Show it at work: serve two devices in one slot, have a guest drive them, tell what happens.
    Demo(Demo),
    /// Ask a vfio-user server what device it serves, and print it in lspci's manner.
    Probe(Probe),
    /// List the device models and their options.
    Devices {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure a server: round trips, DMA, interrupts, each beside the bare socket's figure.
    Bench(Bench),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the control API's OpenAPI document.
    Openapi,
    /// Write the man pages.
    Man {
        /// Where to.
        directory: PathBuf,
    },
    #[command(hide = true)]
    DemoClient(DemoClient),
    #[command(hide = true)]
    BenchFloor(BenchFloor),
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("served").required(true).args(["config", "device"])), after_help = "\
Examples:
  vfiod serve examples/slot.toml
  vfiod serve --check examples/slot.toml
  vfiod serve --device edu --socket-path /run/edu.sock
  systemd-socket-activate -l /run/edu.sock vfiod serve --device edu

SIGTERM and SIGINT close every device in order; the exit code is then 0.")]
pub(crate) struct Serve {
    /// The configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,

    /// Only say whether the configuration is right.
    #[arg(long)]
    pub(crate) check: bool,

    /// Serve one device of this model, without a file.
    #[arg(long, value_name = "MODEL")]
    pub(crate) device: Option<String>,

    /// Where to listen.
    #[arg(long, value_name = "PATH", requires = "device", conflicts_with_all = ["config", "fd"])]
    pub(crate) socket_path: Option<PathBuf>,

    /// A socket passed by the parent: listening, or one connection already made.
    #[arg(long, value_name = "N", requires = "device", conflicts_with = "config")]
    pub(crate) fd: Option<RawFd>,

    /// The socket's permission bits, octal.
    #[arg(long, value_name = "MODE", requires = "socket_path")]
    pub(crate) socket_mode: Option<String>,

    /// An option of the model, e.g. `inputs=3` (see `vfiod devices`).
    #[arg(
        long = "option",
        value_name = "KEY=VALUE",
        requires = "device",
        conflicts_with = "config"
    )]
    pub(crate) options: Vec<String>,

    /// Take one connection at a time, or any number.
    #[arg(long, value_name = "POLICY", value_parser = ["single", "multi"], requires = "device",
        conflicts_with = "config")]
    pub(crate) open: Option<String>,

    /// Reset at the first open, or keep the state for a client that comes back.
    #[arg(long, value_name = "POLICY", value_parser = ["reset", "retain"], requires = "device",
        conflicts_with = "config")]
    pub(crate) state: Option<String>,

    /// Make this directory a root for mdevctl (`MDEVCTL_ENV_ROOT`), its `sys` a view of the
    /// mediated devices (FUSE).
    #[arg(long, value_name = "DIR", conflicts_with = "device")]
    pub(crate) sysfs: Option<PathBuf>,

    /// How long a busy connection is polled before its thread sleeps, e.g. `50us`; `0` never.
    #[arg(long, value_name = "TIME")]
    pub(crate) poll: Option<String>,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Boot a Linux guest; fetch QEMU and a kernel into the cache of the end-to-end tests if
    /// they are not there.
    #[arg(long, conflicts_with = "without_qemu")]
    pub(crate) with_qemu: bool,

    /// Use the built-in client even where a QEMU is at hand.
    #[arg(long)]
    pub(crate) without_qemu: bool,

    /// Print JSON, one object for each thing that happened.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// The server's socket.
    pub(crate) socket: PathBuf,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,

    /// Also print the configuration space's bytes.
    #[arg(long, short = 'x')]
    pub(crate) hex: bool,

    /// Give up after this time.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(crate) timeout: String,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// The server's socket.
    #[arg(required_unless_present_any = ["serve", "idle", "instances"],
        conflicts_with_all = ["serve", "idle", "instances"])]
    pub(crate) socket: Option<PathBuf>,

    /// Instead, tell what so many served devices cost that nobody uses.
    #[arg(long, value_name = "DEVICES", conflicts_with = "serve",
        value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    pub(crate) idle: Option<u64>,

    /// Instead, tell what creating, opening and removing a mediated device costs through the
    /// control API while there are so many, and what each takes.
    #[arg(long, value_name = "N,…", num_args = 0..=1, value_delimiter = ',',
        default_missing_value = "10,1000,10000", conflicts_with_all = ["serve", "idle"],
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) instances: Option<Vec<u64>>,

    /// Serve the bench device in a process of its own, and measure that.
    #[arg(long, conflicts_with = "region")]
    pub(crate) serve: bool,

    /// Run both ends on this CPU.
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,

    /// Run the other ends, of the server with --serve and of the bare socket, on this CPU.
    #[arg(long, value_name = "N")]
    pub(crate) server_cpu: Option<usize>,

    /// Rounds for each figure.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Length of a round in milliseconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) time_ms: u64,

    /// The server's polling time with --serve, e.g. `50us`; `0` never.
    #[arg(long, value_name = "TIME", requires = "serve")]
    pub(crate) poll: Option<String>,

    /// Poll the socket instead of sleeping in the client.
    #[arg(long)]
    pub(crate) spin: bool,

    /// Numbers of DMA windows that are mapped meanwhile.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 1024, 65000],
        value_parser = clap::value_parser!(u64).range(1..=4_000_000))]
    pub(crate) windows: Vec<u64>,

    /// Access this region, which is written to as well. Without it the bench device's memory, or
    /// a foreign device's configuration space by reads alone.
    #[arg(long, value_name = "N")]
    pub(crate) region: Option<u32>,

    /// Where in the region.
    #[arg(long, value_name = "BYTES", default_value_t = 0, requires = "region")]
    pub(crate) offset: u64,

    /// Only the measures whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of the demonstration's client process.
#[derive(Debug, Args)]
pub(crate) struct DemoClient {
    /// The gpio's socket.
    pub(crate) gpio: PathBuf,
    /// The gpio's control socket: the world outside.
    pub(crate) control: PathBuf,
    /// The edu's socket.
    pub(crate) edu: PathBuf,
}

/// Arguments of the bare socket's server process.
#[derive(Debug, Args)]
pub(crate) struct BenchFloor {
    /// Where to listen.
    pub(crate) socket: PathBuf,
    /// Poll instead of sleeping.
    #[arg(long)]
    pub(crate) spin: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_wants_a_file_or_a_device() {
        for wrong in [
            &["vfiod", "serve"][..],
            &["vfiod", "serve", "a.toml", "--device", "edu"],
            &["vfiod", "serve", "--device", "edu", "--socket-path", "a", "--fd", "3"],
            &["vfiod", "serve", "a.toml", "--socket-path", "a"],
            &["vfiod", "serve", "--device", "edu", "--open", "sometimes"],
        ] {
            assert_eq!(Cli::try_parse_from(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
