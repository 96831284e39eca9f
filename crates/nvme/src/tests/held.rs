//! Memory that a disk may still write is never given up: reads that the disk holds, under everything that
//! takes the memory, or the controller, away.

use std::time::Duration;

use vfiod_core::Errno;
use vfiod_core::dma::Perm;
use vfiod_tasks::ManualClock;
use vfiod_testing::{Driver, eventually};

use super::rig::{BASE, Command, DATA, ENABLE, Held, Host, with};
use vfiod_nvme_spec::registers::{FATAL, READY, SHUT_DOWN, SHUTDOWN, SHUTTING_DOWN};

const READ: u8 = 2;
const WRITE: u8 = 1;
/// Memory beside the host's own, and its length.
const OTHER: u64 = 1 << 40;
const LEN: u64 = 1 << 16;

/// A host, one of whose reads is held by the disk; it goes to memory at `at`.
fn holding(mut host: Host, disk: &Held, at: u64) -> Host {
    host.create_pair(1, 64, 1);
    disk.hold(true);
    host.submit(1, Command::io(READ, 0, 8, (at, 0)));
    eventually("the read is held", || disk.waiting() == 1);
    host
}

/// Ways to end a controller's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Device,
    Function,
    Set,
}

/// Lets go what the disk holds, also where a test fails: otherwise the last close waits for a time that does not
/// pass.
struct Released<'a>(&'a Held);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.hold(false);
        self.0.release();
    }
}

/// Does something that waits for the device, and lets time pass meanwhile.
fn with_time_passing<R: Send>(clock: &ManualClock, call: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let call = scope.spawn(call);
        while !call.is_finished() {
            clock.advance(Duration::from_millis(100));
            std::thread::sleep(Duration::from_millis(1));
        }
        call.join().expect("it does not panic")
    })
}

/// A reset, which fails as the disk has memory.
fn reset(device: &Driver, way: Way) {
    match way {
        Way::Device => {
            let error = device.file().reset().expect_err("the disk has memory");
            assert_eq!(error.errno(), Errno::IO);
        }
        Way::Set => {
            let error = device.file().reset_set().expect_err("the disk has memory");
            assert_eq!(error.errno(), Errno::BUSY);
        }
        Way::Function => {
            let express = device.capability(0x10).unwrap();
            let control = device.config16(express + 8);
            device.set_config16(express + 8, control | 1 << 15);
            eventually("the device is stuck", || device.device().status().failed);
        }
    }
}

/// As propolis#578 and propolis#975: commands that are held, a reset, and their end later. No reset has
/// succeeded before the disk has given the memory back; then nobody writes it any more, nothing completes, and
/// the controller can be used.
#[test]
fn held_read_ends_before_any_reset_has_succeeded() {
    for way in [Way::Device, Way::Function, Way::Set] {
        let (disk, clock) = (Held::new(), ManualClock::new());
        let mut host = Host::without_interrupts(Driver::with_clock(with(disk.clone()), &clock));
        host.enable();
        let mut host = holding(host, &disk, DATA);
        let _released = Released(&disk);
        let (_, completions) = Host::at(1);
        let device = &host.device;
        with_time_passing(&clock, || {
            reset(device, way);
            for _ in 0..3 {
                assert_eq!(disk.waiting(), 1);
                assert!(device.file().reset().is_err(), "{way:?}: reset while the disk has memory");
            }
        });
        disk.hold(false);
        disk.release();
        eventually("it can be reset", || host.device.file().reset().is_ok());
        assert!(host.peek(1).is_none(), "{way:?}: a late completion");
        host.memory.put(DATA - BASE, &[0x55; 4096]);
        host.memory.put(completions - BASE, &[0x55; 1024]);
        host.forget_queues();
        host.device.enable();
        host.enable();
        host.create_pair(2, 64, 1);
        assert_eq!(host.perform(2, Command::io(READ, 0, 8, (DATA + 8192, 0))), Ok(0));
        assert_eq!(host.memory.get(DATA - BASE, 4096), [0x55; 4096], "{way:?}");
        assert_eq!(host.memory.get(completions - BASE, 1024), [0x55; 1024], "{way:?}");
    }
}

