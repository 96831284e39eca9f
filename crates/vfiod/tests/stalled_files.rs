//! Clients that send files of a FUSE file system that has stopped answering: a close of such a file
//! does not return, and no signal ends it.

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use process::api::ask;
use process::{Daemon, until, vfiod};
use rustix::process::Signal;
use stalling::Stalling;
use vfiod_client::Socket;
use vfiod_wire::payload::{DmaMap, IrqSet, RegionAccess};
use vfiod_wire::{Command, Header};
use zerocopy::IntoBytes;

const DEVICES: [&str; 5] = ["interrupts", "dma", "unasked", "early", "neighbour"];
/// More than threads may be with one device.
const CONNECTIONS: usize = 40;
/// Threads of a device that may be lost.
const LOST: usize = 4;

fn serve(directory: &Path) -> Daemon {
    let mut text = format!("[control]\nsocket = {:?}\n", directory.join("control"));
    for name in DEVICES {
        let socket = directory.join(name);
        text +=
            &format!("[device.{name}]\nmodel = \"edu\"\nopen = \"multi\"\nsocket = {socket:?}\n");
    }
    let path = directory.join("vfiod.toml");
    std::fs::write(&path, text).unwrap();
    // What it logs must fit into a pipe.
    let log = "info,vfiod_server::connection=error";
    let command = vfiod(["serve", path.to_str().unwrap(), "--log", log]);
    Daemon::serving(command, &[&directory.join("neighbour"), &directory.join("control")])
}

#[test]
fn files_whose_close_does_not_return_hold_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let daemon = serve(directory.path());
    // Dropped before the daemon: its end waits for the files.
    let Some(stalling) = Stalling::mount(&at("stalling")) else { return };
    let threads = daemon.threads();

    let set = IrqSet { argsz: 20, flags: 0x24, index: 1, start: 0, count: 1 };
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let read = RegionAccess { offset: 0, region: 7, count: 4 };
    let version = b"\0\0\0\0{}\0";
    let header = Header::command(1, Command::Version, version.len(), false);
    let version = [header.as_bytes(), version].concat();

    let (mut clients, mut sockets) = (Vec::new(), Vec::new());
    // One of each kind, then all.
    for count in [1, 7, CONNECTIONS - 8] {
        for _ in 0..count {
            let file = stalling.open();
            let fds = [file.as_fd()];
            for (name, command, payload, errno) in [
                ("interrupts", Command::DeviceSetIrqs, set.as_bytes(), Some(22)),
                ("dma", Command::DmaMap, map.as_bytes(), Some(19)),
                ("unasked", Command::RegionRead, read.as_bytes(), None),
            ] {
                let mut client = process::connect(at(name)).unwrap();
                let reply = client.call(command, payload, &fds);
                assert_eq!(reply.err().and_then(|error| error.remote_errno()), errno, "{name}");
                client.device_info().unwrap();
                clients.push(client);
            }
            let socket = Socket::connect(at("early"), process::PATIENCE).unwrap();
            socket.send(&version, &fds).unwrap();
            socket.receive_message().unwrap();
            sockets.push(socket);
            let half = Socket::connect(at("early"), process::PATIENCE).unwrap();
            half.send(&version[..1], &[]).unwrap();
            sockets.push(half);
        }
        for name in DEVICES {
            process::connect(at(name)).unwrap().device_info().unwrap();
            let (status, shown) =
                ask(&at("control"), "GET", &format!("devices/{name}"), None).unwrap();
            assert_eq!(status, 200, "{shown}");
        }
    }
    until("threads are lost", || stalling.waiting() >= 4 * LOST);
    assert_eq!(stalling.waiting(), 4 * LOST, "as many as may be, and nothing was asked but FLUSH");
    // Others than the lost ones come and go; a few serve the connections.
    assert!(daemon.threads() < threads + 4 * LOST + 40, "{}", daemon.threads());

    // Beyond the limit a device takes no client, and only this one.
    let mut flood = Vec::new();
    until("the device takes no more", || {
        let file = stalling.open();
        let Ok(socket) = Socket::connect(at("early"), Duration::from_secs(1)) else { return true };
        let sent = socket.send(&version, &[file.as_fd()]);
        let served = sent.is_ok() && socket.receive_message().is_ok();
        flood.push(socket);
        !served
    });
    for name in DEVICES {
        if name != "early" {
            process::connect(at(name)).unwrap().device_info().unwrap();
        }
        let (status, shown) = ask(&at("control"), "GET", &format!("devices/{name}"), None).unwrap();
        assert_eq!(status, 200, "{shown}");
    }

    // The end is reached. What the kernel keeps of the process until the file system answers is
    // what it keeps of any process with a thread in such a close.
    daemon.signal(Signal::TERM);
    until("the sockets are gone", || DEVICES.iter().all(|name| !at(name).exists()));
    until("the main thread has ended", || daemon.has_ended());
    drop(stalling);
    let (status, log) = daemon.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("descriptors of clients cannot be closed"), "{log}");
    assert!(log.contains("finished"), "{log}");
}
