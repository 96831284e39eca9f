//! Compare and Write, fused.

use std::collections::HashMap;
use std::sync::Arc;

use vfiod_core::Errno;
use vfiod_disk::test::{Kind, TestDisk};

use super::limits::Takes;
use super::rig::{
    BASE, Command, DATA, Host, create_cq, create_sq, namespace, nvme, with, with_common,
};
use crate::bounce::BounceMemory;
use crate::common::Common;

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const FIRST: u32 = 1 << 8;
const SECOND: u32 = 2 << 8;

/// A command, one of two.
fn fused(half: u32, opcode: u8, first: u64, at: u64) -> Command {
    Command::io(opcode, first, 1, (at, 0)).set(0, half | u32::from(opcode))
}

/// Puts both into a queue: blocks that begin with `old` get `new`. Returns their identifiers.
fn put(host: &mut Host, queue: usize, block: u64, place: u64, old: u8, new: u8) -> [u16; 2] {
    let at = DATA + 1024 * place;
    host.memory.put(at - BASE, &[[old; 512], [new; 512]].concat());
    let compare = fused(FIRST, COMPARE, block, at);
    [host.put(queue, compare), host.put(queue, fused(SECOND, WRITE, block, at + 512))]
}

/// What both end with.
fn outcomes(host: &mut Host, pair: [Command; 2]) -> [u16; 2] {
    let ids = pair.map(|command| host.put(1, command));
    host.ring(1);
    let entries = [host.wait(1), host.wait(1)];
    ids.map(|id| entries.iter().find(|entry| entry.id == id).expect("an entry each").status)
}

fn read(host: &mut Host, block: u64) -> u8 {
    let at = DATA + (1 << 20);
    host.memory.put(at - BASE, &[0xee; 512]);
    assert_eq!(host.perform(1, Command::io(READ, block, 1, (at, 0))), Ok(0));
    let bytes = host.memory.get(at - BASE, 512);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn block");
    bytes[0]
}

#[test]
fn block_is_written_only_if_it_is_equal() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    assert_eq!(host.identify(1, 0).unwrap()[522], 1, "FUSES");
    for (old, new, expected, then) in
        [(0, 1, [0, 0], 1), (0, 2, [0x285, 0x09], 1), (1, 3, [0, 0], 3), (3, 3, [0, 0], 3)]
    {
        host.memory.put(DATA - BASE, &[[old; 512], [new; 512]].concat());
        let pair = [fused(FIRST, COMPARE, 9, DATA), fused(SECOND, WRITE, 9, DATA + 512)];
        assert_eq!(outcomes(&mut host, pair), expected, "{old} to {new}");
        assert_eq!(read(&mut host, 9), then, "{old} to {new}");
    }
    assert_eq!(host.log(2, 512).unwrap()[160], 0, "media errors");
}

#[test]
fn halves_that_do_not_fit_have_their_status() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    let compare = fused(FIRST, COMPARE, 9, DATA);
    let write = fused(SECOND, WRITE, 9, DATA + 512);
    let nowhere = |command: Command| command.prps(1 << 40, 0);
    for (what, pair, expected) in [
        ("another block", [compare, write.set(10, 8)], [0x02, 0x02]),
        ("another length", [compare, write.set(12, 1)], [0x02, 0x02]),
        ("another namespace", [compare, write.namespace(2)], [0x02, 0x02]),
        ("two compares", [compare, fused(SECOND, COMPARE, 9, DATA)], [0x02, 0x02]),
        ("a write first", [fused(FIRST, WRITE, 9, DATA), write], [0x02, 0x02]),
        ("no namespace", [compare.namespace(17), write.namespace(17)], [0x0b, 0x09]),
        ("past the end", [compare.set(11, 1), write.set(11, 1)], [0x80, 0x09]),
        ("nothing to compare with", [nowhere(compare), write], [0x04, 0x09]),
        ("nothing to write", [compare, nowhere(write)], [0x09, 0x04]),
        ("two first halves", [compare, compare], [0x0a, 0x0a]),
        ("two second halves", [write, write], [0x0a, 0x0a]),
        ("the second half first", [write, compare], [0x0a, 0x0a]),
        ("a write that is no half", [compare, write.set(0, WRITE.into())], [0x0a, 0]),
    ] {
        assert_eq!(outcomes(&mut host, pair), expected, "{what}");
    }
    // The second half comes too late: both were to be submitted at once.
    assert_eq!(host.perform(1, compare), Err(0x0a));
    assert_eq!(host.perform(1, write), Err(0x0a));
}

/// What both halves need is had at once: pairs that each had the half of it would wait for each other for ever.
#[test]
fn pairs_whose_data_goes_through_buffers_do_not_wait_for_each_other() {
    // Less than one pair needs, and what four halves need.
    for limit in [512, 2048] {
        let disk = namespace(1, TestDisk::new(1 << 20));
        let bounce = BounceMemory::new(limit);
        let mut host = Host::new(with_common(Common { bounce, ..Common::new(16, vec![disk]) }));
        host.device.map_peer(1 << 41, 1 << 20, Arc::new(Takes));
        host.create_pair(1, 64, 1);
        for block in 0..8 {
            host.put(1, fused(FIRST, COMPARE, block, 1 << 41));
            host.put(1, fused(SECOND, WRITE, block, 1 << 41));
        }
        host.ring(1);
        for _ in 0..16 {
            assert_eq!(host.wait(1).status, 0, "{limit} bytes of buffers");
        }
    }
}

