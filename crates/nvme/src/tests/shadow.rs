//! Shadow doorbells (5.11, B.5).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfiod_core::dma::{Completion, DmaPeer, Perm};
use vfiod_core::{DescriptorTable, StatePolicy};
use vfiod_disk::Memory;
use vfiod_pci::irq_index::INTX;
use vfiod_testing::{Driver, eventually};

use super::rig::{
    BASE, BLOCKS, Command, DATA, ENABLE, Host, LEN, Way, create_cq, create_sq, nvme, with,
};
use vfiod_nvme_spec::registers::{FATAL, READY, SHUT_DOWN, SHUTDOWN};

const PAGE: u64 = 4096;
/// Where the pages are.
const DOORBELLS: u64 = BASE + LEN - 2 * PAGE;
const EVENTS: u64 = BASE + LEN - PAGE;

/// A host with shadow doorbells and queue pairs: the first from before, the others from afterwards.
fn host(pairs: &[u32]) -> Host {
    let mut host = Host::new(nvme());
    for (n, entries) in pairs.iter().enumerate() {
        if n == 1 {
            host.set_pages(DOORBELLS, EVENTS).unwrap();
        }
        host.create_pair(n + 1, *entries, 1);
    }
    if pairs.len() < 2 {
        host.set_pages(DOORBELLS, EVENTS).unwrap();
    }
    host
}

fn read(n: u64) -> Command {
    Command::io(2, n % BLOCKS, 1, (DATA, 0))
}

#[test]
fn commands_by_shadow_doorbells_complete_at_every_depth() {
    let mut host = host(&[64, 64, 3]);
    assert_eq!(host.identify(1, 0).unwrap()[257], 1, "OACS");
    let registers = host.registers.get();
    let mut moved = 0;
    for round in 0..60 {
        for queue in 1..=3 {
            let depth = if queue == 3 { 2 } else { 1 + round % 40 };
            let ids = (0..depth).map(|n| host.submit(queue, read(n))).collect();
            moved += 2 * depth;
            host.wait_all(queue, ids);
        }
        // The admin queue stays on its register.
        assert!(host.identify(1, 0).is_ok());
    }
    let registers = host.registers.get() - registers - 2 * 60;
    assert!(u64::from(registers) < moved, "each of {moved} doorbells was asked for");
}

/// Each queue by the register alone, by the page, and by both, in turns (openvmm#1582, spdk#2147).
#[test]
fn both_ways_of_each_queue_mean_one_value() {
    let mut host = host(&[16, 32, 64]);
    let mut number = 7_u32;
    let mut by_page = 0;
    let mut next = || {
        number = number.wrapping_mul(1_103_515_245).wrapping_add(12345);
        let ways = [Way::Register, Way::Page, Way::Page, Way::Both];
        // A host that leaves the page out is heard if it has used the register in this round.
        by_page = if by_page == 3 { 0 } else { by_page + 1 };
        if by_page == 0 { Way::Register } else { ways[(number >> 20) as usize % 4] }
    };
    for round in 0..600 {
        let queue = 1 + round as usize % 3;
        let depth = 1 + round % 3;
        let mut ids: Vec<u16> = (0..depth).map(|_| host.put(queue, read(round))).collect();
        host.ring_by(queue, next());
        while !ids.is_empty() {
            eventually(&format!("round {round}: {ids:?}"), || host.peek(queue).is_some());
            let entry = host.poll(queue).unwrap();
            host.release_by(queue, next());
            ids.retain(|id| *id != entry.id);
        }
    }
}

/// A completion queue, of one usable place or of a few, shared by four submission queues (propolis#1008, #1023,
/// #1026, #1043).
#[test]
fn shared_completion_queue_that_is_full_completes_everything() {
    for entries in [2, 16] {
        let mut host = host(&[]);
        let (_, completions) = Host::at(1);
        assert_eq!(host.admin(create_cq(1, entries, completions, 1)), Ok(0));
        for id in 1..=4 {
            host.renew_pair(id, 64, entries);
            assert_eq!(host.admin(create_sq(id, 64, Host::at(id).0, 1)), Ok(0));
        }
        for round in 0..2 {
            let mut open = std::collections::HashSet::new();
            for n in 0..if entries == 2 { 5 } else { 30 } {
                for id in 1..=4 {
                    open.insert((id, host.put(id, read(n))));
                }
            }
            (1..=4).for_each(|id| host.ring(id));
            // One entry at first: then the event index is right behind the head of a queue that is full again,
            // and none of the entries that it has passes that.
            let mut most = 1;
            while !open.is_empty() {
                eventually("a completion", || host.peek(1).is_some());
                // The controller waits for places before the host takes any entry.
                host.rest(Duration::from_millis(10));
                for _ in 0..std::mem::replace(&mut most, entries) {
                    let Some(entry) = host.poll(1) else { break };
                    host.release(1);
                    let is_new = open.remove(&(usize::from(entry.queue), entry.id));
                    assert!(is_new, "{entries} entries, round {round}: {entry:?}");
                }
            }
        }
        assert!(host.peek(1).is_none());
    }
}

