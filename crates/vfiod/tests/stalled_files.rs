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
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;
use stalling::Stalling;
use vfiod_client::{Client, GuestMemory, Socket};
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

/// It stands between a client and a server, and both can have such files.
#[test]
fn capture_goes_on_whatever_files_and_eventfds_its_client_sends() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let daemon = serve(directory.path());
    let (socket, file, listen) = (at("dma"), at("file"), at("listen"));
    let [socket, file] = [&socket, &file].map(|path| path.to_str().unwrap());
    let args = ["capture", socket, file, "--listen", listen.to_str().unwrap()];
    let capture = Daemon::start(vfiod(args));
    // Dropped before the capture: its end waits for the files.
    let Some(stalling) = Stalling::mount(&at("stalling")) else { return };
    until("the capture", || listen.exists());
    let mut client = process::connect(&listen).unwrap();

    let set = IrqSet { argsz: 20, flags: 0x24, index: 1, start: 0, count: 1 };
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let read = RegionAccess { offset: 0, region: 7, count: 4 };
    for _ in 0..3 {
        for (command, payload, errno) in [
            (Command::DeviceSetIrqs, set.as_bytes(), Some(22)),
            (Command::DmaMap, map.as_bytes(), Some(19)),
            (Command::RegionRead, read.as_bytes(), None),
        ] {
            let file = stalling.open();
            let reply = client.call(command, payload, &[file.as_fd()]);
            // As the server would say.
            assert_eq!(reply.err().and_then(|error| error.remote_errno()), errno, "{command:?}");
        }
    }
    until("a close waits", || stalling.waiting() > 0);
    assert_eq!(stalling.waiting(), 1, "nothing was asked but FLUSH, by one thread");

    // An interrupt whose eventfd cannot be signalled without waiting.
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    client.call(Command::DeviceSetIrqs, set.as_bytes(), &[event.as_fd()]).unwrap();
    client.region_write(7, 4, &[6]).unwrap();
    client.region_write(0, 0x60, &1_u32.to_le_bytes()).unwrap();
    client.device_info().unwrap();

    // Memory still is what the device reaches.
    let memory = GuestMemory::new(0x1000).unwrap();
    client.dma_map(0x10000, 0x1000, Some((memory.fd(), 0))).unwrap();
    memory.write(8, b"by capture").unwrap();
    for (register, value) in [(0x80, 0x10008_u64), (0x88, 0x40000), (0x90, 10), (0x98, 1)] {
        client.region_write(0, register, &value.to_le_bytes()).unwrap();
    }
    let done = |client: &mut Client| {
        let mut command = [0; 8];
        client.region_read(0, 0x98, &mut command).unwrap();
        command[0] & 1 == 0
    };
    until("the device has read", || done(&mut client));
    for (register, value) in [(0x80, 0x40000_u64), (0x88, 0x10100), (0x90, 10), (0x98, 3)] {
        client.region_write(0, register, &value.to_le_bytes()).unwrap();
    }
    until("the device has written", || done(&mut client));
    let mut bytes = [0; 10];
    memory.read(0x100, &mut bytes).unwrap();
    assert_eq!(&bytes, b"by capture");

    // What is left in its socket is not closed by the main thread either.
    let file = stalling.open();
    client.socket().send(&[0], &[file.as_fd()]).unwrap();
    drop((client, file));
    until("the main thread of the capture has ended", || capture.has_ended());
    drop(stalling);
    let (status, said) = capture.finish();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("an eventfd cannot be signalled"), "{said}");
    let (status, said) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
}
