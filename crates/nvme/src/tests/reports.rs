//! What broke somebody's VM with another controller. Each test names the report; others that have one are
//! beside what they are about.

use std::collections::HashSet;

use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, Held, Host, LEN, Way, create_cq, create_sq, nvme, with};
use vfiod_nvme_spec::registers::{FATAL, READY};

const READ: u8 = 2;
const FORMAT: u8 = 0x80;

fn read(n: u64) -> Command {
    Command::io(READ, n, 1, (DATA, 0))
}

/// FreeBSD D35453: doorbells of a controller that is not enabled mean nothing for the one that is enabled next.
#[test]
fn doorbells_before_the_controller_is_enabled_mean_nothing() {
    let mut host = Host::disabled(nvme());
    let early = |host: &Host| {
        for bell in 0..130 {
            host.device.write32(0, 0x1000 + 4 * bell, 3);
        }
        assert_eq!(host.status() & FATAL, 0);
    };
    for _ in 0..3 {
        early(&host);
        host.enable();
        assert_eq!(host.status(), READY);
        host.create_pair(1, 16, 1);
        assert_eq!(host.perform(1, read(0)), Ok(0));
        assert!(host.peek(0).is_none() && host.peek(1).is_none());
        // No event tells of them.
        let event = host.submit(0, Command::new(12));
        assert!(host.identify(1, 0).is_ok());
        let abort = host.submit(0, Command::new(8).set(10, u32::from(event) << 16));
        let mut entries = [host.wait(0), host.wait(0)];
        entries.sort_by_key(|entry| entry.id != abort);
        assert_eq!((entries[0].result, entries[1].status), (0, 0x07), "it was outstanding");
        // Amid the end of the work, and after it.
        host.device.write32(0, 0x14, super::rig::ENABLE & !1);
        early(&host);
        host.await_status(READY, 0);
        host.forget_queues();
    }
}

/// FreeBSD D35453: after a Format that is refused the phase tags of all queues are what they were.
#[test]
fn refused_formats_leave_the_phase_of_all_queues() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 3, 1);
    for n in 0..50 {
        let (command, status) = match n % 3 {
            0 => (Command::new(FORMAT).namespace(1).set(10, 2), 0x10a),
            1 => (Command::new(FORMAT).namespace(2), 0x02),
            _ => (Command::new(FORMAT).namespace(1).set(10, 7 << 9), 0x02),
        };
        assert_eq!(host.admin(command), Err(status), "round {n}");
        let id = host.submit(1, read(0));
        let entry = host.wait(1);
        assert_eq!((entry.id, entry.status, u32::from(entry.head)), (id, 0, (n + 1) % 3));
        assert!(host.peek(0).is_none() && host.peek(1).is_none(), "round {n}");
    }
}

/// openvmm#1582, spdk#2147: some hosts move the admin queue by its register alone, others by the page as well.
#[test]
fn admin_queue_is_heard_by_either_way() {
    let mut host = Host::new(nvme());
    host.set_pages(BASE + LEN - 8192, BASE + LEN - 4096).unwrap();
    let ways = [Way::Register, Way::Page, Way::Both, Way::Page, Way::Page];
    for round in 0..200_usize {
        // A host that leaves the page out is heard if it has used the register in this round.
        let way = |n: usize| ways[(round + n) % 5];
        let id = host.put(0, Command::new(6).prps(DATA, 0).set(10, 1));
        host.ring_by(0, way(0));
        eventually(&format!("round {round}"), || host.peek(0).is_some());
        let entry = host.poll(0).unwrap();
        assert_eq!((entry.id, entry.status), (id, 0));
        host.release_by(0, way(2));
    }
}