#[test]
fn pages_that_cannot_be_used_are_refused() {
    let mut host = Host::new(nvme());
    host.device.map_peer(1 << 41, 2 * PAGE, Arc::new(Reads::default()));
    host.device.map(1 << 42, PAGE, Perm::READ);
    let last = u64::MAX - PAGE + 1;
    for (doorbells, events, status) in [
        (DOORBELLS + 4, EVENTS, 0x02),
        (DOORBELLS, EVENTS + 2048, 0x02),
        (DOORBELLS, DOORBELLS, 0x02),
        (BASE + LEN, EVENTS, 0x04),
        (DOORBELLS, last, 0x04),
        (last, EVENTS, 0x04),
        (1 << 42, EVENTS, 0x04),
        (1 << 41, EVENTS, 0x02),
    ] {
        assert_eq!(host.set_pages(doorbells, events), Err(status), "{doorbells:#x} {events:#x}");
    }
    host.create_pair(1, 16, 1);
    assert_eq!(host.perform(1, read(0)), Ok(0));
    assert_eq!(host.set_pages(DOORBELLS, EVENTS), Ok(0));
    assert_eq!(host.perform(1, read(0)), Ok(0));
    // Others, while these are in use.
    host.memory.put(DATA + 2 * PAGE - BASE, &[0; 2 * PAGE as usize]);
    assert_eq!(host.set_pages(DATA + 2 * PAGE, DATA + 3 * PAGE), Ok(0));
    host.memory.put(DOORBELLS - BASE, &[0x55; 2 * PAGE as usize]);
    for n in 0..40 {
        assert_eq!(host.perform(1, read(n)), Ok(0));
    }
    assert_eq!(host.memory.get(DOORBELLS - BASE, 2 * PAGE as usize), [0x55; 2 * PAGE as usize]);
}

/// The pages are the host's again after each kind of reset: what it stores there rings nothing, and no byte
/// of them changes.
#[test]
fn pages_end_with_every_kind_of_reset() {
    // openvmm#4080, #4011, #3915.
    for way in 0..6 {
        let mut host = host(&[64, 64]);
        for n in 0..20 {
            host.submit(1, read(n));
            host.submit(2, read(n));
        }
        match way {
            0 => host.disable(),
            1 => host.device.reset(),
            2 => {
                let express = host.device.capability(0x10).unwrap();
                let control = host.device.config16(express + 8);
                host.device.set_config16(express + 8, control | 1 << 15);
                host.device.await_function_reset();
            }
            3 => {
                host.device.file().reset_set().unwrap();
            }
            4 => {
                host.device.write32(0, 0x14, ENABLE | 1 << 14);
                host.await_status(SHUTDOWN, SHUT_DOWN);
                host.disable();
            }
            _ => {
                let Host { device, .. } = host;
                host = Host::without_interrupts(device.reopen());
            }
        }
        host.forget_queues();
        host.memory.put(DOORBELLS - BASE, &[0x55; 2 * PAGE as usize]);
        host.device.enable();
        host.enable();
        host.create_pair(1, 8, 1);
        for n in 0..20 {
            assert_eq!(host.perform(1, read(n)), Ok(0), "way {way}");
        }
        // A command that only the page tells of.
        host.put(1, read(0));
        host.memory.put(DOORBELLS + 8 - BASE, &5_u32.to_le_bytes());
        host.admin(Command::new(6).prps(DATA, 0).set(10, 1)).unwrap();
        host.put(1, read(1));
        assert!(host.peek(1).is_none(), "way {way}");
        host.memory.put(DOORBELLS + 8 - BASE, &[0x55; 4]);
        host.ring(1);
        assert_eq!((host.wait(1).status, host.wait(1).status), (0, 0));
        let pages = host.memory.get(DOORBELLS - BASE, 2 * PAGE as usize);
        assert!(pages.iter().all(|byte| *byte == 0x55), "way {way}");
    }
}

