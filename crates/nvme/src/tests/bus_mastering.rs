//! A host that switches bus mastering off, or leaves, with commands under way: they complete once, later, and hold up
//! neither a reset nor a save.

use std::time::Duration;

use vfiod_core::{DescriptorTable, StatePolicy};
use vfiod_testing::{Driver, eventually};

use super::rig::{
    BASE, Command, DATA, Held, Host, create_sq, namespace, pattern, with, with_common,
};
use crate::common::Common;
use crate::limits::MAX_DEFERRED;
use vfiod_nvme_spec::registers::{FATAL, READY};

const READ: u8 = 2;
const WRITE: u8 = 1;

fn io(opcode: u8, block: u64) -> Command {
    Command::io(opcode, block, 1, (DATA, 0))
}

/// A host with a queue pair, and commands that the disk holds; then bus mastering is off, and the disk has done
/// them. Their identifiers.
fn waiting(disk: &Held, host: &mut Host, commands: &[Command]) -> Vec<u16> {
    host.create_pair(1, 16, 1);
    disk.hold(true);
    let ids = commands.iter().map(|command| host.submit(1, *command)).collect();
    eventually("they are held", || disk.waiting() == commands.len());
    host.set_bus_mastering(false);
    disk.hold(false);
    disk.release();
    ids
}

/// Takes the completions of these commands, and of none twice.
fn complete(host: &mut Host, queue: usize, mut ids: Vec<u16>) {
    while !ids.is_empty() {
        let entry = host.wait(queue);
        assert_eq!(entry.status, 0);
        let place = ids.iter().position(|id| *id == entry.id).expect("it completes once");
        ids.remove(place);
    }
}

#[test]
fn completions_that_wait_for_bus_mastering_are_saved() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.memory.put(DATA - BASE, &pattern(7, 512));
    let ids = waiting(&disk, &mut host, &[io(WRITE, 3), io(WRITE, 4), io(READ, 9)]);
    let mut descriptors = DescriptorTable::new();
    let saved = host.device.device().save(&mut descriptors).expect("nothing is under way");
    assert!(host.peek(1).is_none());
    let new = Driver::restored(with(disk.clone()), &saved, None, &mut descriptors).unwrap();
    let moved = host.moved(new);
    moved.settle();
    assert!(moved.peek(1).is_none(), "an entry without bus mastering");
    // Saved again, before any was written.
    let saved = moved.device.device().save(&mut descriptors).expect("nothing is under way");
    let new = Driver::restored(with(disk.clone()), &saved, None, &mut descriptors).unwrap();
    let mut moved = moved.moved(new);
    moved.set_bus_mastering(true);
    complete(&mut moved, 1, ids);
    assert!(moved.peek(1).is_none());
    disk.seen();
    for n in 0..40 {
        assert_eq!(moved.perform(1, io(READ, n)), Ok(0));
    }
    assert!(disk.seen().iter().all(|what| what.starts_with("read")), "a write was done again");
}

/// After a save, or a hot reset that was abandoned, the same controller goes on.
#[test]
fn completions_that_wait_for_bus_mastering_outlast_a_pause() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    let ids = waiting(&disk, &mut host, &[io(READ, 3), io(READ, 4)]);
    for _ in 0..3 {
        host.device.device().save(&mut DescriptorTable::new()).expect("nothing is under way");
    }
    assert!(host.peek(1).is_none());
    host.set_bus_mastering(true);
    complete(&mut host, 1, ids);
    assert_eq!(host.perform(1, io(READ, 3)), Ok(0));
}