/// A doorbell that goes backwards, or past what there is, is an event, and the queue goes on as it was.
#[test]
fn doorbells_that_go_backwards_are_an_event() {
    let mut host = Host::new(nvme());
    let (submissions, completions) = Host::at(1);
    host.renew_pair(1, 16, 3);
    assert_eq!(host.admin(create_cq(1, 3, completions, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 16, submissions, 1)), Ok(0));
    let is_event = |host: &mut Host, offset, value| {
        let event = host.submit(0, Command::new(12));
        assert!(host.identify(1, 0).is_ok());
        host.device.write32(0, offset, value);
        let entry = host.wait(0);
        assert_eq!((entry.id, entry.result), (event, 0x1_0100), "{offset:#x}: {value:#x}");
        // To read the log unmasks the type.
        assert_eq!(host.admin(Command::new(2).prps(DATA, 0).set(10, 1 | 15 << 16)), Ok(0));
    };
    // Two of ten complete: there is place for no more.
    let mut ids: Vec<u16> = (0..10).map(|n| host.put(1, read(n))).collect();
    host.ring(1);
    eventually("a full queue", || host.memory.get(completions + 30 - BASE, 1)[0] & 1 == 1);
    for (offset, value) in [
        (0x1008, 9),
        (0x1008, 5),
        (0x1008, 16),
        (0x1008, 0xffff),
        (0x1008, 0xffff_000b),
        (0x100c, 3),
        (0x100c, 0xffff),
    ] {
        is_event(&mut host, offset, value);
    }
    while !ids.is_empty() {
        let entry = host.wait(1);
        assert_eq!(entry.status, 0);
        ids.retain(|id| *id != entry.id);
    }
    assert!(host.peek(1).is_none(), "a command that nobody has submitted");
    // All entries are taken: each other value is past the last one. The head is 10 modulo 3.
    for value in [0, 2] {
        is_event(&mut host, 0x100c, value);
    }
    for n in 0..40 {
        assert_eq!(host.perform(1, read(n)), Ok(0));
    }
}

