//! `attach` and `detach`: a running QEMU gets a device, and loses it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use vfiod_config::UsageError;
use vfiod_control::client::path;
use vfiod_control::view;

use super::asked::Daemon;
use super::qmp::{Failure, Monitor};
use super::{answer, connect};

/// How long QEMU's monitor has for a reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it has to connect to a device and take it over: what a device may take to be opened, and more.
const ADDING: Duration = Duration::from_secs(60);
/// How often a device that the guest is to give back is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// PCI class code of a bridge.
const BRIDGE: u64 = 0x0604;

/// A device, and what is known of it.
struct Chosen {
    /// Where it listens.
    socket: PathBuf,
    /// What it may be called in QEMU.
    id: String,
    /// What the daemon says of it; `None`: its socket was named.
    device: Option<view::Device>,
}

/// Gives a running QEMU a device.
pub(super) fn attach(
    qmp: &Path,
    device: &str,
    id: Option<String>,
    bus: Option<String>,
    daemon: &Daemon,
) -> anyhow::Result<()> {
    let chosen = choose(device, id, daemon)?;
    let mut monitor = Monitor::connect(qmp, PATIENCE)?;
    let ports = free_ports(&mut monitor)?;
    let bus = bus.or_else(|| ports.first().cloned());
    let mut arguments = json!({
        "driver": "vfio-user-pci",
        "id": chosen.id,
        "socket": { "type": "unix", "path": chosen.socket },
    });
    if let Some(bus) = &bus {
        arguments["bus"] = bus.as_str().into();
    }
    monitor.set_patience(ADDING);
    match monitor.command("device_add", &arguments) {
        Ok(_) => {}
        Err(Failure::Refused { command, reason }) => {
            let remedy = remedy(&reason, &chosen, &ports, monitor.version());
            let refused = Failure::Refused { command, reason };
            bail!(remedy.map_or_else(|| refused.to_string(), |what| format!("{refused}; {what}")));
        }
        Err(failure) => return Err(failure.into()),
    }
    let attached = json!({ "device": device, "id": chosen.id, "bus": bus });
    answer(daemon, &attached, |_| match &bus {
        Some(bus) => format!("{device}: attached as `{}` at `{bus}`\n", chosen.id),
        None => format!("{device}: attached as `{}`\n", chosen.id),
    })
}

