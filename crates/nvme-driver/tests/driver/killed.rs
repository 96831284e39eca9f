//! A client that is killed while the disk has its memory.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vfiod_disk::test::{Kind, TestDisk};
use vfiod_nvme::{Nvme, NvmeOptions};
use vfiod_nvme_driver::{Controller, Data, Options, Waiting, opcode};

use crate::rig::{Rig, content, until};

const SOCKET: &str = "VFIOD_TEST_NVME_SOCKET";
/// Bytes that the client's disk is asked for.
const LEN: usize = 4096;

/// Not a test by itself: the client that others kill. It reads and writes, and never ends.
#[test]
fn client_that_is_killed() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let mut controller = Controller::connect(Path::new(&socket), &Options::default()).unwrap();
    let disk = controller.namespace(1).unwrap();
    let mut queue = controller.create_queue(16, Waiting::Interrupts).unwrap();
    let buffers = [(); 2].map(|()| controller.memory().allocate(LEN).unwrap());
    for (block, opcode, buffer) in
        [(0, opcode::READ, &buffers[0]), (64, opcode::WRITE, &buffers[1])]
    {
        buffer.write(0, &[0x11; LEN]);
        let data = Data::of(buffer);
        let command = disk.transfer(opcode, block, &data).unwrap();
        queue.submit(command, Some(data)).unwrap();
    }
    queue.ring().unwrap();
    println!("client: begun");
    loop {
        std::thread::park();
    }
}

/// A client whose commands the disk has.
fn start(socket: &Path) -> Child {
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::client_that_is_killed", "--nocapture"])
        .env(SOCKET, socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(client.stdout.as_mut().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("client: begun")));
    client
}

/// The memory of a process, by a descriptor that outlives it.
fn memory_of(client: &Child) -> File {
    let directory = format!("/proc/{}/fd", client.id());
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if name.to_string_lossy().contains("memfd:nvme-driver") {
            return File::options().read(true).write(true).open(entry.path()).unwrap();
        }
    }
    panic!("the client has no memory");
}

/// The kernel may still write the memory of a client that is killed: nobody gets the disk before that has
/// ended. So no old write lands after a new one, and no byte of memory that is used again changes.
#[test]
fn killed_client_has_its_memory_and_the_disk_until_its_last_request_has_ended() {
    let disk = TestDisk::new(1 << 20);
    let rig = Rig::of(Nvme::with_backend(&NvmeOptions::default(), disk.clone()).unwrap());
    disk.hold(true);
    let mut client = start(&rig.socket);
    until("the disk has both", || disk.held().len() == 2);
    let memory = memory_of(&client);
    client.kill().unwrap();
    client.wait().unwrap();
    for _ in 0..2 {
        let refused = Controller::connect(&rig.socket, &Options::default());
        assert!(refused.is_err(), "another client, while the disk has memory of the last one");
    }
    let held = disk.held();
    assert_eq!(held.iter().map(|held| held.kind).collect::<Vec<_>>(), [Kind::Read, Kind::Write]);
    // One of them has ended: it still has to wait for the other one.
    disk.finish(held[0].id);
    assert!(Controller::connect(&rig.socket, &Options::default()).is_err(), "one of two has ended");
    disk.finish_all();
    let mut controller = rig.connect_again();
    let size = memory.metadata().unwrap().len() as usize;
    memory.write_all_at(&vec![0x55; size], 0).unwrap();
    let namespace = controller.namespace(1).unwrap();
    let mut queue = controller.create_queue(16, Waiting::Polling).unwrap();
    let buffer = controller.memory().allocate(LEN).unwrap();
    buffer.write(0, &[0x22; LEN]);
    queue.write(&namespace, 64, Data::of(&buffer)).unwrap();
    queue.flush(&namespace).unwrap();
    buffer.write(0, &[0; LEN]);
    queue.read(&namespace, 64, Data::of(&buffer)).unwrap();
    assert_eq!(content(&buffer), [0x22; LEN], "the new client's write is the last one");
    let mut bytes = vec![0; size];
    memory.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x55), "the memory of the last client was written");
}