/// openvmm#3474, propolis#308: each identifier at 0, 1, its maximum, beyond it, and 0xffff: a status, and
/// nothing else.
#[test]
fn identifiers_at_their_limits_have_their_status() {
    let mut host = Host::new(nvme());
    let (submissions, completions) = Host::at(60);
    let cq = |id, entries, vector| create_cq(id, entries, completions, vector);
    let sq = |id, entries, of| create_sq(id, entries, submissions, of);
    let delete_cq = |id: usize| Command::new(4).set(10, id as u32);
    let delete_sq = |id: usize| Command::new(0).set(10, id as u32);
    // Queues: 1 to 64. Each is made, and is gone again.
    for (id, status) in [(0, 0x101), (1, 0), (64, 0), (65, 0x101), (0xffff, 0x101)] {
        let outcome = if status == 0 { Ok(0) } else { Err(status) };
        assert_eq!(host.admin(cq(id, 16, 1)), outcome, "CQ {id}");
        let of_own = if status == 0 { id } else { 1 };
        assert_eq!(host.admin(sq(id, 16, of_own)), outcome, "SQ {id}");
        assert_eq!(host.admin(delete_sq(id)), outcome, "SQ {id}");
        assert_eq!(host.admin(delete_cq(id)), outcome, "CQ {id}");
    }
    // The completion queue of a submission queue.
    for (of, status) in [(0, 0x101), (1, 0x100), (64, 0x100), (65, 0x101), (0xffff, 0x101)] {
        assert_eq!(host.admin(sq(2, 16, of)), Err(status), "of CQ {of}");
    }
    // Entries: 2 to 4096.
    for (entries, status) in [(1, 0x102), (2, 0), (4096, 0), (4097, 0x102), (0x1_0000, 0x102)] {
        let outcome = if status == 0 { Ok(0) } else { Err(status) };
        assert_eq!(host.admin(cq(2, entries, 1)), outcome, "CQ of {entries}");
        if status == 0 {
            assert_eq!(host.admin(delete_cq(2)), Ok(0));
        }
        assert_eq!(host.admin(cq(3, 16, 1)), Ok(0));
        assert_eq!(host.admin(sq(2, entries, 3)), outcome, "SQ of {entries}");
        if status == 0 {
            assert_eq!(host.admin(delete_sq(2)), Ok(0));
        }
        assert_eq!(host.admin(delete_cq(3)), Ok(0));
    }
    // Vectors: 0 to 64.
    for (vector, status) in [(0, 0), (1, 0), (64, 0), (65, 0x108), (0xffff, 0x108)] {
        let outcome = if status == 0 { Ok(0) } else { Err(status) };
        assert_eq!(host.admin(cq(2, 16, vector)), outcome, "vector {vector}");
        if status == 0 {
            assert_eq!(host.admin(delete_cq(2)), Ok(0));
        }
        let outcome = outcome.map(|_| vector).map_err(|_| 0x02);
        let get = Command::new(10).set(10, 9).set(11, vector);
        let set = Command::new(9).set(10, 9).set(11, vector);
        assert_eq!(host.admin(get), outcome, "vector {vector}");
        assert_eq!(host.admin(set), outcome.map(|_| 0), "vector {vector}");
    }
    // What an Abort names.
    for queue in [0, 1, 64, 65, 0xffff] {
        for id in [0, 1, 0xffff] {
            let abort = Command::new(8).set(10, queue | id << 16);
            assert_eq!(host.admin(abort), Ok(1), "queue {queue}, command {id:#x}");
        }
    }
    // Controllers, by the command sets that they have: this one has number 1.
    for (id, status) in [(0, 0x02), (1, 0), (2, 0x02), (0xfffe, 0x02), (0xffff, 0)] {
        let outcome = host.identify(0x1c | id << 16, 0).map_or_else(|status| status, |_| 0);
        assert_eq!(outcome, status, "controller {id:#x}");
    }
    // Formats: 0 and 1.
    for (format, status) in [(1, 0), (2, 0x10a), (15, 0x10a), (0, 0)] {
        let outcome = if status == 0 { Ok(0) } else { Err(status) };
        let command = Command::new(FORMAT).namespace(1).set(10, format);
        assert_eq!(host.admin(command), outcome, "format {format}");
    }
    // Sensors: that of the composite temperature alone, and all.
    for (sensor, status) in [(0, 0), (1, 0x02), (8, 0x02), (9, 0x02), (14, 0x02), (15, 0)] {
        let outcome = if status == 0 { Ok(0) } else { Err(status) };
        let set = Command::new(9).set(10, 4).set(11, 350 | sensor << 16);
        assert_eq!(host.admin(set), outcome, "sensor {sensor}");
    }
    // Command identifiers: any.
    host.create_pair(1, 16, 1);
    for id in [0, 1, 0x8000, 0xffff_u32] {
        host.put(1, read(0));
        host.memory.put(host.last(1) + 2 - BASE, &[id as u8, (id >> 8) as u8]);
        host.ring(1);
        let entry = host.wait(1);
        assert_eq!((u32::from(entry.id), entry.status), (id, 0));
    }
    assert_eq!(host.status(), READY);
}

/// spdk#1883, spdk#1864, and what hung SPDK's target: commands that are aborted under load, again and again.
/// Each completes once, and each Abort says that it was too late.
#[test]
fn aborts_under_load_lose_and_repeat_nothing() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    (1..=2).for_each(|id| host.create_pair(id, 64, 1));
    for round in 0..10 {
        disk.hold(true);
        let mut open = HashSet::new();
        for n in 0..32 {
            for queue in 1..=2 {
                open.insert((queue, host.submit(queue, read(n))));
            }
        }
        eventually("all are held", || disk.waiting() == 64);
        let all: Vec<_> = open.iter().copied().collect();
        for (n, (queue, id)) in all.into_iter().enumerate() {
            if n == 32 {
                disk.hold(false);
                disk.release();
            }
            let abort = Command::new(8).set(10, queue as u32 | u32::from(id) << 16);
            assert_eq!(host.admin(abort), Ok(1), "round {round}");
        }
        while let Some((queue, _)) = open.iter().next().copied() {
            let entry = host.wait(queue);
            assert_eq!(entry.status, 0);
            assert!(open.remove(&(queue, entry.id)), "round {round}: {entry:?}");
        }
        assert!(host.peek(1).is_none() && host.peek(2).is_none());
    }
}