/// A write that is to be durable is done when its data is on the disk. Its sync, which may take long, holds up
/// neither a reset nor a disable, nor who takes the memory away.
#[test]
fn held_sync_of_a_durable_write_holds_up_nothing() {
    let write = Command::io(WRITE, 3, 1, (OTHER, 0)).set(12, 1 << 30);
    let zeroes = Command::io(8, 3, 1, (0, 0)).set(12, 1 << 30);
    for (command, disables) in [(write, false), (write, true), (zeroes, false), (zeroes, true)] {
        let disk = Held::new();
        let mut host = Host::new(with(disk.clone()));
        let _released = Released(&disk);
        host.create_pair(1, 64, 1);
        host.device.map(OTHER, LEN, Perm::READ);
        disk.hold(true);
        host.submit(1, command);
        eventually("the data is held", || disk.waiting() == 1);
        disk.release();
        let flushes =
            || disk.waiting() == 1 && disk.seen().last().is_some_and(|last| last == "flush");
        eventually("the sync is held", flushes);
        host.device.unmap(OTHER, LEN).expect("the memory is nobody's");
        if disables {
            host.disable();
        } else {
            host.device.file().reset().expect("nothing is under way");
        }
        assert_eq!((disk.waiting(), host.status()), (1, 0));
        host.forget_queues();
        host.device.enable();
        host.enable();
        host.create_pair(1, 64, 1);
        disk.hold(false);
        disk.release();
        assert_eq!(host.perform(1, Command::new(0).namespace(1)), Ok(0));
    }
}

/// A flush that takes long holds up no reset: it has no memory, and changes nothing. So it is with that of a
/// shutdown.
#[test]
fn held_flush_holds_up_no_reset() {
    for shutdown in [false, true] {
        let disk = Held::new();
        let mut host = Host::new(with(disk.clone()));
        let _released = Released(&disk);
        host.create_pair(1, 64, 1);
        disk.hold(true);
        if shutdown {
            host.device.write32(0, 0x14, ENABLE | 1 << 14);
        } else {
            host.submit(1, Command::new(0).namespace(1));
        }
        eventually("the flush is held", || disk.waiting() == 1);
        host.device.file().reset().expect("nothing is under way");
        assert_eq!((disk.waiting(), host.status()), (1, 0));
        host.forget_queues();
        host.device.enable();
        host.enable();
        host.create_pair(1, 64, 1);
        // What is flushed now is flushed after what is flushed there.
        let flush = host.submit(1, Command::new(0).namespace(1));
        assert!(host.identify(1, 0).is_ok());
        assert!(host.peek(1).is_none());
        disk.hold(false);
        disk.release();
        let entry = host.wait(1);
        assert_eq!((entry.id, entry.status), (flush, 0));
    }
}

/// Commands that wait for nothing but a sync: a durable write, durable zeroes, a flush, and a fused pair.
fn only_syncing() -> [Vec<Command>; 4] {
    let durable = |opcode| Command::io(opcode, 3, 1, (DATA, 0)).set(12, 1 << 30);
    let pair = [(5, 1 << 8), (WRITE, 2 << 8)];
    let pair = pair.map(|(opcode, fuse)| durable(opcode).set(0, u32::from(opcode) | fuse));
    [vec![durable(WRITE)], vec![durable(8)], vec![Command::new(0).namespace(1)], pair.into()]
}

/// Submits commands whose data goes to the disk, until their sync is held.
fn sync(host: &mut Host, disk: &Held, commands: Vec<Command>) -> Vec<u16> {
    disk.hold(true);
    let ids = commands.into_iter().map(|command| host.put(1, command)).collect();
    host.ring(1);
    loop {
        eventually("a request is held", || disk.waiting() == 1);
        if disk.seen().last().is_some_and(|last| last == "flush") {
            return ids;
        }
        disk.release();
    }
}

/// A hot reset waits for no sync, of whatever command, nor for that of a shutdown.
#[test]
fn held_sync_holds_up_no_hot_reset() {
    for (n, commands) in only_syncing().into_iter().chain([Vec::new()]).enumerate() {
        let disk = Held::new();
        let mut host = Host::new(with(disk.clone()));
        let _released = Released(&disk);
        host.create_pair(1, 64, 1);
        if commands.is_empty() {
            disk.hold(true);
            host.device.write32(0, 0x14, ENABLE | 1 << 14);
            eventually("the flush is held", || disk.waiting() == 1);
        } else {
            sync(&mut host, &disk, commands);
        }
        let reset = host.device.file().reset_set();
        assert!(reset.is_ok(), "{n}: {reset:?}");
        assert_eq!((disk.waiting(), host.status()), (1, 0), "{n}");
        host.forget_queues();
        host.device.enable();
        host.enable();
        host.create_pair(1, 64, 1);
        disk.hold(false);
        disk.release();
        assert_eq!(host.perform(1, Command::new(0).namespace(1)), Ok(0));
        assert!(host.peek(1).is_none(), "{n}: a late completion");
    }
}