/// Queues that share a completion queue with less room than they have commands wait, as long as they can read none.
#[test]
fn queues_without_room_rest_while_bus_mastering_is_off() {
    let disk = Held::new();
    let mut host = Host::new(with(disk));
    host.create_pair(1, 4, 1);
    host.renew_pair(2, 16, 4);
    let (submissions, _) = Host::at(2);
    assert_eq!(host.admin(create_sq(2, 16, submissions, 1)), Ok(0));
    host.set_bus_mastering(false);
    let ids: Vec<u16> = (0..3).map(|n| host.submit(1, io(READ, n))).collect();
    for n in 0..8 {
        host.submit(2, io(READ, n));
    }
    host.rest(Duration::from_millis(5));
    host.set_bus_mastering(true);
    let mut ended = 0;
    while ended < ids.len() + 8 {
        host.wait(1);
        ended += 1;
    }
}

#[test]
fn hot_reset_does_not_wait_for_bus_mastering() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    waiting(&disk, &mut host, &[io(READ, 3)]);
    host.device.file().reset_set().expect("nothing is under way");
    let (_, completions) = Host::at(1);
    host.forget_queues();
    host.device.enable();
    host.enable();
    assert!(host.identify(1, 0).is_ok());
    assert_eq!(host.memory.get(completions - BASE, 256), [0; 256], "a late completion");
}

/// A saved state has room for so many completions. More of them keep a controller from being saved, which says so,
/// and from nothing else.
#[test]
fn more_completions_than_can_be_saved_hold_up_no_reset() {
    let disk = Held::new();
    let count = MAX_DEFERRED + 1;
    let common = Common::new(16, vec![namespace(1, disk.clone())]);
    let mut host = Host::new(with_common(Common { max_commands: 4096, ..common }));
    host.create_pair(1, 2048, 1);
    let wait = |host: &mut Host| {
        disk.hold(true);
        let ids: Vec<u16> = (0..count as u64).map(|n| host.put(1, io(READ, n))).collect();
        host.ring(1);
        eventually("they are held", || disk.waiting() == count);
        host.set_bus_mastering(false);
        disk.hold(false);
        disk.release();
        ids
    };
    let ids = wait(&mut host);
    let error = host.device.device().save(&mut DescriptorTable::new()).unwrap_err();
    assert!(error.to_string().contains("more completions than can be saved"), "{error}");
    host.set_bus_mastering(true);
    complete(&mut host, 1, ids);
    host.device.device().save(&mut DescriptorTable::new()).expect("nothing is under way");
    wait(&mut host);
    host.device.file().reset_set().expect("nothing is under way");
    host.forget_queues();
    host.device.enable();
    host.enable();
    assert!(host.identify(1, 0).is_ok());
}

/// An event whose completion waits is posted once.
#[test]
fn event_that_waits_for_bus_mastering_is_saved() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    let id = host.submit(0, Command::new(12));
    assert!(host.identify(1, 0).is_ok());
    host.set_bus_mastering(false);
    // A doorbell that there is not.
    host.device.write32(0, 0x1000 + 8 * 5, 1);
    let mut descriptors = DescriptorTable::new();
    let saved = host.device.device().save(&mut descriptors).expect("nothing is under way");
    assert!(host.peek(0).is_none());
    let mut host =
        host.moved(Driver::restored(with(disk), &saved, None, &mut descriptors).unwrap());
    host.set_bus_mastering(true);
    let entry = host.wait(0);
    assert_eq!((entry.id, entry.status, entry.result & 7), (id, 0, 0));
    assert!(host.identify(1, 0).is_ok());
    assert!(host.peek(0).is_none());
}

/// The commands of a queue that is deleted meanwhile complete before the deletion does.
#[test]
fn deletion_of_a_queue_does_not_lose_completions_that_wait() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 16, 1);
    disk.hold(true);
    let read = host.submit(1, io(READ, 3));
    eventually("it is held", || disk.waiting() == 1);
    let delete = host.submit(0, Command::new(0).set(10, 1));
    // It was begun before what follows it ends.
    assert!(host.identify(1, 0).is_ok());
    host.set_bus_mastering(false);
    disk.hold(false);
    disk.release();
    host.device.device().save(&mut DescriptorTable::new()).expect("nothing is under way");
    assert!(host.peek(0).is_none());
    host.set_bus_mastering(true);
    assert_eq!(host.wait(0).id, delete);
    let entry = host.peek(1).expect("it was written before");
    assert_eq!((entry.id, entry.status), (read, 0));
    // Another queue goes on with the same completions.
    host.poll(1);
    host.release(1);
    assert_eq!(host.admin(create_sq(2, 16, Host::at(2).0, 1)), Ok(0));
    assert!(host.identify(1, 0).is_ok());
}

