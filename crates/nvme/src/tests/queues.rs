//! I/O queues: how they are created and deleted, and how they go round.

use vfiod_core::dma::Perm;
use vfiod_testing::eventually;

use super::rig::{Command, DATA, Held, Host, create_cq, create_sq, nvme, with};

fn delete_sq(id: u32) -> Command {
    Command::new(0).set(10, id)
}

fn delete_cq(id: u32) -> Command {
    Command::new(4).set(10, id)
}

#[test]
fn every_error_of_create_and_delete() {
    let mut host = Host::new(nvme());
    let at = DATA;
    let identifiers = [0, 65, 0x100, 0xffff];
    for id in identifiers {
        assert_eq!(host.admin(create_cq(id, 16, at, 1)), Err(0x101), "CQ {id}");
        assert_eq!(host.admin(create_sq(id, 16, at, 1)), Err(0x101), "SQ {id}");
        assert_eq!(host.admin(delete_cq(id as u32)), Err(0x101), "CQ {id}");
        assert_eq!(host.admin(delete_sq(id as u32)), Err(0x101), "SQ {id}");
    }
    assert_eq!(host.admin(create_sq(1, 16, at, 0)), Err(0x101), "the admin CQ");
    assert_eq!(host.admin(create_sq(1, 16, at, 65)), Err(0x101));
    assert_eq!(host.admin(create_sq(1, 16, at, 9)), Err(0x100), "a CQ that is not there");
    for entries in [1, 4097, 0x1_0000] {
        assert_eq!(host.admin(create_cq(1, entries, at, 1)), Err(0x102), "{entries} entries");
    }
    assert_eq!(host.admin(create_cq(1, 16, at, 65)), Err(0x108));
    assert_eq!(host.admin(create_cq(1, 16, at, 0xffff)), Err(0x108));
    assert_eq!(host.admin(create_cq(1, 16, at + 8, 1)), Err(0x13));
    assert_eq!(host.admin(create_cq(1, 16, at, 1).set(11, 0)), Err(0x02), "not contiguous");
    // A vector that is not used may be any.
    assert_eq!(host.admin(create_cq(1, 16, at, 1).set(11, 0xffff << 16 | 1)), Ok(0));
    assert_eq!(host.admin(create_cq(1, 16, at, 1)), Err(0x101), "it is there");
    assert_eq!(host.admin(create_sq(1, 1, at, 1)), Err(0x102));
    assert_eq!(host.admin(create_sq(1, 16, at + 0x1000, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 16, at + 0x1000, 1)), Err(0x101), "it is there");
    assert_eq!(host.admin(delete_cq(1)), Err(0x10c), "it is in use");
    assert_eq!(host.admin(delete_sq(2)), Err(0x101), "it is not there");
    assert_eq!(host.admin(delete_sq(1)), Ok(0));
    assert_eq!(host.admin(delete_cq(1)), Ok(0));
    assert_eq!(host.admin(delete_cq(1)), Err(0x101));
}

#[test]
fn entry_sizes_that_are_not_set_refuse_queues() {
    let mut host = Host::new(nvme());
    host.device.write32(0, 0x14, 1);
    assert_eq!(host.admin(create_cq(1, 16, DATA, 1)), Err(0x102));
    host.device.write32(0, 0x14, super::rig::ENABLE);
    assert_eq!(host.admin(create_cq(1, 16, DATA, 1)), Ok(0));
    host.device.write32(0, 0x14, 4 << 20 | 1);
    assert_eq!(host.admin(create_sq(1, 16, DATA, 1)), Err(0x102));
}

#[test]
fn all_queue_pairs_at_once() {
    let mut host = Host::new(nvme());
    for id in 1..=64 {
        host.create_pair(id, 4096, id as u32 % 65);
    }
    for id in 1..=64 {
        host.submit(id, Command::io(2, id as u64, 1, (DATA, 0)));
    }
    for id in 1..=64 {
        assert_eq!(host.wait(id).status, 0);
    }
}

#[test]
fn queues_go_round_with_the_phase_and_the_head() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 3, 1);
    for n in 0_u32..50 {
        host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
        let entry = host.wait(1);
        assert_eq!((entry.status, u32::from(entry.head)), (0, (n + 1) % 3), "{n}");
    }
}