/// A hot reset that is abandoned, as the disk has memory of a read, of the same queue or another one: what has waited
/// for a sync completes after one, once, and what has waited for more than that completes when it has it.
#[test]
fn commands_that_wait_for_a_sync_complete_after_a_hot_reset_that_was_abandoned() {
    for (n, commands) in only_syncing().into_iter().enumerate() {
        let queue = 1 + n % 2;
        let (disk, clock) = (Held::new(), ManualClock::new());
        let mut host = Host::without_interrupts(Driver::with_clock(with(disk.clone()), &clock));
        let _released = Released(&disk);
        host.enable();
        host.create_pair(1, 64, 1);
        host.create_pair(2, 64, 1);
        let mut ids = sync(&mut host, &disk, commands);
        host.memory.put(DATA - BASE, &[0x55; 4096]);
        let read = host.submit(queue, Command::io(READ, 100, 8, (DATA, 0)));
        eventually("the read is held", || disk.waiting() == 2);
        with_time_passing(&clock, || reset(&host.device, Way::Set));
        assert!(host.peek(1).is_none(), "{n}: completed without its sync");
        let mut found = Vec::new();
        for _ in &ids {
            eventually("a completion after a sync", || {
                disk.release_flushes();
                host.peek(1).is_some()
            });
            let entry = host.wait(1);
            found.push((entry.id, entry.status));
        }
        found.sort_unstable();
        ids.sort_unstable();
        let expected: Vec<_> = ids.into_iter().map(|id| (id, 0)).collect();
        assert_eq!(found, expected, "{n}: without the read");
        assert!(host.peek(queue).is_none(), "{n}: the disk has the read");
        disk.hold(false);
        disk.release();
        let entry = host.wait(queue);
        assert_eq!((entry.id, entry.status), (read, 0), "{n}");
        assert_eq!(host.memory.get(DATA - BASE, 4096), [0; 4096], "{n}: the data of the read");
        assert_eq!(host.perform(1, Command::new(0).namespace(1)), Ok(0), "{n}");
        assert!(host.peek(1).is_none(), "{n}: completed twice");
    }
}

/// An unmap waits for requests to that range, and for no others.
#[test]
fn held_read_keeps_its_memory_mapped_and_no_other() {
    let disk = Held::new();
    let host = Host::new(with(disk.clone()));
    let perm = Perm::READ | Perm::WRITE;
    let memory = host.device.map(OTHER, LEN, perm);
    host.device.map(OTHER + LEN, LEN, perm);
    let mut host = holding(host, &disk, OTHER);
    let device = &host.device;
    device.unmap(OTHER + LEN, LEN).expect("nobody uses it");
    let unmap = |wait| device.file().dma_unmap(OTHER, LEN, wait);
    let refused = unmap(Duration::from_millis(20)).expect_err("the disk has it");
    assert_eq!((refused.errno(), disk.waiting()), (Errno::BUSY, 1));
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| device.unmap(OTHER, LEN));
        disk.release();
        unmap.join().unwrap().expect("nobody uses it any more");
    });
    memory.put(0, &[0x55; 4096]);
    disk.hold(false);
    assert_eq!(host.wait(1).status, 0);
    let gone = Command::io(READ, 0, 8, (OTHER, 0));
    assert_eq!(host.perform(1, gone), Err(0x04), "it is not mapped any more");
    assert_eq!(memory.get(0, 4096), [0x55; 4096]);
}

/// CC.EN = 0 and a shutdown wait as long as CAP.TO says, which the host waits as well; then the controller
/// shows fatal status. CSTS is read at once, always. When the disk has ended, all is well again.
#[test]
fn work_that_does_not_end_within_cap_to_is_fatal() {
    for shutdown in [false, true] {
        let (disk, clock) = (Held::new(), ManualClock::new());
        let host = Host::without_interrupts(Driver::with_clock(with(disk.clone()), &clock));
        let mut host = Some(host).map(|mut host| {
            host.enable();
            holding(host, &disk, DATA)
        });
        let host = host.as_mut().unwrap();
        let _released = Released(&disk);
        let timeout = Duration::from_millis(500) * (host.device.read64(0, 0) >> 24 & 0xff) as u32;
        let rtd3e =
            host.identify(1, 0).unwrap()[88..92].try_into().map(u32::from_le_bytes).unwrap();
        assert_eq!(Duration::from_micros(rtd3e.into()), timeout, "RTD3E");
        let (task, cc) =
            if shutdown { ("shutdown", ENABLE | 1 << 14) } else { ("disable", ENABLE & !1) };
        host.device.write32(0, 0x14, cc);
        eventually("it waits", || {
            let tasks = host.device.device().status().tasks;
            tasks.iter().any(|one| one.name == task && one.polls > 0)
        });
        host.rest(Duration::from_millis(20));
        clock.advance(timeout - Duration::from_millis(1));
        host.rest(Duration::from_millis(20));
        let waiting = if shutdown { READY | SHUTTING_DOWN } else { READY };
        assert_eq!(host.status(), waiting, "{task}: the time is not over");
        clock.advance(Duration::from_millis(1));
        eventually("fatal status", || host.status() == waiting | FATAL);
        disk.hold(false);
        disk.release();
        if shutdown {
            host.await_status(SHUTDOWN, SHUT_DOWN);
            assert_eq!(host.wait(1).status, 0, "what was read completes");
            assert!(disk.seen().ends_with(&["flush".to_owned()]));
            host.device.write32(0, 0x14, ENABLE & !1);
        }
        host.await_status(u32::MAX, 0);
        host.memory.put(DATA - BASE, &[0x55; 4096]);
        host.enable();
        assert!(host.identify(1, 0).is_ok());
        assert_eq!(host.memory.get(DATA + 4096 - BASE, 4096), [0; 4096]);
    }
}