/// What is restored is judged.
#[test]
fn completions_that_cannot_be_are_refused() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    let ids = waiting(&disk, &mut host, &[io(READ, 3)]);
    let words = |words: &[u32]| -> String {
        words.iter().flat_map(|word| word.to_le_bytes()).map(|byte| format!("{byte:02x}")).collect()
    };
    let (id, phase) = (u32::from(ids[0]), 1 << 16);
    // Of completion queue 1, which is its number and one, at place 0; SQHD 1 of submission queue 1.
    let sound = words(&[0, 2, 1 | 1 << 16, id | phase]);
    let restore = |deferred: &str| {
        let mut descriptors = DescriptorTable::new();
        let saved = host.device.device().save(&mut descriptors).expect("nothing is under way");
        let mut changed = serde_json::to_value(&saved).unwrap();
        let found = replace(&mut changed, "deferred", deferred);
        assert_eq!(found.as_deref(), Some(sound.trim_end_matches('0')), "what was saved");
        let saved = serde_json::from_value(changed).unwrap();
        Driver::restored(with(disk.clone()), &saved, None, &mut descriptors).map(drop)
    };
    restore(&sound).unwrap();
    for (what, entries) in [
        ("no queue", words(&[0, 0, 1 | 1 << 16, id | phase])),
        ("a queue that is not there", words(&[0, 4, 1 | 1 << 16, id | phase])),
        ("a queue that cannot be", words(&[0, 80, 1 | 1 << 16, id | phase])),
        ("a submission queue that cannot be", words(&[0, 2, 1 | 80 << 16, id | phase])),
        ("a place that is free", words(&[0, 2 | 1 << 16, 1 | 1 << 16, id | phase])),
        ("a place that is none", words(&[0, 2 | 16 << 16, 1 | 1 << 16, id | phase])),
        ("the phase of the lap before", words(&[0, 2, 1 | 1 << 16, id])),
        ("twice one place", sound.repeat(2)),
        ("too many", sound.repeat(2000)),
        ("half a byte", sound[..7].to_owned()),
    ] {
        assert!(restore(&entries).is_err(), "{what}");
    }
}

/// Replaces the text of this name, wherever it is. Returns what it was.
fn replace(value: &mut serde_json::Value, name: &str, by: &str) -> Option<String> {
    use serde_json::Value;
    match value {
        Value::Object(fields) => fields.iter_mut().find_map(|(key, field)| match field {
            Value::String(text) if key == name => Some(std::mem::replace(text, by.to_owned())),
            field => replace(field, name, by),
        }),
        Value::Array(all) => all.iter_mut().find_map(|one| replace(one, name, by)),
        _ => None,
    }
}

/// A host that leaves with commands under way, and comes back to what it has left: those that were done have
/// completed, each is done once, and none is missing.
#[test]
fn commands_under_way_at_a_close_complete_for_the_same_user() {
    for op in [WRITE, READ] {
        let disk = Held::new();
        let driver = Driver::with_policy(with(disk.clone()), StatePolicy::Retain);
        let mut host = Host::without_interrupts(driver);
        host.enable();
        host.create_pair(1, 16, 1);
        host.submit(0, Command::new(12));
        disk.seen();
        disk.hold(true);
        let ids: Vec<u16> = (0..3).map(|n| host.submit(1, io(op, n))).collect();
        eventually("they are held", || disk.waiting() == 3);
        let device = host.device.device().clone();
        let mut host = std::thread::scope(|scope| {
            let reopened = scope.spawn(|| host.reopened());
            eventually("it is being closed", || device.status().files.is_empty());
            disk.hold(false);
            disk.release();
            reopened.join().expect("it opens again")
        });
        assert_eq!(host.status() & (READY | FATAL), READY, "fatal status, or not ready");
        complete(&mut host, 1, ids);
        assert!(host.peek(1).is_none());
        assert_eq!(disk.seen().len(), 3, "a command was done again");
        assert_eq!(host.perform(1, io(op, 5)), Ok(0));
    }
}

