//! A capture whose client sends files of a FUSE file system that has stopped answering. Not beside other tests
//! with such files: a process that is started closes those of this one, too, and waits for that.

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::os::fd::AsFd;

use process::{Daemon, until, vfiod};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;
use stalling::Stalling;
use vfiod_client::{Client, GuestMemory};
use vfiod_wire::Command;
use vfiod_wire::payload::{DmaMap, IrqSet, RegionAccess};
use zerocopy::IntoBytes;

/// It stands between a client and a server, and both can have such files.
#[test]
fn capture_goes_on_whatever_files_and_eventfds_its_client_sends() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (served, file, listen) = (at("served"), at("file"), at("listen"));
    let socket = served.to_str().unwrap();
    let arguments = ["serve", "--device", "edu", "--socket-path", socket, "--log", "warn"];
    let daemon = Daemon::serving(vfiod(arguments), &[&served]);
    let args = ["capture", socket, file.to_str().unwrap(), "--listen", listen.to_str().unwrap()];
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