#[test]
fn pages_that_vanish_are_fatal_until_a_reset() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 16, 1);
    host.device.map(1 << 40, 2 * PAGE, Perm::READ | Perm::WRITE);
    let command = Command::new(0x7c).prps(1 << 40, (1 << 40) + PAGE);
    assert_eq!(host.admin(command), Ok(0));
    host.device.unmap(1 << 40, 2 * PAGE).unwrap();
    host.submit(1, read(0));
    host.await_fatal();
    host.disable();
    host.enable();
    assert!(host.identify(1, 0).is_ok());
}

/// The host rings nothing again when it lets the device reach memory again.
#[test]
fn commands_wait_while_the_device_may_not_reach_memory() {
    let mut host = host(&[16]);
    for n in 0..20 {
        host.rest(Duration::from_millis(5));
        host.device.set_config16(4, 3);
        let id = host.submit(1, read(n));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(host.peek(1), None);
        host.device.set_config16(4, 7);
        assert_eq!(host.wait(1).id, id);
    }
}

#[test]
fn value_in_a_page_that_is_none_of_the_queue_is_an_event() {
    let mut host = host(&[16]);
    let event = host.submit(0, Command::new(12));
    host.memory.put(DOORBELLS + 8 - BASE, &16_u32.to_le_bytes());
    // By a register that is right.
    host.device.write32(0, 0x1008, 0);
    let entry = host.wait(0);
    assert_eq!((entry.id, entry.status, entry.result), (event, 0, 0x1_0100));
    assert_eq!(host.perform(1, read(0)), Ok(0));
}

/// A last close ends the pages, and the next opening by the same user finds the queues where they were.
#[test]
fn controller_that_keeps_its_state_goes_on_without_its_pages() {
    let driver = Driver::with_policy(nvme(), StatePolicy::Retain);
    let mut host = Host::without_interrupts(driver);
    host.enable();
    host.create_pair(1, 16, 1);
    host.set_pages(DOORBELLS, EVENTS).unwrap();
    (0..3).for_each(|n| _ = host.put(1, read(n)));
    // The page is further on than the register, which comes late.
    host.memory.put(DOORBELLS + 8 - BASE, &3_u32.to_le_bytes());
    host.move_doorbell(2, 1, Way::Register);
    for _ in 0..3 {
        assert_eq!(host.wait(1).status, 0);
    }
    // A look at a page that the close takes away would be fatal, too: it has looked when it has asked.
    eventually("the queue asks to be told", || host.word(EVENTS + 8) == 3);
    host.rest(Duration::from_millis(5));
    let Host { device, .. } = host;
    let host = Host::without_interrupts(device.reopen());
    assert_eq!(host.status() & (READY | FATAL), READY, "fatal status, or not ready");
}

/// The pin is asserted while there are entries, whichever way the host takes them by (spdk#2009).
#[test]
fn pin_falls_when_the_host_has_taken_the_last_entry() {
    for by_page in [false, true] {
        let mut host = Host::without_interrupts(Driver::new(nvme()));
        let pin = host.device.interrupt(INTX, 0);
        host.enable();
        let admin = |host: &mut Host, command| {
            assert_eq!(host.admin(command), Ok(0));
            pin.wait();
            host.device.mask_pin(false);
        };
        let (submissions, completions) = Host::at(1);
        host.renew_pair(1, 64, 64);
        admin(&mut host, create_cq(1, 64, completions, 1));
        admin(&mut host, create_sq(1, 64, submissions, 1));
        if by_page {
            host.set_pages(DOORBELLS, EVENTS).unwrap();
            pin.wait();
            host.device.mask_pin(false);
        }
        for round in 0..100 {
            let depth = 1 + round % 7;
            (0..depth).for_each(|n| _ = host.submit(1, read(n)));
            let mut taken = 0;
            while taken < depth {
                pin.wait();
                while let Some(entry) = host.poll(1) {
                    assert_eq!(entry.status, 0);
                    taken += 1;
                }
                host.release(1);
                host.device.mask_pin(false);
            }
            host.device.mask_pin(false);
            pin.count();
            // With the last entry taken it is not asserted any more: an unmask triggers it no more.
            host.device.mask_pin(true);
            host.device.mask_pin(false);
            assert_eq!(pin.count(), 0, "round {round}, by the page: {by_page}");
        }
    }
}

