//! Many commands at once, on many queues.

use vfiod_nvme_driver::{Command, Data, Doorbells, Error, Reset, Waiting, opcode};

use crate::rig::{Rig, content, pattern};

/// More commands than a queue has places: the rings wrap many times, and each completion is that of its
/// command.
#[test]
fn full_queues_wrap() {
    full_queues_wrap_by(Doorbells::Registers);
}

/// The same, where most doorbells are in memory alone. After a reset they are in new pages.
#[test]
fn full_queues_with_shadow_doorbells_wrap() {
    full_queues_wrap_by(Doorbells::Shadow);
}

fn full_queues_wrap_by(doorbells: Doorbells) {
    let rig = Rig::new();
    let mut controller = rig.connect_by(doorbells);
    for (entries, waiting) in
        [(2, Waiting::Polling), (5, Waiting::Interrupts), (64, Waiting::Polling)]
    {
        let mut queue = controller.create_queue(entries, waiting).unwrap();
        let disk = controller.namespace(1).unwrap();
        let buffers: Vec<_> =
            (1..entries).map(|_| controller.memory().allocate(512).unwrap()).collect();
        for round in 0..10 {
            let mut ids = Vec::new();
            for (block, buffer) in (0..).zip(&buffers) {
                buffer.write(0, &pattern(round * 100 + block, 512));
                let write = disk.transfer(opcode::WRITE, block, &Data::of(buffer)).unwrap();
                ids.push(queue.submit(write, Some(Data::of(buffer))).unwrap());
            }
            let one_more = queue.submit(Command::new(opcode::FLUSH).namespace(1), None);
            assert!(matches!(one_more, Err(Error::QueueFull)), "{one_more:?}");
            // Those of others are kept meanwhile.
            let last = queue.wait_for(*ids.last().unwrap()).unwrap();
            assert!(last.status.is_success());
            let mut done = vec![last.id];
            while queue.in_flight() > 0 || done.len() < ids.len() {
                done.push(queue.wait().unwrap().id);
            }
            ids.sort_unstable();
            done.sort_unstable();
            assert_eq!(ids, done);
            assert!(queue.poll().unwrap().is_none());
            for (block, buffer) in (0..).zip(&buffers) {
                queue.read(&disk, block, Data::of(buffer)).unwrap();
                assert!(content(buffer) == pattern(round * 100 + block, 512), "{round}, {block}");
            }
        }
        controller.delete_queue(queue).unwrap();
        controller.reset(Reset::Controller).unwrap();
    }
}

/// Threads with a queue each.
#[test]
fn threads_share_a_controller() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    let disk = controller.namespace(1).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let waiting = if thread % 2 == 0 { Waiting::Interrupts } else { Waiting::Polling };
            let mut queue = controller.create_queue(8, waiting).unwrap();
            let buffer = controller.memory().allocate(4096).unwrap();
            scope.spawn(move || {
                for round in 0..50 {
                    let bytes = pattern(thread * 1000 + round, 4096);
                    buffer.write(0, &bytes);
                    queue.write(&disk, thread * 8, Data::of(&buffer)).unwrap();
                    buffer.write(0, &[0; 4096]);
                    queue.read(&disk, thread * 8, Data::of(&buffer)).unwrap();
                    assert!(content(&buffer) == bytes, "{thread}, {round}");
                }
            });
        }
    });
}

/// All queues that there are, and one more; what is deleted can be made again.
#[test]
fn queues_are_made_and_deleted() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    let disk = controller.namespace(1).unwrap();
    let buffer = controller.memory().allocate(512).unwrap();
    for round in 0..2 {
        let mut queues: Vec<_> = (0..64)
            .map(|n| {
                let waiting = if n % 2 == 0 { Waiting::Interrupts } else { Waiting::Polling };
                controller.create_queue(4, waiting).unwrap()
            })
            .collect();
        assert_eq!(queues.last().unwrap().id(), 64);
        let more = controller.create_queue(4, Waiting::Polling);
        assert!(matches!(more, Err(Error::Unsupported(_))), "{round}: {more:?}");
        for queue in &mut queues {
            queue.read(&disk, 0, Data::of(&buffer)).unwrap();
        }
        queues.into_iter().for_each(|queue| controller.delete_queue(queue).unwrap());
    }
    for entries in [0, 1, 4097] {
        let refused = controller.create_queue(entries, Waiting::Polling);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{entries}: {refused:?}");
    }
}
