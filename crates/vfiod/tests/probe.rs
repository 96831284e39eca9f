//! `vfiod probe`: servers that are not ours, and devices that somebody has open.

mod process;

use std::os::unix::net::UnixListener;
use std::thread;

use process::{Daemon, bad, run, vfiod};
use vfiod_client::{Error, Socket};
use vfiod_wire::payload::{DeviceInfo, IrqInfo, RegionAccess, RegionInfo};
use vfiod_wire::{Capabilities, Command, Version};
use zerocopy::{FromBytes, IntoBytes};

const CONFIG: u32 = 7;
const CONFIG_SIZE: u64 = 256;

/// A server of a PCI function that knows no more than it must, and fails at everything else.
fn serve_strictly(socket: &Socket) -> Result<(), String> {
    loop {
        let message = match socket.receive_message() {
            Ok(message) => message,
            Err(Error::Closed) => break,
            Err(error) => return Err(format!("cannot receive: {error}")),
        };
        let payload = &message.payload;
        let reply = match Command::from_number(message.header.command) {
            Some(Command::Version) => {
                Version { major: 0, minor: 0, capabilities: Capabilities::default() }.encode()
            }
            Some(Command::DeviceGetInfo) => {
                let mut info = DeviceInfo::read_from_prefix(payload).unwrap().0;
                (info.flags, info.num_regions, info.num_irqs) = (0b11, 9, 5);
                info.as_bytes().to_vec()
            }
            Some(Command::DeviceGetRegionInfo) => {
                let mut info = RegionInfo::read_from_prefix(payload).unwrap().0;
                (info.argsz, info.flags) = (RegionInfo::LEN as u32, 0b11);
                info.size = if info.index == CONFIG { CONFIG_SIZE } else { 0 };
                info.as_bytes().to_vec()
            }
            Some(Command::DeviceGetIrqInfo) => {
                IrqInfo::read_from_prefix(payload).unwrap().0.as_bytes().to_vec()
            }
            Some(Command::RegionRead) => {
                let access = RegionAccess::read_from_prefix(payload).unwrap().0;
                if access.count > 4 {
                    return Err(format!("a read of {} bytes", access.count));
                }
                let mut reply = access.as_bytes().to_vec();
                reply.extend((0..u64::from(access.count)).map(|at| (access.offset + at) as u8));
                reply
            }
            other => return Err(format!("command {other:?}")),
        };
        let mut bytes = message.header.reply(reply.len()).as_bytes().to_vec();
        bytes.extend(reply);
        socket.send(&bytes, &[]).map_err(|error| format!("cannot reply: {error}"))?;
    }
    // Its last words, which nobody has asked for.
    socket.send(&[0; 64], &[]).map_err(|error| format!("the client has gone: {error}"))
}

#[test]
fn server_that_knows_only_what_it_must_survives_a_probe() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let socket = Socket::from_fd(stream.into(), process::PATIENCE).unwrap();
        serve_strictly(&socket)
    });
    let output = run(["probe", "--timeout", "60s", "--json", path.to_str().unwrap()]);
    // What the server did not bear says more than what the probe makes of that.
    assert_eq!(server.join().unwrap(), Ok(()));
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["config"].as_str().unwrap().len() as u64, 2 * CONFIG_SIZE);
    assert_eq!(json["pci"]["device_id"], 0x0302);
    assert_eq!(json["refusals"].as_array().unwrap().len(), 0);
}

#[test]
fn probe_says_who_has_a_device_open() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, control) = (directory.path().join("s"), directory.path().join("control"));
    let config = directory.path().join("c.toml");
    let text = format!(
        "[device.e]\nmodel = \"edu\"\nsocket = {socket:?}\n[control]\nsocket = {control:?}\n"
    );
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::serving(vfiod(["serve", config.to_str().unwrap()]), &[&control]);
    let mut user = None;
    process::until("the device", || {
        user = process::connect(&socket).ok();
        user.is_some()
    });
    let probe = |control: &std::path::Path| {
        let (control, socket) = (control.to_str().unwrap(), socket.to_str().unwrap());
        bad(1, ["probe", "--timeout", "60s", "--control", control, socket])
    };
    let said = probe(&control);
    let own = std::process::id();
    let expected =
        format!("device e is open, and takes one client at a time; in use by process {own} ");
    assert!(said.contains(&expected), "{said}");
    let said = probe(&directory.path().join("absent"));
    assert!(said.contains("usually means that another client has the device open"), "{said}");
    assert!(said.contains("VERSION was refused"), "{said}");
    drop((user, daemon));
}
