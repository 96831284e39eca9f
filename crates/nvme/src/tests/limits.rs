//! How much a controller has under way: what exceeds it stays in the submission queues.

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::dma::{Completion, DmaPeer};
use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, Held, Host, namespace, with_common};
use crate::common::Common;
use crate::transfer::BounceMemory;

fn common(disk: &Arc<Held>) -> Common {
    Common::new(vec![namespace(1, disk.clone())])
}

#[test]
fn commands_beyond_the_limit_stay_in_their_queues_and_nobody_is_busy() {
    let disk = Held::new();
    let common = Common { max_commands: 5, ..common(&disk) };
    let mut host = Host::new(with_common(common));
    let mut open = Vec::new();
    disk.hold(true);
    for queue in 1..=3 {
        host.create_pair(queue, 16, 1);
    }
    for queue in 1..=3 {
        for n in 0..4 {
            open.push((queue, host.submit(queue, Command::io(2, n, 1, (DATA, 0)))));
        }
    }
    eventually("the limit is reached", || disk.waiting() == 5);
    host.rest(Duration::from_millis(200));
    assert_eq!(disk.waiting(), 5);
    while !open.is_empty() {
        disk.release();
        for queue in 1..=3 {
            while let Some(entry) = host.poll(queue) {
                assert_eq!(entry.status, 0);
                host.release(queue);
                open.retain(|one| *one != (queue, entry.id));
            }
        }
    }
}

/// Memory that takes what is written to it.
struct Takes;

impl DmaPeer for Takes {
    fn start_read(&self, _iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        completion.complete(Ok(vec![0; len]));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Ok(()));
    }
}

#[test]
fn commands_are_not_read_while_others_wait_for_buffers() {
    let disk = Held::new();
    let common = Common { bounce: BounceMemory::new(1 << 16), ..common(&disk) };
    let mut host = Host::new(with_common(common));
    host.device.map_peer(1 << 41, 1 << 20, Arc::new(Takes));
    host.create_pair(1, 16, 1);
    host.create_pair(2, 16, 1);
    disk.hold(true);
    // Two pages, by PRP1 and PRP2; eight of them are all there is.
    let large = Command::io(2, 0, 16, (1 << 41, (1 << 41) + 4096));
    for _ in 0..9 {
        host.put(1, large);
    }
    host.ring(1);
    eventually("all buffers are in use", || disk.waiting() == 8);
    host.put(1, Command::io(2, 0, 1, (DATA, 0)));
    host.ring(1);
    host.put(2, Command::io(2, 0, 1, (DATA, 0)));
    host.ring(2);
    assert!(host.identify(1, 0).is_ok());
    assert_eq!(disk.waiting(), 8, "commands that need no buffer wait, too");
    // They were not read yet: opcodes that there are not.
    host.memory.put(Host::at(1).0 - BASE + 9 * 64, &[0x7f]);
    host.memory.put(Host::at(2).0 - BASE, &[0x7f]);
    disk.hold(false);
    disk.release();
    // The last large one and what follows it end in any order.
    let mut ended: Vec<_> = (0..10).map(|_| host.wait(1)).map(|end| (end.id, end.status)).collect();
    ended.sort_unstable();
    let statuses: Vec<_> = ended.into_iter().map(|(_, status)| status).collect();
    assert_eq!(statuses, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01]);
    assert_eq!(host.wait(2).status, 0x01);
}