/// Those whose data never came are aborted, and the host is told so.
#[test]
fn commands_that_waited_for_memory_at_a_close_are_aborted() {
    let disk = Held::new();
    let driver = Driver::with_policy(with(disk.clone()), StatePolicy::Retain);
    let mut host = Host::without_interrupts(driver);
    host.enable();
    host.create_pair(1, 16, 1);
    let memory = std::sync::Arc::new(super::rig::Silent::default());
    host.device.map_peer(1 << 41, 1 << 20, memory.clone());
    disk.seen();
    let id = host.submit(1, Command::io(WRITE, 0, 1, (1 << 41, 0)));
    eventually("the host is asked for its memory", || memory.asked() == 1);
    let mut host = host.reopened();
    let entry = host.wait(1);
    assert_eq!((entry.id, entry.status), (id, 0x07));
    assert_eq!(disk.seen(), [""; 0], "nothing was written");
}

/// A host that leaves at any moment finds a controller that works when it is back: memory that goes with its user
/// was not taken from under the queues.
#[test]
fn last_close_at_any_moment_leaves_no_fatal_status() {
    let driver = Driver::with_policy(super::rig::nvme(), StatePolicy::Retain);
    let mut host = Host::without_interrupts(driver);
    host.enable();
    host.create_pair(1, 16, 1);
    for round in 0..60 {
        let ids: Vec<u16> = (0..3).map(|n| host.submit(1, io(READ, n))).collect();
        if round % 3 > 0 {
            host.wait(1);
        }
        let done = usize::from(round % 3 > 0);
        host = host.reopened();
        assert_eq!(host.status() & (READY | FATAL), READY, "round {round}");
        for _ in done..ids.len() {
            let entry = host.wait(1);
            assert!(ids.contains(&entry.id) && [0, 4, 7].contains(&entry.status), "{entry:?}");
        }
    }
}

/// With shadow doorbells the registers are behind. What was written to one last is no news after a close: what follows
/// it would be taken for new commands, which were carried out long ago.
#[test]
fn late_register_carries_out_nothing_again_after_a_close() {
    let disk = Held::new();
    let driver = Driver::with_policy(with(disk.clone()), StatePolicy::Retain);
    let mut host = Host::without_interrupts(driver);
    host.enable();
    host.create_pair(1, 16, 1);
    let (doorbells, events) = (DATA + (1 << 20), DATA + (1 << 20) + 4096);
    host.set_pages(doorbells, events).unwrap();
    // The page says 3, and the register, which comes late, 1.
    (1..=3).for_each(|block| _ = host.put(1, io(WRITE, block)));
    host.memory.put(doorbells + 8 - BASE, &3_u32.to_le_bytes());
    host.device.write32(0, 0x1008, 1);
    for _ in 0..3 {
        assert_eq!(host.wait(1).status, 0);
    }
    disk.seen();
    let mut host = host.reopened();
    host.put(1, io(READ, 7));
    host.ring(1);
    host.release(1);
    assert_eq!(host.wait(1).status, 0);
    assert!(host.identify(1, 0).is_ok());
    assert!(host.peek(1).is_none(), "a command was carried out again");
    assert_eq!(disk.seen(), ["read 3584 512"]);
}
