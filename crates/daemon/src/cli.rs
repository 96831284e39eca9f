//! The command line as `clap` sees it; help, completions and man pages come from here.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use vfiod_config::LogFormat;

use crate::manage::Manage;

const EXIT_CODES: &str = "\
Exit codes:
  0  all went well
  1  something failed
  2  a mistake on the command line, in a configuration file or in what was asked of a daemon
  3  what was named is not there
  4  conflict: in use, already exists, or no capacity or connection left
  5  no daemon answers at the control socket
  6  the daemon does not let you

Environment:
  VFIOD_CONTROL  the daemon's control socket, as --control
  VFIOD_LOG      log filter, as --log
  LISTEN_FDS     sockets passed by the service manager
  NOTIFY_SOCKET  where the service manager is told READY and STOPPING";

const HOLDER: &str = "\
Example:
  vfiod holder -- serve /etc/vfiod.toml

If the server is killed, crashes or exits, it is started again at once, after the third time in a row with
a delay of up to five seconds. Its sockets are there meanwhile, and clients that connect wait. Connections
that were open are lost. It is the same program that starts again, also if its file was replaced.
SIGTERM and SIGINT end the server in order, and then the holder. SIGHUP reads the configuration again.";

/// Software devices for virtual machines, served over vfio-user.
#[derive(Debug, Parser)]
#[command(name = "vfiod", after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log: a level (error, warn, info, debug, trace) or levels by module, such as
    /// `info,vfiod_server=trace`.
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,

    /// How a log line looks.
    #[arg(long, global = true, value_parser = log_formats(), value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    #[command(subcommand)]
    pub command: Command,
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
    /// Start the server, keep its sockets, and start it again when it dies.
    #[command(after_help = HOLDER)]
    Holder(HolderArgs),
    /// List the device models and their options.
    Devices {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Wait beside a daemon, and unmount its sysfs view at its end.
    #[command(hide = true)]
    SandboxHelper(HelperArgs),
    /// Print the control API's OpenAPI document.
    Openapi,
    /// Write the man pages: of the program, its commands, and the configuration file.
    Man {
        /// Where to; made if it is missing.
        directory: PathBuf,
    },
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("served").required(true).args(["config", "device"])))]
pub(crate) struct Serve {
    /// The configuration file.
    #[arg(value_name = "CONFIG.toml")]
    pub config: Option<PathBuf>,

    /// Check the configuration and exit without serving.
    #[arg(long)]
    pub check: bool,

    /// Serve one device of this model, without a file.
    #[arg(long, value_name = "MODEL")]
    pub device: Option<String>,

    /// Where to listen.
    #[arg(long, value_name = "PATH", requires = "device", conflicts_with_all = ["config", "fd"])]
    pub socket_path: Option<PathBuf>,

    /// A socket passed by the parent: listening, or one connection already made.
    #[arg(long, value_name = "N", requires = "device", conflicts_with = "config")]
    pub fd: Option<RawFd>,

    /// The socket's permission bits, octal.
    #[arg(long, value_name = "MODE", requires = "socket_path")]
    pub socket_mode: Option<String>,

    /// An option of the model, e.g. `inputs=3` (see the command `devices`).
    #[arg(
        long = "option",
        value_name = "KEY=VALUE",
        requires = "device",
        conflicts_with = "config"
    )]
    pub options: Vec<String>,

    /// Take one connection at a time, or any number.
    #[arg(long, value_name = "POLICY", value_parser = ["single", "multi"], requires = "device",
        conflicts_with = "config")]
    pub open: Option<String>,

    /// Reset at the first open, or keep the state for a client of the same user that comes back.
    #[arg(long, value_name = "POLICY", value_parser = ["reset", "retain"], requires = "device",
        conflicts_with = "config")]
    pub state: Option<String>,

    /// Make this directory a root for mdevctl (`MDEVCTL_ENV_ROOT`), its `sys` a view of the
    /// mediated devices (FUSE).
    #[arg(long, value_name = "DIR", conflicts_with = "device")]
    pub sysfs: Option<PathBuf>,

    /// How long a busy connection is polled before its thread sleeps, e.g. `50us`; `0` never.
    #[arg(long, value_name = "TIME")]
    pub poll: Option<String>,

    /// Serve outside the sandbox, to look into a problem. The daemon can then do whatever its user may.
    #[arg(long)]
    pub no_sandbox: bool,
}

/// Arguments of `holder`.
#[derive(Debug, Args)]
pub(crate) struct HolderArgs {
    /// What to start: `serve` with its arguments.
    #[arg(last = true, required = true, value_name = "serve …")]
    pub server: Vec<OsString>,
}

/// Arguments of `sandbox-helper`.
#[derive(Debug, Args)]
pub(crate) struct HelperArgs {
    /// Where the view is mounted.
    pub directory: PathBuf,

    /// The device number of its file system.
    pub device: String,
}

/// The command line of a daemon of this name, without the commands that a program adds.
pub(crate) fn command(name: &str, version: &str) -> clap::Command {
    let examples = format!(
        "\
Examples:
  {name} serve /etc/{name}.toml
  {name} serve --check /etc/{name}.toml
  {name} serve --device MODEL --socket-path /run/MODEL.sock
  systemd-socket-activate -l /run/MODEL.sock {name} serve --device MODEL

SIGTERM and SIGINT close every device in order; the exit code is then 0."
    );
    Cli::command()
        .name(name.to_owned())
        .version(version.to_owned())
        .mut_subcommand("serve", |serve| serve.after_help(examples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        command("vfiod", "0").debug_assert();
    }

    #[test]
    fn holder_wants_a_command_behind_dashes() {
        for wrong in [&["vfiod", "holder"][..], &["vfiod", "holder", "serve", "a.toml"]] {
            assert_eq!(Cli::try_parse_from(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        Cli::try_parse_from(["vfiod", "holder", "--", "serve", "--device", "edu"]).unwrap();
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