/// A completion queue with one usable place, shared by four submission queues.
#[test]
fn shared_completion_queue_of_two_entries_completes_everything() {
    let mut host = Host::new(nvme());
    let (_, completions) = Host::at(1);
    assert_eq!(host.admin(create_cq(1, 2, completions, 1)), Ok(0));
    for id in 1..=4 {
        host.renew_pair(id, 64, 2);
        assert_eq!(host.admin(create_sq(id, 64, Host::at(id).0, 1)), Ok(0));
    }
    let mut open = std::collections::HashSet::new();
    for round in 0..30 {
        for id in 1..=4 {
            open.insert((id, host.put(id, Command::io(2, round, 1, (DATA, 0)))));
        }
    }
    (1..=4).for_each(|id| host.ring(id));
    while !open.is_empty() {
        let entry = host.wait(1);
        assert!(open.remove(&(usize::from(entry.queue), entry.id)), "{entry:?}");
    }
    assert!(host.peek(1).is_none());
}

/// What is left of a full queue waits until the host takes an entry, and nothing is written over.
#[test]
fn full_completion_queue_waits_for_the_host() {
    let mut host = Host::new(nvme());
    host.renew_pair(1, 64, 4);
    let (submissions, completions) = Host::at(1);
    assert_eq!(host.admin(create_cq(1, 4, completions, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 64, submissions, 1)), Ok(0));
    let ids: Vec<u16> = (0..20).map(|_| host.put(1, Command::io(2, 0, 1, (DATA, 0)))).collect();
    host.ring(1);
    let mut seen = Vec::new();
    while seen.len() < ids.len() {
        eventually("a completion", || host.peek(1).is_some());
        let before = seen.len();
        while let Some(entry) = host.poll(1) {
            seen.push(entry.id);
        }
        assert!(seen.len() - before <= 3, "more than there are places");
        host.release(1);
    }
    seen.sort_unstable();
    assert_eq!(seen, ids);
}

/// What was rung for a deleted queue means nothing for one that is created in its place.
#[test]
fn recreated_queue_does_not_hear_rings_of_before() {
    let mut host = Host::new(nvme());
    for _ in 0..10 {
        host.create_pair(1, 64, 1);
        for _ in 0..5 {
            assert_eq!(host.perform(1, Command::io(2, 0, 1, (DATA, 0))), Ok(0));
        }
        assert_eq!(host.admin(delete_sq(1)), Ok(0));
        // Too late: an event, if anybody asked for it.
        host.device.write32(0, 0x1008, 40);
        assert_eq!(host.admin(delete_cq(1)), Ok(0));
    }
    host.create_pair(1, 64, 1);
    // What resumes rings every doorbell again that was ever rung.
    host.device.device().save(&mut vfiod_core::DescriptorTable::new()).unwrap();
    assert!(host.identify(1, 0).is_ok());
    assert!(host.peek(1).is_none(), "a command that nobody has submitted");
    assert_eq!(host.perform(1, Command::io(2, 0, 1, (DATA, 0))), Ok(0));
}

#[test]
fn delete_waits_for_commands_that_the_disk_has() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    disk.hold(true);
    let read = host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    eventually("the read is held", || disk.waiting() == 1);
    let delete = host.submit(0, delete_sq(1));
    // Other admin commands do not wait for that.
    let identify = host.submit(0, Command::new(6).prps(DATA + 4096, 0).set(10, 1));
    assert_eq!(host.wait(0).id, identify);
    assert_eq!(host.admin(delete_sq(1)), Err(0x101), "it is being deleted");
    disk.release();
    assert_eq!(host.wait(0).id, delete);
    assert_eq!(host.peek(1).map(|entry| (entry.id, entry.status)), Some((read, 0)));
}

/// Two ranges that are deallocated by one command, as one is held by the disk.
fn deallocate_two_ranges(host: &mut Host, disk: &Held) {
    host.create_pair(1, 64, 1);
    let ranges: Vec<u8> = [0u64, 1024]
        .iter()
        .flat_map(|first| [&[0; 4][..], &256u32.to_le_bytes(), &first.to_le_bytes()].concat())
        .collect();
    host.memory.put(DATA - super::rig::BASE, &ranges);
    disk.hold(true);
    host.submit(1, Command::new(9).namespace(1).prps(DATA, 0).set(10, 1).set(11, 4));
    vfiod_testing::eventually("the first range is held", || disk.waiting() == 1);
}