#[test]
fn failures_of_the_disk_are_of_the_half_that_failed() {
    let disk = TestDisk::new(1 << 20);
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    let compare = fused(FIRST, COMPARE, 9, DATA);
    let write = fused(SECOND, WRITE, 9, DATA + 512);
    let forced = write.set(12, 1 << 30);
    for (kind, errno, second, expected) in [
        (Kind::Read, Errno::IO, write, [0x281, 0x09]),
        (Kind::Write, Errno::IO, write, [0, 0x280]),
        (Kind::Write, Errno::NOSPC, write, [0, 0x81]),
        (Kind::Flush, Errno::IO, forced, [0, 0x280]),
    ] {
        disk.fail(kind, errno, 1);
        assert_eq!(outcomes(&mut host, [compare, second]), expected, "{kind:?}, {errno:?}");
    }
    // A sync has failed: no write is begun any more.
    assert_eq!(outcomes(&mut host, [compare, write]), [0x09, 0x280]);
}

/// Of those that compare with the same, from several queues at once, one succeeds.
#[test]
fn pairs_of_several_queues_are_one_step_each() {
    let mut host = Host::new(nvme());
    (1..=4).for_each(|id| host.create_pair(id, 64, 1));
    for round in 0..100_u8 {
        let mut pairs: HashMap<(usize, u16), (usize, u8)> = HashMap::new();
        for n in 0..24_u8 {
            let queue = 1 + usize::from(n) % 4;
            let ids = put(&mut host, queue, 5, n.into(), round, round + 1);
            for (half, id) in ids.into_iter().enumerate() {
                pairs.insert((queue, id), (half, n));
            }
        }
        (1..=4).for_each(|id| host.ring(id));
        let mut winners = Vec::new();
        for n in 0..48 {
            let entry = host.wait(1 + n / 12);
            let (half, n) = pairs.remove(&(usize::from(entry.queue), entry.id)).expect("once");
            match (half, entry.status) {
                (0, 0) => winners.push(n),
                (0, status) => assert_eq!(status, 0x285),
                (_, status) => assert!(matches!(status, 0 | 0x09), "{status:#x}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
    }
}

/// Pairs wherever they are among the commands that are read at once.
#[test]
fn pairs_are_read_together() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    let mut value = 0;
    for before in 0..40 {
        let mut ids: Vec<u16> = (0..before)
            .map(|n| host.put(1, Command::io(READ, n, 1, (DATA + (2 << 20), 0))))
            .collect();
        for place in 0..5 {
            ids.extend(put(&mut host, 1, 5, place, value, value + 1));
            value += 1;
        }
        host.ring(1);
        for _ in 0..ids.len() {
            let entry = host.wait(1);
            assert!(ids.contains(&entry.id) && entry.status == 0, "{before} before: {entry:x?}");
        }
        assert_eq!(read(&mut host, 5), value);
    }
}

/// A completion queue with few places, which two submission queues share.
#[test]
fn pairs_wait_for_places_and_are_not_parted() {
    let mut host = Host::new(nvme());
    host.create_pair(3, 8, 1);
    for entries in [3, 4, 5] {
        let (_, completions) = Host::at(1);
        host.renew_pair(1, 64, entries);
        host.renew_pair(2, 64, entries);
        assert_eq!(host.admin(create_cq(1, entries, completions, 1)), Ok(0));
        for id in 1..=2 {
            assert_eq!(host.admin(create_sq(id, 64, Host::at(id).0, 1)), Ok(0));
        }
        let mut open = Vec::new();
        for n in 0..10 {
            for queue in 1..=2 {
                // Blocks of zeroes stay so: each pair succeeds.
                let place = 2 * n + queue as u64;
                open.extend(put(&mut host, queue, place, place, 0, 0).map(|id| (queue, id)));
                open.push((queue, host.put(queue, Command::io(READ, 0, 1, (DATA + (2 << 20), 0)))));
            }
        }
        (1..=2).for_each(|id| host.ring(id));
        while !open.is_empty() {
            let entry = host.wait(1);
            assert_eq!(entry.status, 0, "{entries} entries: {entry:x?}");
            open.retain(|of| *of != (entry.queue.into(), entry.id));
        }
        for id in 1..=2 {
            assert_eq!(host.admin(Command::new(0).set(10, id)), Ok(0));
        }
        assert_eq!(host.admin(Command::new(4).set(10, 1)), Ok(0));
    }
}

/// Where two commands have no place, no pair is waited for.
#[test]
fn pairs_without_places_for_two_end_with_a_status() {
    let mut host = Host::new(nvme());
    let (submissions, completions) = Host::at(1);
    host.renew_pair(1, 64, 2);
    assert_eq!(host.admin(create_cq(1, 2, completions, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 64, submissions, 1)), Ok(0));
    for _ in 0..3 {
        put(&mut host, 1, 5, 0, 0, 1);
        host.ring(1);
        assert_eq!([host.wait(1).status, host.wait(1).status], [0x0a, 0x0a]);
    }
}
