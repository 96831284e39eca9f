//! `vfiod probe`: asks any vfio-user server what it serves, and prints it in lspci's manner.
//!
//! A probe is a client: it opens the device (and so may reset it, by the device's policy), reads
//! its description and configuration space, and changes nothing.

pub(crate) mod arguments;
mod bytes;
mod capabilities;
mod collect;
mod extended;
mod in_use;
mod names;
mod print;
mod report;
mod space;

use std::sync::mpsc;
use std::thread;

use anyhow::{Context, anyhow};

use self::arguments::Probe;
use vfiod_config::time_argument;
use vfiod_daemon::output;

/// Runs `vfiod probe`.
pub(crate) fn run(args: &Probe) -> anyhow::Result<()> {
    let timeout = time_argument("--timeout", &args.timeout)?;
    let (sender, receiver) = mpsc::channel();
    let socket = args.socket.clone();
    // On a thread of its own, so that no server can hold us up for longer: neither one that
    // never accepts nor one that answers byte by byte.
    thread::Builder::new().name("probe".into()).spawn(move || {
        let _ = sender.send(collect::collect(&socket, timeout));
    })?;
    let report = receiver
        .recv_timeout(timeout)
        .map_err(|_| anyhow!("the server did not reply within {}", args.timeout))
        .and_then(|result| result)
        .map_err(|error| in_use::explained(error, args, timeout))
        .with_context(|| format!("cannot probe {}", args.socket.display()))?;
    if args.json {
        output::print_json(&report)
    } else {
        output::print(&print::text(&report, args.hex))
    }
}