/// Takes a device from a running QEMU.
pub(super) fn detach(
    qmp: &Path,
    device: &str,
    id: Option<String>,
    timeout: Duration,
    daemon: &Daemon,
) -> anyhow::Result<()> {
    let chosen = choose(device, id, daemon)?;
    let Some(known) = &chosen.device else {
        bail!(UsageError(format!(
            "{device} is a socket, and whether QEMU survives the end of its device depends on that: name \
             the device as the daemon does"
        )));
    };
    if known.interrupts.iter().any(|index| index.name.as_deref() == Some("MSI-X")) {
        bail!(
            "{device} has MSI-X, and QEMU (11.1, and those before) aborts when such a vfio-user device is \
             unplugged, with the whole VM; nothing was done. End the VM to take the device from it, or \
             `vfiod revoke {device}`: the guest then sees a device that does not answer"
        );
    }
    let mut monitor = Monitor::connect(qmp, PATIENCE)?;
    if !is_there(&mut monitor, &chosen.id)? {
        bail!("QEMU has no device `{}`; --id names another one", chosen.id);
    }
    monitor.command("device_del", &json!({ "id": chosen.id }))?;
    let asked = Instant::now();
    while is_there(&mut monitor, &chosen.id)? {
        if asked.elapsed() >= timeout {
            bail!(
                "the guest has not given {device} back within {} s: it was asked for it, and can do so yet",
                timeout.as_secs_f32()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let detached = json!({ "device": device, "id": chosen.id });
    answer(daemon, &detached, |_| format!("{device}: detached\n"))
}

/// The device that is meant: a socket's path has a slash, and a name of a device none.
fn choose(device: &str, id: Option<String>, daemon: &Daemon) -> anyhow::Result<Chosen> {
    let id = match id {
        Some(id) if is_id(&id) => Some(id),
        Some(id) => bail!(UsageError(format!(
            "--id {id:?}: a letter, then letters, digits, `-`, `.` and `_`"
        ))),
        None => None,
    };
    if device.contains('/') {
        let socket = std::path::absolute(device).context("no path of a socket")?;
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Chosen { socket, id: id.unwrap_or_else(|| id_of(&name)), device: None });
    }
    let known: view::Device = connect(daemon)?.get(&path(["devices", device]))?;
    let Some(socket) = &known.summary.socket else {
        bail!(UsageError(format!(
            "{device} listens at no path that QEMU can be given: its socket came from its parent"
        )));
    };
    let (socket, id) = (socket.into(), id.unwrap_or_else(|| id_of(device)));
    Ok(Chosen { socket, id, device: Some(known) })
}

/// Whether QEMU takes this for an identifier.
fn is_id(id: &str) -> bool {
    let is_rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(is_rest)
}

/// An identifier for a device of this name.
fn id_of(name: &str) -> String {
    if is_id(name) {
        return name.to_owned();
    }
    let plain = |c: char| if is_id(&format!("a{c}")) { c } else { '-' };
    format!("vfiod-{}", name.chars().map(plain).collect::<String>())
}

/// Ports behind which there is place for a device: bridges that have a name and nothing behind them.
fn free_ports(monitor: &mut Monitor) -> Result<Vec<String>, Failure> {
    fn collect(devices: &Value, ports: &mut Vec<String>) {
        for device in devices.as_array().into_iter().flatten() {
            if device.pointer("/class_info/class").and_then(Value::as_u64) != Some(BRIDGE) {
                continue;
            }
            let behind = device.pointer("/pci_bridge/devices").unwrap_or(&Value::Null);
            let id = device.get("qdev_id").and_then(Value::as_str).filter(|id| !id.is_empty());
            match (behind.as_array().is_some_and(|behind| !behind.is_empty()), id) {
                (true, _) => collect(behind, ports),
                (false, Some(id)) => ports.push(id.to_owned()),
                (false, None) => {}
            }
        }
    }
    let mut ports = Vec::new();
    let buses = monitor.command("query-pci", &json!({}))?;
    for bus in buses.as_array().into_iter().flatten() {
        collect(bus.get("devices").unwrap_or(&Value::Null), &mut ports);
    }
    Ok(ports)
}

/// Whether QEMU has a device of this identifier.
fn is_there(monitor: &mut Monitor, id: &str) -> Result<bool, Failure> {
    let all = monitor.command("qom-list", &json!({ "path": "/machine/peripheral" }))?;
    let name = |device: &Value| device.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok(all.as_array().into_iter().flatten().filter_map(name).any(|name| name == id))
}

/// What would let QEMU take a device that it refuses.
fn remedy(reason: &str, chosen: &Chosen, ports: &[String], version: &str) -> Option<String> {
    let says = |what: &str| reason.contains(what);
    let free = || match ports {
        [] => "no PCIe root port of it is free; start it with some more, such as `-device \
               pcie-root-port,id=port0,chassis=1,slot=1`"
            .to_owned(),
        ports => format!("free are: {}; --bus names one", ports.join(", ")),
    };
    if says("not a valid device model name") {
        return Some(format!(
            "this QEMU is {version}: the device vfio-user-pci came with 10.1, where it was built in"
        ));
    }
    if says("does not support hotplugging") || says("not found") || says("not available") {
        return Some(free());
    }
    if says("Duplicate") {
        return Some("--id gives it another name in QEMU".to_owned());
    }
    if says("Permission denied") {
        let socket = chosen.socket.display();
        return Some(format!(
            "QEMU's user may not use {socket}: `socket = {{ path, mode, owner, group }}` of the device \
             says who may"
        ));
    }
    match chosen.device.as_ref().and_then(|device| device.files.first()).map(|file| &file.owner) {
        Some(view::Owner::Peer { pid, .. }) => {
            Some(format!("the device is open already, in process {pid}"))
        }
        Some(view::Owner::Daemon { purpose }) => {
            Some(format!("the device is open already, for {purpose}"))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_such_that_qemu_takes_them() {
        for (name, expected) in [
            ("disk", "disk"),
            ("disk.1_a-b", "disk.1_a-b"),
            ("1st", "vfiod-1st"),
            ("", "vfiod-"),
            ("a b\x1b[2Jä", "vfiod-a-b--2J-"),
        ] {
            assert_eq!(id_of(name), expected);
            assert!(is_id(expected));
        }
    }
}