const FIRST_RANGE: [&str; 1] = ["deallocate 0 131072"];

/// Nobody gets the device while the disk does what was asked for before; it would change what the next
/// user writes. What was not begun is not done at all.
#[test]
fn disk_has_done_with_one_user_before_the_next_one_has_the_device() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    deallocate_two_ranges(&mut host, &disk);
    // The task is given up after two seconds, its request is not.
    assert!(host.device.file().reset().is_err());
    assert!(host.device.file().reset().is_err(), "reset while the disk changes something");
    disk.hold(false);
    disk.release();
    vfiod_testing::eventually("it can be reset", || host.device.file().reset().is_ok());
    assert_eq!(disk.seen(), FIRST_RANGE);
}

#[test]
fn commands_that_take_long_end_soon_when_the_controller_is_disabled() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    deallocate_two_ranges(&mut host, &disk);
    host.device.write32(0, 0x14, super::rig::ENABLE & !1);
    disk.hold(false);
    disk.release();
    host.await_status(1, 0);
    assert_eq!(disk.seen(), FIRST_RANGE);
}

/// A held command delays none of the same queue, and those that end first complete first.
#[test]
fn held_command_does_not_hold_up_others() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    disk.hold(true);
    let held = host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    eventually("the read is held", || disk.waiting() == 1);
    disk.hold(false);
    for n in 0..20 {
        assert_eq!(host.perform(1, Command::io(2, n, 1, (DATA + 4096, 0))), Ok(0));
    }
    disk.release();
    assert_eq!(host.wait(1).id, held);
}

#[test]
fn queue_memory_that_vanishes_is_fatal() {
    for which in [0, 1] {
        let mut host = Host::new(nvme());
        let _rings = host.device.map(1 << 40, 1 << 16, Perm::READ | Perm::WRITE);
        host.renew_pair(1, 16, 16);
        let (own, other) = (Host::at(1), (1 << 40, (1 << 40) + 0x8000));
        let (submissions, completions) =
            if which == 0 { (other.0, own.1) } else { (own.0, other.1) };
        assert_eq!(host.admin(create_cq(1, 16, completions, 1)), Ok(0));
        assert_eq!(host.admin(create_sq(1, 16, submissions, 1)), Ok(0));
        host.device.unmap(1 << 40, 1 << 16).unwrap();
        host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
        host.await_fatal();
        host.disable();
        host.enable();
        assert!(host.identify(1, 0).is_ok());
    }
}

/// An entry would be past the end of all addresses.
#[test]
fn queue_that_does_not_fit_below_the_end_of_all_addresses_is_fatal() {
    let mut host = Host::new(nvme());
    let page = 0_u64.wrapping_sub(4096);
    let entries = host.device.map(page, 4096, Perm::READ | Perm::WRITE);
    host.renew_pair(1, 16, 512);
    assert_eq!(host.admin(create_cq(1, 512, page, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 16, Host::at(1).0, 1)), Ok(0));
    for n in 0..4096 / 16 {
        host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
        vfiod_testing::eventually("an entry", || entries.get(16 * n + 14, 1)[0] & 1 == 1);
    }
    host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    host.await_fatal();
    host.disable();
    // The same with submissions.
    host.enable();
    host.renew_pair(1, 128, 128);
    assert_eq!(host.admin(create_cq(1, 128, Host::at(1).1, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 128, page, 1)), Ok(0));
    host.device.write32(0, 0x1008, 100);
    host.await_fatal();
    host.disable();
}

/// Counts lines of the log.
struct Lines(std::sync::atomic::AtomicUsize);

impl tracing::Subscriber for &'static Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn controller_that_its_host_lets_fail_again_and_again_does_not_fill_the_log() {
    static LINES: Lines = Lines(std::sync::atomic::AtomicUsize::new(0));
    let lines = || LINES.0.load(std::sync::atomic::Ordering::SeqCst);
    let device = vfiod_testing::Driver::without_workers(nvme());
    device.enable();
    let start = std::time::Instant::now();
    tracing::subscriber::with_default(&LINES, || {
        for _ in 0..200 {
            // There is no memory where the queues are.
            device.write32(0, 0x24, 0x000f_000f);
            device.write32(0, 0x14, super::rig::ENABLE);
            device.write32(0, 0x1000, 1);
            device.settle();
            assert_eq!(device.read32(0, 0x1c) & 2, 2, "fatal");
            device.write32(0, 0x14, 0);
            device.settle();
            assert_eq!(device.read32(0, 0x1c), 0);
        }
    });
    let most = start.elapsed().as_secs() as usize + 2;
    assert!((1..=most).contains(&lines()), "{} lines, at most {most}", lines());
}