/// A queue that is created in the place of another one begins at 0, whatever the pages have of that one.
#[test]
fn recreated_queue_begins_anew_in_the_pages() {
    let mut host = host(&[]);
    for round in 0..6 {
        host.create_pair(1, 64, 1);
        for n in 0..round * 5 {
            assert_eq!(host.perform(1, read(n)), Ok(0));
        }
        assert_eq!(host.admin(Command::new(0).set(10, 1)), Ok(0));
        assert_eq!(host.admin(Command::new(4).set(10, 1)), Ok(0));
        // Too late: nobody looks there.
        host.memory.put(DOORBELLS + 8 - BASE, &[0x55; 8]);
    }
    host.create_pair(1, 64, 1);
    assert_eq!((host.word(DOORBELLS + 8), host.word(EVENTS + 12)), (0, 0));
    assert!(host.peek(1).is_none());
    assert_eq!(host.perform(1, read(0)), Ok(0));
}

/// What the host has stored to the page while the controller was being moved is not lost.
#[test]
fn moved_controller_goes_on_with_shadow_doorbells() {
    let disk = Memory::new(BLOCKS * 512).unwrap();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 8, 1);
    host.set_pages(DOORBELLS, EVENTS).unwrap();
    for n in 0..13 {
        assert_eq!(host.perform(1, read(n)), Ok(0));
    }
    let mut descriptors = DescriptorTable::new();
    let saved = host.device.device().save(&mut descriptors).unwrap();
    let late: Vec<u16> = (0..3).map(|n| host.put(1, read(n))).collect();
    host.memory.put(DOORBELLS + 8 - BASE, &0_u32.to_le_bytes());
    let new = Driver::restored(with(disk), &saved, None, &mut descriptors).unwrap();
    let mut host = host.moved(new);
    host.device.settle();
    let mut seen: Vec<u16> = (0..3).map(|_| host.poll(1).expect("it completes").id).collect();
    seen.sort_unstable();
    assert_eq!(seen, late);
    host.release(1);
    for n in 0..20 {
        let id = host.submit(1, read(n));
        host.device.settle();
        assert_eq!(host.poll(1).map(|entry| entry.id), Some(id));
        host.release(1);
    }
}

/// Memory that is reached by message: what was read of it.
#[derive(Default)]
pub(super) struct Reads {
    pub(super) seen: Mutex<Vec<(u64, usize)>>,
    pub(super) bytes: Mutex<std::collections::HashMap<u64, Vec<u8>>>,
}

impl DmaPeer for Reads {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.seen.lock().unwrap().push((iova, len));
        let mut bytes = self.bytes.lock().unwrap().get(&iova).cloned().unwrap_or_default();
        bytes.resize(len, 0);
        completion.complete(Ok(bytes));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Ok(()));
    }
}

/// A submission entry is read once: what the host makes of it afterwards changes nothing.
#[test]
fn entry_is_read_once() {
    let memory = Arc::new(Reads::default());
    let mut host = Host::new(nvme());
    host.device.map_peer(1 << 41, 16 * PAGE, memory.clone());
    let (_, completions) = Host::at(1);
    host.renew_pair(1, 16, 16);
    assert_eq!(host.admin(create_cq(1, 16, completions, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 16, 1 << 41, 1)), Ok(0));
    for n in 0..5_u64 {
        let command = read(n).set(0, 2 | (n as u32) << 16);
        let bytes = command.0.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        memory.bytes.lock().unwrap().insert((1 << 41) + 64 * n, bytes);
    }
    host.move_doorbell(2, 5, Way::Register);
    for _ in 0..5 {
        assert_eq!(host.wait(1).status, 0);
    }
    let mut seen = memory.seen.lock().unwrap().clone();
    seen.sort_unstable();
    let once: Vec<(u64, usize)> = (0..5).map(|n| ((1 << 41) + 64 * n, 64)).collect();
    assert_eq!(seen, once, "each entry is read once, whole");
}
