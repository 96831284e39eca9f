//! Who has a device open that refuses a probe.

use std::path::Path;
use std::time::Duration;

use vfiod_client::Error;
use vfiod_control::client::{Client, path};
use vfiod_control::view::{self, Owner};
use vfiod_core::Errno;
use vfiod_wire::Command;

use super::arguments::Probe;

/// Adds to the refusal of a second open what it means; of every other error nothing.
pub(super) fn explained(error: anyhow::Error, args: &Probe, patience: Duration) -> anyhow::Error {
    let refused = Errno::INVAL.raw_os_error().cast_unsigned();
    match error.downcast_ref() {
        Some(Error::Remote { command: Command::Version, errno }) if *errno == refused => {}
        _ => return error,
    }
    let what = match users(args, patience) {
        Some((device, users)) if !users.is_empty() => format!(
            "device {device} is open, and takes one client at a time; in use by {}",
            users.join(", ")
        ),
        _ => format!(
            "EINVAL in reply to VERSION usually means that another client has the device open, which \
             takes one at a time; no daemon at {} (--control) knows who",
            args.control.display()
        ),
    };
    error.context(what)
}

/// The device of the daemon that is served at the socket, and who has it open.
fn users(args: &Probe, patience: Duration) -> Option<(String, Vec<String>)> {
    let mut daemon = Client::connect(&args.control).ok()?.with_patience(patience);
    let devices: Vec<view::DeviceSummary> = daemon.get(&path(["devices"])).ok()?;
    let probed = args.socket.canonicalize().ok()?;
    let is_probed = |socket: &String| Path::new(socket).canonicalize().is_ok_and(|at| at == probed);
    let device =
        devices.into_iter().find(|device| device.socket.as_ref().is_some_and(is_probed))?.name;
    let found: view::Device = daemon.get(&path(["devices", &device])).ok()?;
    let user = |file: &view::File| match &file.owner {
        Owner::Peer { pid, uid, gid } => format!("process {pid} (uid {uid}, gid {gid})"),
        Owner::Daemon { purpose } => format!("the daemon itself ({purpose})"),
    };
    Some((device, found.files.iter().map(user).collect()))
}
