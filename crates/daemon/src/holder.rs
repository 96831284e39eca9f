//! `NAME holder -- serve …`: a process that starts the server, keeps its listening sockets, and starts it again
//! when it dies.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::iter;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use clap::FromArgMatches;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vfiod_config::UsageError;
use vfiod_holder::{End, Event, Options, Request};
use vfiod_manager::PassedSockets;

use crate::cli::{Cli, Command, HolderArgs};
use crate::{held, logging, serve};

/// What is logged if nobody says it.
const DEFAULT_LOG: &str = "info";
/// How long another holder may take to take over.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(5);

/// The server has ended with this status, and has said why.
#[derive(Debug, thiserror::Error)]
#[error("the server ended with status {0}")]
pub(crate) struct ServerFailed(pub(crate) u8);

/// Runs `holder`. `command` is the whole command line of this program.
///
/// # Errors
/// [`UsageError`]; [`ServerFailed`]; those of the kernel.
pub(crate) fn run(
    args: &HolderArgs,
    command: clap::Command,
    logs: &logging::Wanted,
) -> anyhow::Result<()> {
    let name = std::env::args_os().next().unwrap_or_default();
    check(args, &name, command)?;
    // Before anything is opened that could have the number of a socket that was not passed.
    let kept = held::initial(PassedSockets::take(None)?.into_listening()?)?;
    // Of all sockets; the server would raise it for itself, too.
    serve::raise_descriptor_limit();
    logs.start(None, None, DEFAULT_LOG)?;
    let requests = requests_by_signal().context("cannot catch signals")?;
    let worker = args.server.clone();
    let (successor, successor_limit, requests) = (Vec::new(), SUCCESSOR_LIMIT, Some(requests));
    let options = Options { name, worker, successor, requests, successor_limit, kept, log };
    match vfiod_holder::run(options).context("the holder")? {
        End::Worker(0) | End::Replaced => Ok(()),
        End::Worker(status) => Err(ServerFailed(status).into()),
    }
}

/// Checks what the server is started with: what is wrong would otherwise be found by a process of its own.
fn check(args: &HolderArgs, name: &OsStr, command: clap::Command) -> anyhow::Result<()> {
    let line = iter::once(name).chain(args.server.iter().map(AsRef::as_ref));
    let matches = command.try_get_matches_from(line).unwrap_or_else(|error| error.exit());
    let wrong = |what: &str| Err(UsageError(format!("holder: {what}")).into());
    if matches.subcommand_name() != Some("serve") {
        return wrong("only `serve` can be held: write `holder -- serve …`");
    }
    match Cli::from_arg_matches(&matches)?.command {
        Command::Serve(serve) if serve.check => {
            wrong("`serve --check` ends at once: run it without `holder --`")
        }
        Command::Serve(serve) if serve.fd.is_some() => wrong(
            "`--fd` cannot be held: name a path, or pass the socket as a service manager does \
             (LISTEN_FDS)",
        ),
        _ => Ok(()),
    }
}

/// Requests to the holder: SIGTERM and SIGINT end the server and then the holder, SIGHUP reloads.
fn requests_by_signal() -> io::Result<OwnedFd> {
    let (reader, mut writer) = UnixStream::pair()?;
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let pass_on = move || {
        for signal in signals.forever() {
            let request = if signal == SIGHUP { Request::Reload } else { Request::Terminate };
            let _ = writer.write_all(&[request as u8]);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(pass_on)?;
    Ok(reader.into())
}

fn log(event: &Event) {
    match event {
        Event::Started { pid } => tracing::info!(pid, "server started"),
        Event::Ended { pid, death, again_in } => {
            let again_in_ms = u64::try_from(again_in.as_millis()).unwrap_or(u64::MAX);
            tracing::error!(pid, %death, again_in_ms, "server ended; it is started again");
        }
        Event::LastEnded { pid, death } => tracing::info!(pid, %death, "server ended"),
        event => tracing::error!("{event}"),
    }
}