#[test]
fn interrupts_come_with_each_completion_and_masked_ones_when_unmasked() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 16, 2);
    host.interrupts[2].count();
    for _ in 0..5 {
        host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
        host.interrupts[2].wait();
        assert_eq!(host.wait(1).status, 0);
    }
    host.device.write32(0, 0x0c, 1 << 2);
    assert_eq!((host.device.read32(0, 0x0c), host.device.read32(0, 0x10)), (4, 4));
    host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    eventually("a completion", || host.peek(1).is_some());
    assert!(host.identify(1, 0).is_ok());
    assert_eq!(host.interrupts[2].count(), 0);
    host.device.write32(0, 0x10, 1 << 2);
    host.interrupts[2].wait();
    host.wait(1);
    // Nothing is left to be told of.
    host.device.write32(0, 0x0c, 1 << 2);
    host.device.write32(0, 0x10, 1 << 2);
    assert_eq!(host.interrupts[2].count(), 0);
}

/// A host whose controller runs only when it is let, so that no time passes that nobody sees.
fn paused_host() -> Host {
    let mut host = Host::without_interrupts(vfiod_testing::Driver::without_workers(nvme()));
    host.interrupts =
        (0..4).map(|vector| host.device.interrupt(vfiod_pci::irq_index::MSIX, vector)).collect();
    host.enable();
    let (submissions, completions) = Host::at(1);
    host.renew_pair(1, 64, 64);
    complete(&mut host, 0, create_cq(1, 64, completions, 1));
    complete(&mut host, 0, create_sq(1, 64, submissions, 1));
    host
}

/// Performs a command at once.
fn complete(host: &mut Host, queue: usize, command: Command) {
    host.submit(queue, command);
    host.device.settle();
    assert_eq!(host.poll(queue).map(|entry| entry.status), Some(0), "{command:x?}");
    host.release(queue);
}

#[test]
fn coalesced_interrupt_waits_for_others_and_comes_with_the_time() {
    let read = Command::io(2, 0, 1, (DATA, 0));
    let set = |feature, value| Command::new(9).set(10, feature).set(11, value);
    let mut host = paused_host();
    complete(&mut host, 0, set(8, 0xff << 8 | 0xff));
    // It comes at once only if the machine has let the time of 25.5 ms pass meanwhile.
    let is_held = |host: &mut Host| {
        host.interrupts[1].count();
        host.submit(1, read);
        host.device.settle();
        let held = host.interrupts[1].count() == 0;
        eventually("the time is over", || {
            host.device.settle();
            !held || host.interrupts[1].count() > 0
        });
        assert_eq!(host.poll(1).map(|entry| entry.status), Some(0));
        host.release(1);
        held
    };
    assert!((0..100).any(|_| is_held(&mut host)), "no interrupt waits");
    // Not those of the admin queue, nor of a vector that is not coalesced, nor of an error.
    host.interrupts[0].count();
    complete(&mut host, 0, set(9, 1 << 16 | 1));
    assert_eq!(host.interrupts[0].count(), 1);
    assert!((0..5).all(|_| !is_held(&mut host)), "the vector is not coalesced");
    complete(&mut host, 0, set(9, 1));
    host.submit(1, read.set(10, 1 << 30));
    host.device.settle();
    assert_eq!(host.interrupts[1].count(), 1, "an error");
}

/// An interrupt that waits comes before the controller is saved: what is restored knows of none.
#[test]
fn coalesced_interrupt_comes_before_a_save() {
    let mut host = paused_host();
    complete(&mut host, 0, Command::new(9).set(10, 8).set(11, 0xff << 8 | 0xff));
    host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    host.device.settle();
    host.device.device().save(&mut vfiod_core::DescriptorTable::new()).unwrap();
    assert!(host.interrupts[1].count() > 0);
}