/// A host that lets the controller reach no memory for a while, under load: what is due waits for it.
#[test]
fn completions_wait_while_the_device_may_not_reach_memory() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    for _ in 0..5 {
        disk.hold(true);
        let mut ids: Vec<u16> = (0..8).map(|n| host.submit(1, read(n))).collect();
        eventually("all are held", || disk.waiting() == 8);
        host.device.set_config16(4, 3);
        disk.hold(false);
        disk.release();
        host.rest(std::time::Duration::from_millis(5));
        assert_eq!((host.peek(1), host.status()), (None, READY));
        host.device.set_config16(4, 7);
        while !ids.is_empty() {
            let entry = host.wait(1);
            ids.retain(|id| *id != entry.id);
        }
        assert_eq!(host.perform(1, read(0)), Ok(0));
    }
}

/// A guest that changes an entry, a list of PRPs and an SGL in mapped memory while they are judged: each command
/// is what it was at one moment, and no byte beside its data changes.
#[test]
fn memory_that_changes_amid_a_command_is_judged_as_it_was_read() {
    const PAGE: u64 = 4096;
    let mut host = Host::new(nvme());
    host.create_pair(1, 4, 1);
    host.memory.put(DATA - BASE, &[7; 4096]);
    for block in 0..32 {
        assert_eq!(host.perform(1, Command::io(1, 8 * block, 8, (DATA, 0))), Ok(0));
    }
    // Data goes to the third page behind this, or to an address that is not allowed: by a list of PRPs, and by
    // a segment whose descriptor is longer or shorter than the data.
    let (list, segment, data) = (DATA, DATA + PAGE, DATA + 4 * PAGE);
    let descriptor = |len: u32| [&data.to_le_bytes()[..], &len.to_le_bytes(), &[0; 4]].concat();
    let entry = Host::at(1).0;
    let writes = [
        (list, data.to_le_bytes().to_vec(), (data + 1).to_le_bytes().to_vec()),
        (segment, descriptor(4096), descriptor(511)),
        // The first block of the command, in each of the places of the queue.
        (entry + 44, vec![0], vec![0xff]),
    ];
    host.memory.put(list + 8 - BASE, &(data + 8 * PAGE).to_le_bytes());
    let prps = Command::io(READ, 0, 24, (data + 16 * PAGE, list));
    let sgl = (segment, u64::from(16_u32) | 0x30 << 56);
    let sgl = Command::io(READ, 0, 8, sgl).set(0, 1 << 14 | u32::from(READ));
    let memory = host.memory.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(ordering) {
                for (at, one, other) in &writes {
                    memory.put(at - BASE, other);
                    memory.put(at - BASE, one);
                }
            }
        });
        let mut seen = HashSet::new();
        // Until something was changed, on a machine that lets the other thread wait.
        for round in 0..100_000 {
            let both = seen.contains(&Ok(0)) && seen.len() > 2;
            if round >= 300 && both {
                break;
            }
            let command = [prps, sgl][round % 2];
            // What is beside the third page, which data would reach that begins at the other address.
            host.memory.put(data - PAGE - BASE, &[0x55; 3 * PAGE as usize]);
            let outcome = host.perform(1, command).map_err(|status| (round % 2, status));
            let around = host.memory.get(data - PAGE - BASE, 3 * PAGE as usize);
            let (before, rest) = around.split_at(PAGE as usize);
            let (inside, behind) = rest.split_at(PAGE as usize);
            assert!(before.iter().chain(behind).all(|byte| *byte == 0x55), "round {round}");
            let expected = if outcome.is_ok() { 7 } else { 0x55 };
            assert!(inside.iter().all(|byte| *byte == expected), "round {round}: {outcome:x?}");
            seen.insert(outcome);
        }
        stop.store(true, ordering);
        let may: HashSet<_> =
            [Ok(0), Err((0, 0x13)), Err((1, 0x0f)), Err((0, 0x80)), Err((1, 0x80))].into();
        assert!(seen.is_subset(&may), "{seen:x?}");
        assert!(seen.contains(&Ok(0)) && seen.len() > 2, "nothing was changed: {seen:x?}");
    });
}
