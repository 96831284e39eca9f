//! Two controllers on a namespace, each with a host of its own.

use std::path::Path;
use std::sync::Arc;

use vfiod_core::Errno;
use vfiod_disk::Backend;
use vfiod_disk::test::{Kind, TestDisk};
use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, Host, Silent, pattern, volume, with_common};
use crate::common::Common;
use crate::namespace::Namespace;
use crate::options::{IdentityOption, NvmeOptions};
use crate::subsystem::{Seat, Subsystems};

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const FLUSH: Command = Command([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/// So many hosts, each with a controller of its own on one disk, and without I/O queues.
pub(super) fn neighbours<const N: usize>(backend: Arc<dyn Backend>) -> [Host; N] {
    let volume = Arc::new(volume(1, backend).shared());
    [(); N].map(|()| {
        let namespace = Namespace::new(1, volume.clone());
        Host::new(with_common(Common::new(16, vec![namespace])))
    })
}

/// Two hosts with an I/O queue pair each.
fn two(backend: Arc<dyn Backend>) -> [Host; 2] {
    let mut hosts = neighbours(backend);
    hosts.iter_mut().for_each(|host| host.create_pair(1, 64, 1));
    hosts
}

fn io(opcode: u8, block: u64) -> Command {
    Command::io(opcode, block, 1, (DATA, 0))
}

#[test]
fn what_one_writes_the_other_reads_and_flushes() {
    let disk = TestDisk::new(1 << 20);
    let [mut first, mut second] = two(disk.clone());
    first.memory.put(DATA - BASE, &pattern(1, 512));
    assert_eq!(first.perform(1, io(WRITE, 7)), Ok(0));
    assert_eq!(second.perform(1, io(READ, 7)), Ok(0));
    assert_eq!(second.memory.get(DATA - BASE, 512), pattern(1, 512));
    assert_eq!(second.perform(1, FLUSH), Ok(0));
    let image = disk.power_cut(|_| 0);
    assert_eq!(image[7 * 512..8 * 512], pattern(1, 512));
}

/// Of pairs that compare with the same, from both controllers at once, one succeeds.
#[test]
fn fused_pairs_are_one_step_for_both() {
    let [mut first, mut second] = two(TestDisk::new(1 << 20));
    for round in 0..100_u8 {
        let mut won = 0;
        let put = |host: &mut Host, n: u64| {
            let at = DATA + 1024 * n;
            host.memory.put(at - BASE, &[[round; 512], [round + 1; 512]].concat());
            let fused = |half: u32, opcode: u8, at| {
                Command::io(opcode, 5, 1, (at, 0)).set(0, half | u32::from(opcode))
            };
            host.put(1, fused(1 << 8, COMPARE, at));
            host.put(1, fused(2 << 8, WRITE, at + 512))
        };
        let writes = [&mut first, &mut second].map(|host| [0, 1, 2, 3].map(|n| put(host, n)));
        first.ring(1);
        second.ring(1);
        for (host, writes) in [&mut first, &mut second].into_iter().zip(writes) {
            for _ in 0..8 {
                let entry = host.wait(1);
                won += usize::from(writes.contains(&entry.id) && entry.status == 0);
            }
        }
        assert_eq!(won, 1, "round {round}");
    }
}

/// A command that takes long ends with the piece that is under way when another controller formats the namespace.
#[test]
fn long_commands_hold_up_no_format_of_another_controller() {
    const BLOCKS: u32 = 16 << 10;
    let disk = TestDisk::new(512 * BLOCKS as usize);
    disk.set_limits(|limits| limits.deallocate = Some(512));
    let [mut first, mut second] = two(disk.clone());
    let range = [[0; 4], BLOCKS.to_le_bytes(), [0; 4], [0; 4]].concat();
    let deallocate = Command::new(9).set(11, 4).namespace(1).prps(DATA, 0);
    let [verify, zeroes] = [12, 8].map(|opcode| Command::io(opcode, 0, BLOCKS, (0, 0)));
    for command in [verify, zeroes, deallocate] {
        second.memory.put(DATA - BASE, &range);
        disk.hold(true);
        let long = second.submit(1, command);
        eventually("its first piece is held", || disk.held().len() == 1);
        let format = first.submit(0, Command::new(0x80).namespace(1));
        // More than MDTS: refused, one way or another.
        let refused = Command::io(READ, 0, 4000, (DATA, 0));
        while second.perform(1, refused) != Err(0x84) {}
        disk.held().iter().for_each(|held| _ = disk.finish(held.id));
        let entry = second.wait(1);
        assert_eq!((entry.id, entry.status), (long, 0x84), "{command:x?}");
        disk.finish_all();
        assert_eq!(first.wait(0).id, format);
        assert_eq!(second.perform(1, io(READ, 3)), Ok(0), "{command:x?}");
    }
}

/// A command whose data a host gives slowly, or never, holds up no Format, and no other controller: it ends with
/// Format In Progress.
#[test]
fn host_that_gives_no_data_holds_up_no_format() {
    const SLOW: u64 = 1 << 41;
    let disk = TestDisk::new(1 << 20);
    disk.set_limits(|limits| limits.deallocate = Some(512));
    let [mut first, mut second] = two(disk.clone());
    let memory = Arc::new(Silent::default());
    second.device.map_peer(SLOW, 1 << 20, memory.clone());
    let from = |opcode| Command::io(opcode, 3, 1, (SLOW, 0));
    // A list of PRPs, data, ranges, and what was read.
    let list = Command::io(WRITE, 0, 24, (DATA, SLOW));
    let ranges = [Command::new(9).set(11, 4), Command::io(0x19, 9, 1, (0, 0)).set(12, 0)];
    let [deallocate, copy] = ranges.map(|command| command.namespace(1).prps(SLOW, 0));
    for command in [from(WRITE), from(COMPARE), from(READ), list, deallocate, copy] {
        let before = memory.asked();
        let slow = second.submit(1, command);
        eventually("the host is asked for its memory", || memory.asked() > before);
        assert_eq!(first.admin(Command::new(0x80).namespace(1)), Ok(0), "{command:x?}");
        let entry = second.wait(1);
        assert_eq!((entry.id, entry.status), (slow, 0x84), "{command:x?}");
        for host in [&mut first, &mut second] {
            assert_eq!(host.perform(1, io(READ, 3)), Ok(0), "{command:x?}");
        }
    }
    assert!(second.peek(1).is_none());
}

/// A Format by one waits for the commands of the other that had begun, and ends those that come meanwhile. The
/// other's host is told that the namespace has changed.
#[test]
fn format_by_one_ends_commands_of_the_other_with_format_in_progress() {
    let disk = TestDisk::new(1 << 20);
    let [mut first, mut second] = two(disk.clone());
    let [_, event] = [&mut first, &mut second].map(|host| {
        assert_eq!(host.admin(Command::new(9).set(10, 0x0b).set(11, 1 << 8)), Ok(0));
        host.submit(0, Command::new(12))
    });
    disk.hold(true);
    let begun = second.submit(1, io(READ, 3));
    eventually("a read that is held", || disk.held().len() == 1);
    let format = first.submit(0, Command::new(0x80).namespace(1).set(10, 0));
    // Refused with one status or the other, and never begun.
    let refused = Command::io(READ, 0, 4000, (DATA, 0));
    let mut seen = 0x02;
    while seen == 0x02 {
        seen = second.perform(1, refused).unwrap_err();
    }
    assert_eq!(seen, 0x84);
    assert_eq!(disk.held().len(), 1, "the format waits");
    // What has begun ends as it would have.
    disk.hold(false);
    disk.finish_all();
    let entry = second.wait(1);
    assert_eq!((entry.id, entry.status), (begun, 0));
    let entry = first.wait(0);
    assert_eq!((entry.id, entry.status), (format, 0));
    let entry = second.wait(0);
    assert_eq!((entry.id, entry.status, entry.result), (event, 0, 0x04_00_02));
    assert_eq!(second.log(4, 8).unwrap(), [1, 0, 0, 0, 0, 0, 0, 0]);
    // Who has formatted it knows.
    assert_eq!(first.log(4, 8).unwrap(), [0; 8]);
    assert!(first.peek(0).is_none());
    for host in [&mut first, &mut second] {
        assert_eq!(host.perform(1, io(READ, 3)), Ok(0));
    }
}

/// The host of the other one counts in blocks of the old size: a read of 8 of them would be written behind its
/// buffers if one had 4,096 bytes.
#[test]
fn size_of_blocks_stays_where_two_controllers_have_them() {
    let disk = TestDisk::new(1 << 20);
    disk.set_limits(|limits| limits.atomic_write = 4096);
    let [mut first, mut second] = two(disk);
    let format = Command::new(0x80).namespace(1).set(10, 1);
    assert_eq!(first.admin(format), Err(0x10a), "Invalid Format");
    let namespace = first.identify(0, 1).unwrap();
    let sizes = [namespace[128 + 2], namespace[132 + 2]];
    assert_eq!((namespace[26], sizes), (0, [9, 0]), "the other format is not offered");
    second.memory.put(DATA - BASE, &[7; 8192]);
    assert_eq!(second.perform(1, io(READ, 3).set(12, 7)), Ok(0));
    assert_eq!(second.memory.get(DATA - BASE, 8192), [[0; 4096], [7; 4096]].concat());
}

/// Both are told that a sync of one has failed, and neither can write any more.
#[test]
fn failed_sync_of_one_is_told_to_both() {
    let disk = TestDisk::new(1 << 20);
    let mut hosts = two(disk.clone());
    // Events about SMART are wanted.
    let requests = hosts.each_mut().map(|host| {
        assert_eq!(host.admin(Command::new(9).set(10, 0x0b).set(11, 0xff)), Ok(0));
        host.submit(0, Command::new(12))
    });
    disk.fail(Kind::Flush, Errno::IO, 1);
    assert_eq!(hosts[0].perform(1, FLUSH), Err(0x280));
    for (host, request) in hosts.iter_mut().zip(requests) {
        let entry = host.wait(0);
        assert_eq!((entry.id, entry.status, entry.result), (request, 0, 0x02_00_01));
        assert_eq!(host.log(2, 512).unwrap()[0], 1 << 3, "read-only");
        assert_eq!(host.perform(1, io(WRITE, 3)), Err(0x280));
        assert_eq!(host.perform(1, io(READ, 3)), Ok(0));
    }
}

/// That of a shutdown as well, which is no command.
#[test]
fn failed_sync_of_a_shutdown_is_told_to_the_other() {
    let disk = TestDisk::new(1 << 20);
    let [first, mut second] = two(disk.clone());
    assert_eq!(second.admin(Command::new(9).set(10, 0x0b).set(11, 0xff)), Ok(0));
    let request = second.submit(0, Command::new(12));
    disk.fail(Kind::Flush, Errno::IO, 1);
    first.device.write32(0, 0x14, super::rig::ENABLE | 1 << 14);
    let entry = second.wait(0);
    assert_eq!((entry.id, entry.status, entry.result), (request, 0, 0x02_00_01));
}

/// What becomes of one controller leaves the commands of the other alone.
#[test]
fn reset_and_end_of_one_leave_commands_of_the_other_alone() {
    let disk = TestDisk::new(1 << 20);
    let [mut first, mut second] = two(disk.clone());
    disk.hold(true);
    first.submit(1, io(READ, 3));
    eventually("a read that is held", || disk.held().len() == 1);
    let kept = second.submit(1, io(READ, 3));
    eventually("two reads that are held", || disk.held().len() == 2);
    // The first one is disabled as soon as its own command has ended.
    first.device.write32(0, 0x14, super::rig::ENABLE & !1);
    let own = disk.held()[0].id;
    disk.finish(own);
    first.await_status(1, 0);
    assert!(second.peek(1).is_none(), "the other one's is still held");
    disk.hold(false);
    assert_eq!(second.perform(1, io(WRITE, 9)), Ok(0));
    // Gone, with a command that is held.
    first.forget_queues();
    first.enable();
    first.create_pair(1, 64, 1);
    disk.hold(true);
    first.submit(1, io(WRITE, 5));
    eventually("a write that is held", || disk.held().len() == 2);
    let leaves = std::thread::spawn(move || drop(first));
    disk.hold(false);
    for block in 20..40 {
        assert_eq!(second.perform(1, io(WRITE, block)), Ok(0));
        assert_eq!(second.perform(1, FLUSH), Ok(0));
    }
    disk.finish_all();
    let entry = second.wait(1);
    assert_eq!((entry.id, entry.status), (kept, 0));
    leaves.join().unwrap();
    assert_eq!(second.perform(1, io(READ, 5)), Ok(0));
}

/// Whose memory is truncated loses what was in it, and nobody else anything.
#[test]
fn truncated_memory_of_one_is_nothing_to_the_other() {
    let disk = TestDisk::new(1 << 20);
    let [mut first, mut second] = two(disk.clone());
    disk.hold(true);
    first.submit(1, io(READ, 3));
    let kept = second.submit(1, io(READ, 3));
    eventually("two reads that are held", || disk.held().len() == 2);
    first.memory.truncate();
    disk.hold(false);
    disk.finish_all();
    let entry = second.wait(1);
    assert_eq!((entry.id, entry.status), (kept, 0));
    // It cannot write its completion.
    first.await_fatal();
    assert_eq!(second.perform(1, io(WRITE, 3)), Ok(0));
    assert_eq!(second.perform(1, FLUSH), Ok(0));
}

#[test]
fn bits_of_shared_namespaces_and_controllers_are_set_where_they_are_shared() {
    let [mut shared] = neighbours::<1>(TestDisk::new(1 << 20));
    assert_eq!(shared.identify(0, 1).unwrap()[30], 1, "NMIC");
    assert_eq!(shared.identify(8, 1).unwrap()[1], 1, "NMIC");
    let mut alone = Host::new(super::rig::nvme());
    assert_eq!(alone.identify(0, 1).unwrap()[30], 0, "NMIC");
    assert_eq!(alone.identify(8, 1).unwrap()[1], 0, "NMIC");
    assert_eq!(alone.identify(1, 0).unwrap()[76], 0, "CMIC");
    // Its own number is 1.
    for (cns, first, expected) in [(0x13, 0, 1), (0x13, 1, 1), (0x13, 2, 0), (0x12, 0, 1)] {
        let list = alone.identify(cns | first << 16, 1).unwrap();
        assert_eq!((list[0], list[2]), (expected, expected), "{cns:#x} from {first}");
    }
    assert_eq!(alone.identify(0x12, 2).unwrap()[0], 0, "an inactive namespace");
    assert_eq!(alone.identify(0x12, 17), Err(0x0b), "one past NN");
}

/// An image that two controllers may share.
fn image(path: &Path) -> NvmeOptions {
    NvmeOptions { file: Some(path.to_owned()), shared: true, ..NvmeOptions::default() }
}

fn number(seat: &Seat) -> u16 {
    seat.identity().controller
}

fn refusal(outcome: vfiod_core::Result<Seat>) -> String {
    match outcome {
        Ok(seat) => panic!("accepted as controller {}", number(&seat)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn controllers_of_one_image_are_one_subsystem_with_numbers_that_last() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let link = place.path().join("link.img");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let subsystems = Subsystems::default();
    let first = subsystems.enter(&image(&path), "a").unwrap();
    let second = subsystems.enter(&image(&link), "b").unwrap();
    assert_eq!((number(&first), number(&second)), (1, 2));
    let named = |seat: &Seat| {
        let identity = seat.identity();
        (identity.serial, identity.subsystem_name)
    };
    assert_eq!(named(&first), named(&second));
    let ids = |seat: &Seat| seat.namespaces()[0].identity;
    assert_eq!(ids(&first), ids(&second));
    assert_eq!((first.controllers(), second.controllers()), (vec![1, 2], vec![1, 2]));
    assert!(first.is_shared());
    // One leaves: the other one has the image, and its lock.
    let name = named(&first);
    drop(first);
    assert_eq!(second.controllers(), [2]);
    assert!(refusal(Subsystems::default().enter(&image(&path), "x")).contains("in use"));
    drop(second);
    // After a restart, in another order.
    let subsystems = Subsystems::default();
    let [third, second, first] =
        ["c", "b", "a"].map(|device| subsystems.enter(&image(&path), device).unwrap());
    assert_eq!((number(&first), number(&second), number(&third)), (1, 2, 3));
    assert_eq!(named(&first), name);
    // The lock falls with the last one.
    drop((first, second, third));
    let alone = NvmeOptions { shared: false, ..image(&path) };
    let alone = Subsystems::default().enter(&alone, "b").unwrap();
    assert_eq!((number(&alone), alone.is_shared()), (1, false));
}

#[test]
fn options_of_controllers_that_share_an_image_are_the_same() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        path
    };
    let (path, other, third) = (at("disk.img"), at("other.img"), at("third.img"));
    let subsystems = Subsystems::default();
    let both = || NvmeOptions { files: vec![other.clone()], ..image(&path) };
    let _seat = subsystems.enter(&both(), "a").unwrap();
    for (option, options) in [
        ("files", image(&path)),
        ("files", NvmeOptions { files: vec![third.clone()], ..image(&path) }),
        ("namespaces", NvmeOptions { namespaces: Some(3), ..both() }),
        ("block_size", NvmeOptions { block_size: Some(512), ..both() }),
        ("torn_writes", NvmeOptions { torn_writes: true, ..both() }),
        ("readonly", NvmeOptions { readonly: true, ..both() }),
        ("direct", NvmeOptions { direct: Some(false), ..both() }),
        ("locks", NvmeOptions { locks: Some(true), ..both() }),
        ("metadata", NvmeOptions { metadata: Some("m".into()), ..both() }),
        ("identity", NvmeOptions { identity: IdentityOption::Keep, ..both() }),
        ("serial", NvmeOptions { serial: Some("S".into()), ..both() }),
        ("uuid", NvmeOptions { uuid: Some("u".into()), ..both() }),
    ] {
        let refused = refusal(subsystems.enter(&options, "b"));
        assert!(
            refused.contains(&format!("`{option}` is another one than that of `a`")),
            "{refused}"
        );
    }
    // Each has its own of these.
    let own = NvmeOptions { commands: Some(3), buffers: Some(1 << 20), ..both() };
    assert_eq!(number(&subsystems.enter(&own, "b").unwrap()), 2);
    // An image is of one subsystem, whichever of its images it is.
    for options in [
        image(&other),
        NvmeOptions { files: vec![other.clone()], ..image(&third) },
        NvmeOptions { files: vec![path.clone()], ..image(&third) },
    ] {
        let refused = refusal(subsystems.enter(&options, "b"));
        assert!(refused.contains("it is one of the subsystem of `a`"), "{refused}");
    }
    // Without `shared` it is in use, and the remedy is told.
    let alone = NvmeOptions { shared: false, ..both() };
    let refused = refusal(subsystems.enter(&alone, "b"));
    assert!(refused.contains("in use") && refused.contains("`shared = true`"), "{refused}");
    // Nothing that was refused has left a lock or a number.
    assert_eq!(number(&subsystems.enter(&image(&third), "b").unwrap()), 1);
    assert_eq!(number(&subsystems.enter(&both(), "b").unwrap()), 2);
}
