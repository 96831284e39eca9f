//! Resets, and the end of the server.

use vfiod_nvme_driver::{Command, Data, Error, Reset, Waiting, opcode};

use crate::rig::{Rig, content, pattern};

pub(crate) const RESETS: [Reset; 5] =
    [Reset::Controller, Reset::Device, Reset::Function, Reset::Set, Reset::Shutdown];

/// After each kind of reset what was completed is there, queues that were made before fail, and new ones
/// work.
#[test]
fn every_reset_ends_queues_and_keeps_the_disk() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    let disk = controller.namespace(1).unwrap();
    let memory = controller.memory().clone();
    for reset in RESETS {
        let mut queue = controller.create_queue(8, Waiting::Interrupts).unwrap();
        let buffer = memory.allocate(512).unwrap();
        buffer.write(0, &pattern(reset as u64, 512));
        queue.write(&disk, 3, Data::of(&buffer)).unwrap();
        // In flight while the controller is reset.
        for block in 0..7 {
            let read = disk.transfer(opcode::READ, block, &Data::of(&buffer)).unwrap();
            queue.submit(read, Some(Data::of(&buffer))).unwrap();
        }
        queue.ring().unwrap();
        controller.reset(reset).unwrap();
        for result in [
            queue.poll().map(drop),
            queue.wait().map(drop),
            queue.submit(Command::new(opcode::FLUSH), None).map(drop),
        ] {
            assert!(matches!(result, Err(Error::QueueEnded)), "{reset:?}: {result:?}");
        }
        let mut queue = controller.create_queue(8, Waiting::Interrupts).unwrap();
        let fresh = memory.allocate(512).unwrap();
        queue.read(&disk, 3, Data::of(&fresh)).unwrap();
        assert!(content(&fresh) == pattern(reset as u64, 512), "{reset:?}");
    }
}

/// Memory of commands in flight is not given to others when their queue is dropped, until a reset.
#[test]
fn dropped_queue_keeps_its_memory_until_a_reset() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    let memory = controller.memory().clone();
    let whole = 64 << 20;
    let event =
        controller.begin_admin(Command::new(opcode::ASYNCHRONOUS_EVENT_REQUEST), None).unwrap();
    let mut queue = controller.create_queue(8, Waiting::Polling).unwrap();
    let buffer = memory.allocate(32 << 20).unwrap();
    let data = Data::part(&buffer, 0..4096);
    let disk = controller.namespace(1).unwrap();
    let read = disk.transfer(opcode::READ, 0, &data).unwrap();
    queue.submit(read, Some(data)).unwrap();
    queue.ring().unwrap();
    drop((queue, buffer));
    assert!(matches!(memory.allocate(whole / 2 + 4096), Err(Error::NoMemory(_))));
    controller.reset(Reset::Controller).unwrap();
    memory.allocate(whole / 2 + 4096).unwrap();
    assert!(event < 31);
}

/// A server that goes away is noticed, by whoever waits.
#[test]
fn end_of_the_server_ends_a_wait() {
    for waiting in [Waiting::Polling, Waiting::Interrupts] {
        let rig = Rig::new();
        let mut controller = rig.connect();
        let mut queue = controller.create_queue(8, waiting).unwrap();
        // Waits for a completion that does not come, as nothing was submitted.
        let waiter = std::thread::spawn(move || queue.wait());
        drop(rig);
        let ended = waiter.join().unwrap();
        assert!(matches!(ended, Err(Error::Client(_))), "{waiting:?}: {ended:?}");
    }
}