/// The flush of a shutdown covers what was written before it was asked for, also if the flush of an earlier
/// one, which a reset has cut off, ends only now.
#[test]
fn shutdown_makes_durable_what_was_written_after_one_that_was_cut_off() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    disk.hold(true);
    host.device.write32(0, 0x14, ENABLE | 1 << 14);
    eventually("the flush is held", || disk.waiting() == 1);
    host.disable();
    disk.hold(false);
    host.enable();
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, Command::io(WRITE, 3, 1, (DATA, 0))), Ok(0));
    host.device.write32(0, 0x14, ENABLE | 1 << 14);
    assert_eq!(host.status() & SHUTDOWN, SHUTTING_DOWN);
    disk.seen();
    disk.hold(true);
    disk.release();
    eventually("a flush that began after the write", || disk.waiting() == 1);
    assert_eq!(host.status() & SHUTDOWN, SHUTTING_DOWN, "the write may not be durable yet");
    assert_eq!(disk.seen(), ["flush"]);
    disk.release();
    host.await_status(SHUTDOWN, SHUT_DOWN);
}

/// Memory that the client truncates: Data Transfer Error before a command is begun; in flight that, or
/// success. Nobody else is affected.
#[test]
fn truncated_memory_is_a_data_transfer_error() {
    for in_flight in [false, true] {
        for opcode in [READ, WRITE] {
            let disk = Held::new();
            let mut host = Host::new(with(disk.clone()));
            host.create_pair(1, 64, 1);
            let memory = host.device.map(OTHER, LEN, Perm::READ | Perm::WRITE);
            memory.put(0, &[7; LEN as usize]);
            let command = Command::io(opcode, 0, 8, (OTHER, 0));
            let status = if in_flight {
                disk.hold(true);
                host.submit(1, command);
                eventually("it is held", || disk.waiting() == 1);
                memory.truncate();
                disk.hold(false);
                disk.release();
                host.wait(1).status
            } else {
                memory.truncate();
                host.perform(1, command).map_or_else(|status| status, |_| 0)
            };
            assert!(status == 0x04 || in_flight && status == 0, "{opcode}: {status:#x}");
            // An SGL, and a list of PRPs, in what is not there any more.
            let sgl = Command::io(READ, 0, 1, (OTHER, 16 | 0x30 << 56)).set(0, 1 << 14 | 2);
            assert_eq!(host.perform(1, sgl), Err(0x04));
            assert_eq!(host.perform(1, Command::io(READ, 0, 24, (DATA, OTHER))), Err(0x04));
            assert_eq!(host.perform(1, Command::io(READ, 0, 8, (DATA, 0))), Ok(0));
        }
    }
}

/// Queues that the client truncates under load: fatal status, and a reset makes all well.
#[test]
fn truncated_queue_memory_is_fatal_until_a_reset() {
    for which in [0, 1] {
        let disk = Held::new();
        let mut host = Host::new(with(disk.clone()));
        let queue = host.device.map(OTHER, LEN, Perm::READ | Perm::WRITE);
        host.renew_pair(1, 64, 64);
        let (submissions, completions) = Host::at(1);
        let (submissions, completions) =
            if which == 0 { (OTHER, completions) } else { (submissions, OTHER) };
        assert_eq!(host.admin(super::rig::create_cq(1, 64, completions, 1)), Ok(0));
        assert_eq!(host.admin(super::rig::create_sq(1, 64, submissions, 1)), Ok(0));
        disk.hold(true);
        if which == 1 {
            host.submit(1, Command::io(READ, 0, 8, (DATA, 0)));
            eventually("the read is held", || disk.waiting() == 1);
        }
        queue.truncate();
        disk.hold(false);
        disk.release();
        host.device.write32(0, 0x1008, 5);
        host.await_fatal();
        host.disable();
        assert_eq!(host.status(), 0);
        host.enable();
        host.create_pair(1, 64, 1);
        assert_eq!(host.perform(1, Command::io(READ, 0, 8, (DATA, 0))), Ok(0));
    }
}
