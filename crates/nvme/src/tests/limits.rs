//! How much a controller has under way: what exceeds it stays in the submission queues.

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::dma::{Completion, DmaPeer, Hold};
use vfiod_quota::{Ledger, Limit, Limits, Payer, Resource, Share, Size, User};
use vfiod_testing::eventually;

use super::rig::{
    BASE, Command, DATA, Held, Host, Silent, create_cq, create_sq, namespace, with_common,
};
use crate::bounce::BounceMemory;
use crate::common::Common;
use crate::limits::{COMPLETION_QUEUE_MEMORY, SUBMISSION_QUEUE_MEMORY};
use crate::piece::Piece;

fn common(disk: &Arc<Held>) -> Common {
    Common::new(16, vec![namespace(1, disk.clone())])
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

/// How often the task of the first I/O queue has run.
fn polls(host: &Host) -> u64 {
    let tasks = host.device.device().status().tasks;
    tasks.iter().find(|task| task.name == "queue 1").expect("it is there").polls
}

/// A disk that never lets a queue's task wait does not keep it running.
#[test]
fn queue_that_always_has_commands_lets_others_have_their_turn() {
    let mut host = Host::new(super::rig::nvme());
    host.create_pair(1, 256, 1);
    host.rest(Duration::from_millis(5));
    let before = polls(&host);
    for n in 0..224 {
        host.put(1, Command::io(2, n, 1, (DATA, 0)));
    }
    host.ring(1);
    for _ in 0..224 {
        eventually("a completion", || host.peek(1).is_some());
        assert_eq!(host.poll(1).map(|entry| entry.status), Some(0));
    }
    // The last one is counted when it has ended.
    eventually("7 turns for 224 commands", || polls(&host) - before >= 224 / 32);
}

/// Memory that takes what is written to it.
pub(super) struct Takes;

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

/// Data that goes through buffers is charged to the user who has the controller open, for as long as it is there.
#[test]
fn buffers_are_charged_and_a_command_waits_for_memory_of_its_user() {
    let mut limits = Limits::of_process(1);
    // Of what is common one user has half.
    limits.set(Resource::Memory, Limit::new(Size::Common(0x2_0000), Share::Demanded(0)));
    let ledger = Ledger::new(limits);
    let used = || ledger.usage(Resource::Memory).used;
    let payer = Payer::new(ledger.open("disk").unwrap().account, User::Account(1000));
    let disk = Held::new();
    let mut host = Host::new(with_common(common(&disk)));
    host.device.map_peer(1 << 41, 1 << 20, Arc::new(Takes));
    host.create_pair(1, 16, 1);
    host.device.file().set_payer(payer.clone());
    // Two pages that are reached by message.
    let large = Command::io(2, 0, 16, (1 << 41, (1 << 41) + 4096));
    disk.hold(true);
    host.submit(1, large);
    eventually("it is under way", || disk.waiting() == 1);
    assert_eq!(used(), 8192);
    disk.hold(false);
    disk.release();
    assert_eq!(host.wait(1).status, 0);
    assert_eq!(used(), 0, "it is given back");
    // The user has other memory.
    let other = payer.charge(Resource::Memory, 0xf000).unwrap();
    let before = polls(&host);
    let id = host.submit(1, large);
    eventually("it waits, and looks again", || polls(&host) > before + 3);
    assert_eq!((host.peek(1), used()), (None, 0xf000));
    assert!(host.identify(1, 0).is_ok(), "admin commands go on");
    drop(other);
    let entry = host.wait(1);
    assert_eq!((entry.id, entry.status, used()), (id, 0, 0), "it has waited");
}

/// Pieces of a long list.
const PIECES: u32 = 128;

/// A read of a block for each descriptor of the list at `at`.
fn long_read(at: u64) -> Command {
    let first = u64::from(16 * PIECES) | 0x30 << 56;
    Command::io(2, 0, PIECES, (at, first)).set(0, 2 | 1 << 14)
}

/// A list of pieces is charged to the user as buffers are, where it is long.
#[test]
fn long_lists_of_pieces_are_charged() {
    let mut limits = Limits::of_process(1);
    limits.set(Resource::Memory, Limit::new(Size::Common(0x2_0000), Share::Demanded(0)));
    let ledger = Ledger::new(limits);
    let used = || ledger.usage(Resource::Memory).used;
    let payer = Payer::new(ledger.open("disk").unwrap().account, User::Account(1000));
    let disk = Held::new();
    let mut host = Host::new(with_common(common(&disk)));
    host.create_pair(1, 16, 1);
    host.device.file().set_payer(payer.clone());
    let list = DATA + (1 << 20);
    for n in 0..u64::from(PIECES) {
        let descriptor = [(DATA + 1024 * n).to_le_bytes(), 512_u64.to_le_bytes()].concat();
        host.memory.put(list - BASE + 16 * n, &descriptor);
    }
    disk.hold(true);
    host.submit(1, long_read(list));
    eventually("it is under way", || disk.waiting() == 1);
    let piece = size_of::<Piece>() + size_of::<Hold>() + 16;
    assert_eq!(used(), u64::from(PIECES) * piece as u64);
    disk.hold(false);
    disk.release();
    assert_eq!(host.wait(1).status, 0);
    assert_eq!(used(), 0, "it is given back");
    let other = payer.charge(Resource::Memory, 0xf000).unwrap();
    let before = polls(&host);
    let id = host.submit(1, long_read(list));
    eventually("it waits, and looks again", || polls(&host) > before + 3);
    assert_eq!((host.peek(1), used()), (None, 0xf000));
    drop(other);
    let entry = host.wait(1);
    assert_eq!((entry.id, entry.status, used()), (id, 0, 0), "it has waited");
}

/// Before a list was read nobody knows how long it is: of lists that may be long few are read at a time.
#[test]
fn few_long_lists_are_read_at_a_time() {
    let disk = Held::new();
    let mut host = Host::new(with_common(common(&disk)));
    let memory = Arc::new(Silent::default());
    host.device.map_peer(1 << 41, 1 << 20, memory.clone());
    host.create_pair(1, 64, 1);
    let mut ids: Vec<u16> = (0..10).map(|_| host.put(1, long_read(1 << 41))).collect();
    host.ring(1);
    eventually("lists are asked for", || memory.asked() > 3);
    host.rest(Duration::from_millis(20));
    assert_eq!(memory.asked(), 4);
    assert!(host.identify(1, 0).is_ok());
    while !ids.is_empty() {
        // A host that does not give them.
        eventually("others have their turn", || {
            memory.0.lock().unwrap().clear();
            host.peek(1).is_some()
        });
        let entry = host.wait(1);
        assert_eq!(entry.status, 0x04);
        ids.retain(|id| *id != entry.id);
    }
}

/// Of what is common one user has half: this many bytes.
fn payer_of(bytes: u64) -> (Arc<Ledger>, Payer) {
    let mut limits = Limits::of_process(1);
    limits.set(Resource::Memory, Limit::new(Size::Common(2 * bytes), Share::Demanded(0)));
    let ledger = Ledger::new(limits);
    let payer = Payer::new(ledger.open("disk").unwrap().account, User::Account(1000));
    (ledger, payer)
}

/// Queues are charged to the user who has them made, as long as they are there, and refused where that may have no
/// more.
#[test]
fn queues_are_charged_and_refused_to_who_has_too_much() {
    let (ledger, payer) = payer_of(0x2_0000);
    let used = || ledger.usage(Resource::Memory).used;
    let disk = Held::new();
    let mut host = Host::new(with_common(common(&disk)));
    host.device.file().set_payer(payer.clone());
    host.create_pair(1, 16, 1);
    let pair = COMPLETION_QUEUE_MEMORY + SUBMISSION_QUEUE_MEMORY;
    assert_eq!(used(), pair);
    let mut charges = Vec::new();
    for (bytes, command) in [
        (COMPLETION_QUEUE_MEMORY, create_cq(2, 16, Host::at(2).1, 1)),
        (SUBMISSION_QUEUE_MEMORY, create_sq(2, 16, Host::at(2).0, 2)),
    ] {
        let before = used();
        let other = payer.charge(Resource::Memory, 0x2_0000 - before - bytes + 1).unwrap();
        assert_eq!(host.admin(command), Err(0x06));
        drop(other);
        charges.push(payer.charge(Resource::Memory, 0x2_0000 - before - bytes).unwrap());
        assert_eq!(host.admin(command), Ok(0));
        charges.clear();
        assert_eq!(used(), before + bytes);
    }
    for (opcode, bytes) in [(0, SUBMISSION_QUEUE_MEMORY), (4, COMPLETION_QUEUE_MEMORY)] {
        let before = used();
        assert_eq!(host.admin(Command::new(opcode).set(10, 2)), Ok(0));
        // The queue's task has ended, and gives it up.
        eventually("it is given back", || used() == before - bytes);
    }
    host.disable();
    eventually("the others are given back", || used() == 0);
}

/// What a disk is read into for a comparison is charged. Who may have no more memory waits for nothing: there is a little
/// from the beginning.
#[test]
fn comparisons_go_on_in_small_pieces_without_memory() {
    let (ledger, payer) = payer_of(0x4_0000);
    let used = || ledger.usage(Resource::Memory).used;
    let disk = Held::new();
    let mut host = Host::new(with_common(common(&disk)));
    host.device.file().set_payer(payer.clone());
    host.create_pair(1, 16, 1);
    let before = used();
    host.memory.put(DATA - BASE, &[0; 8192]);
    let compare = Command::io(5, 0, 16, (DATA, DATA + 4096));
    let verify = Command::io(0x0c, 0, 16, (0, 0));
    for command in [compare, verify] {
        disk.seen();
        disk.hold(true);
        host.submit(1, command);
        eventually("it is under way", || disk.waiting() == 1);
        assert_eq!(used() - before, 2 * 8192);
        disk.hold(false);
        disk.release();
        assert_eq!(host.wait(1).status, 0);
        eventually("it is given back", || used() == before);
        assert_eq!(disk.seen(), ["read 0 8192"]);
        let other = payer.charge(Resource::Memory, 0x4_0000 - before).unwrap();
        assert_eq!(host.perform(1, command), Ok(0));
        assert_eq!(disk.seen(), ["read 0 4096", "read 4096 4096"]);
        drop(other);
    }
}
