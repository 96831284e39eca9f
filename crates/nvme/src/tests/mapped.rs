//! Doorbells that the host maps (`doorbells = "mapped"`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfiod_config::ConfiguredModel;
use vfiod_core::{DescriptorTable, DeviceSpec, Registry};
use vfiod_disk::Memory;
use vfiod_pci::Function;
use vfiod_pci::irq_index::INTX;
use vfiod_testing::{Driver, eventually};

use super::rig::{
    self, BLOCKS, Command, DATA, ENABLE, Host, Way, create_cq, create_sq, namespace, with_common,
};
use crate::common::Common;
use crate::controller::Nvme;
use crate::options::{DoorbellsOption, NvmeOptions};
use vfiod_nvme_spec::registers::{DOORBELLS, READY, SHUTDOWN};

/// A controller whose doorbells are mapped, with a disk in memory.
pub(super) fn nvme() -> Nvme {
    with_disk(Memory::new(BLOCKS * 512).unwrap())
}

fn with_disk(disk: Arc<Memory>) -> Nvme {
    with_common(Common { mapped_doorbells: true, ..Common::new(16, vec![namespace(1, disk)]) })
}

/// A host that stores to the page, with queue pairs of these entries.
fn host(pairs: &[u32]) -> Host {
    let mut host = Host::disabled(nvme());
    host.way = Some(Way::Store);
    host.enable();
    for (n, entries) in pairs.iter().enumerate() {
        host.create_pair(n + 1, *entries, 1);
    }
    host
}

fn read(n: u64) -> Command {
    Command::io(2, n % BLOCKS, 1, (DATA, 0))
}

#[test]
fn commands_by_stores_complete_at_every_depth() {
    let mut host = host(&[64, 64, 3]);
    assert_eq!(host.identify(1, 0).unwrap()[257], 0, "no shadow doorbells: OACS");
    assert_eq!(host.set_pages(DATA, DATA + 4096), Err(1), "nor the command");
    let registers = host.registers.get();
    for round in 0..60 {
        for queue in 1..=3 {
            let depth = if queue == 3 { 2 } else { 1 + round % 40 };
            let ids = (0..depth).map(|n| host.submit(queue, read(n))).collect();
            host.wait_all(queue, ids);
        }
        assert!(host.identify(1, 0).is_ok());
    }
    assert_eq!(host.registers.get(), registers, "no message");
}

/// Some by a message, some by a store, both at times.
#[test]
fn messages_and_stores_mean_one_value() {
    let mut host = host(&[8, 5]);
    for round in 0..200_u64 {
        for queue in 0..=2 {
            let way =
                |n: u64| if (round + n).is_multiple_of(3) { Way::Store } else { Way::Register };
            let (depth, command) = match queue {
                0 => (3, Command::new(6).prps(DATA, 0).set(10, 1)),
                _ => (1 + round % 4, read(round)),
            };
            for n in 0..depth {
                host.put(queue, command);
                host.ring_by(queue, way(n));
                if n % 2 == 1 {
                    host.ring_by(queue, way(n + 1));
                }
            }
            for n in 0..depth {
                eventually("a completion", || host.peek(queue).is_some());
                assert_eq!(host.poll(queue).map(|entry| entry.status), Some(0));
                host.release_by(queue, way(n));
            }
        }
    }
}

/// A message that is delivered late, when the host has stored something newer, changes nothing.
#[test]
fn value_is_what_the_page_has() {
    let mut host = host(&[16]);
    (0..3).for_each(|n| _ = host.put(1, read(n)));
    host.ring(1);
    for _ in 0..3 {
        assert_eq!(host.wait(1).status, 0);
    }
    let event = host.submit(0, Command::new(12));
    // As the data path gets it: after the store that the message made, and the newer one.
    host.device.write32(0, 0x1008, 3);
    let entries = [host.put(1, read(0)), host.put(1, read(1))];
    host.ring(1);
    let mut done = [host.wait(1).id, host.wait(1).id];
    done.sort_unstable();
    assert_eq!(done, entries);
    assert!(host.peek(0).is_none(), "no event");
    // What is none of the queue is one.
    host.move_doorbell(2, 16, Way::Store);
    let entry = host.wait(0);
    assert_eq!((entry.id, entry.status, entry.result), (event, 0, 0x1_0100));
    host.log(1, 64).unwrap();
    host.submit(0, Command::new(12));
    host.move_doorbell(2, 17, Way::Register);
    assert_eq!(host.wait(0).result, 0x1_0100);
    host.log(1, 64).unwrap();
    host.submit(0, Command::new(12));
    // The head of a completion queue that has no entries.
    host.move_doorbell(3, 6, Way::Store);
    assert_eq!(host.wait(0).result, 0x1_0100);
    host.move_doorbell(3, 5, Way::Store);
    assert_eq!(host.perform(1, read(0)), Ok(0), "the queue goes on");
}

/// How many are polled, and whether the operator is shown that this one is.
fn polled(host: &Host) -> (usize, bool) {
    let shown = host.device.device().model_status().expect("a controller reports");
    (host.device.polled(), shown["polled"].as_bool().unwrap())
}

#[test]
fn controller_is_polled_while_it_is_enabled_and_only_then() {
    let mut host = Host::disabled(nvme());
    host.way = Some(Way::Store);
    assert_eq!(polled(&host), (0, false), "not enabled");
    for way in 0..6 {
        host.enable();
        assert_eq!(polled(&host), (1, true));
        host.create_pair(1, 16, 1);
        assert_eq!(host.perform(1, read(0)), Ok(0), "way {way}");
        match way {
            0 => host.disable(),
            1 => host.device.reset(),
            2 => {
                let express = host.device.capability(0x10).unwrap();
                let control = host.device.config16(express + 8);
                host.device.set_config16(express + 8, control | 1 << 15);
                host.device.await_function_reset();
            }
            3 => host.device.file().reset_set().unwrap(),
            4 => {
                // A shutdown: no command is read until the next enable.
                host.device.write32(0, 0x14, ENABLE | 1 << 14);
                host.await_status(SHUTDOWN, 2 << 2);
                assert_eq!(polled(&host), (0, false));
                host.disable();
            }
            _ => {
                let Host { device, .. } = host;
                host = Host::without_interrupts(device.reopen());
                host.way = Some(Way::Store);
            }
        }
        assert_eq!(polled(&host), (0, false), "way {way}");
        host.forget_queues();
        let mut page = [1; 4096];
        host.page().read(DOORBELLS, &mut page).unwrap();
        assert_eq!(page, [0; 4096], "way {way}");
        // What is stored before the next enable is for no queue.
        host.page().fill(DOORBELLS, 4096, 3).unwrap();
        host.device.enable();
    }
}

#[test]
fn fatal_controller_is_not_polled() {
    let mut host = host(&[]);
    host.create_pair(1, 16, 1);
    host.renew_pair(2, 16, 16);
    assert_eq!(host.admin(create_cq(2, 16, Host::at(2).1, 1)), Ok(0));
    // Its submissions are where there is no memory.
    assert_eq!(host.admin(create_sq(2, 16, 1 << 40, 2)), Ok(0));
    host.move_doorbell(4, 1, Way::Store);
    host.await_fatal();
    assert_eq!(host.device.polled(), 0);
    host.disable();
    host.enable();
    assert_eq!(host.device.polled(), 1);
    assert!(host.identify(1, 0).is_ok());
}

/// A queue that is created in the place of another one begins at 0.
#[test]
fn recreated_queue_begins_anew_in_the_page() {
    let mut host = host(&[]);
    for round in 0..6 {
        host.create_pair(1, 64, 1);
        for n in 0..round * 5 {
            assert_eq!(host.perform(1, read(n)), Ok(0));
        }
        assert_eq!(host.admin(Command::new(0).set(10, 1)), Ok(0));
        assert_eq!(host.admin(Command::new(4).set(10, 1)), Ok(0));
        // Too late: it is nobody's.
        host.page().fill(DOORBELLS + 8, 8, 1).unwrap();
    }
    host.create_pair(1, 64, 1);
    assert_eq!(host.page().load::<u64>(DOORBELLS + 8).unwrap(), 0);
    assert!(host.peek(1).is_none());
    assert_eq!(host.perform(1, read(0)), Ok(0));
}

/// Four submission queues wait for one completion queue of two entries.
#[test]
fn full_completion_queue_goes_on_when_the_host_stores_its_head() {
    let mut host = host(&[]);
    let completions = Host::at(1).1;
    host.renew_pair(1, 32, 2);
    assert_eq!(host.admin(create_cq(1, 2, completions, 1)), Ok(0));
    for id in 1..=4 {
        if id > 1 {
            host.renew_pair(id, 32, 2);
        }
        assert_eq!(host.admin(create_sq(id, 32, Host::at(id).0, 1)), Ok(0));
    }
    let mut ids: Vec<u16> = Vec::new();
    for n in 0..24 {
        for queue in 1..=4 {
            ids.push(host.put(queue, read(n)));
        }
    }
    (1..=4).for_each(|queue| host.ring(queue));
    while !ids.is_empty() {
        let entry = host.wait(1);
        ids.retain(|id| *id != entry.id);
        assert_eq!(entry.status, 0);
    }
}

#[test]
fn pin_falls_when_the_host_stores_that_it_has_taken_the_last_entry() {
    let mut host = Host::without_interrupts(Driver::new(nvme()));
    let pin = host.device.interrupt(INTX, 0);
    host.way = Some(Way::Store);
    host.enable();
    for _ in 0..50 {
        host.submit(0, Command::new(6).prps(DATA, 0).set(10, 1));
        pin.wait();
        assert_eq!(host.wait(0).status, 0);
        // Nothing tells the host when its store was seen.
        eventually("the pin falls", || {
            host.device.mask_pin(true);
            pin.count();
            host.device.mask_pin(false);
            pin.count() == 0
        });
    }
}

/// A client stores whatever it likes, at any time, and punches holes; nothing of that harms anybody else.
#[test]
fn hostile_stores_are_doorbell_values() {
    let mut host = host(&[8, 8, 8]);
    let neighbour = Driver::new(rig::nvme());
    let mut neighbour = Host::without_interrupts(neighbour);
    neighbour.enable();
    neighbour.create_pair(1, 16, 1);
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let (fd, stop) = (host.page().fd().try_clone_to_owned().unwrap(), stop.clone());
        let at = host.page().offset() + DOORBELLS;
        std::thread::spawn(move || {
            let mut seed = 1_u32;
            while !stop.load(Ordering::SeqCst) {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = if seed & 3 == 0 { seed } else { seed >> 8 & 15 };
                let bell = u64::from(seed >> 16 & 15);
                rustix::io::pwrite(&fd, &value.to_le_bytes(), at + 4 * bell).unwrap();
                if seed >> 24 == 0 {
                    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE
                        | rustix::fs::FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&fd, flags, at, 4096).unwrap();
                }
            }
        })
    };
    for n in 0..300 {
        assert_eq!(neighbour.perform(1, read(n)), Ok(0));
        if n % 30 == 0 {
            host.device.write32(0, 0x14, ENABLE & !1);
            host.await_status(READY, 0);
            host.device.write32(0, 0x14, ENABLE);
            host.await_status(READY, READY);
        }
    }
    stop.store(true, Ordering::SeqCst);
    client.join().unwrap();
    host.device.reset();
    host.forget_queues();
    host.device.enable();
    host.enable();
    host.create_pair(1, 16, 1);
    assert_eq!(host.perform(1, read(0)), Ok(0));
}

/// What the host has stored while the controller was being moved is not lost.
#[test]
fn moved_controller_goes_on_with_its_page() {
    let disk = Memory::new(BLOCKS * 512).unwrap();
    let mut host = Host::disabled(with_disk(disk.clone()));
    host.way = Some(Way::Store);
    host.enable();
    host.create_pair(1, 8, 1);
    for n in 0..13 {
        assert_eq!(host.perform(1, read(n)), Ok(0));
    }
    let mut descriptors = DescriptorTable::new();
    let saved = host.device.device().save(&mut descriptors).unwrap();
    let late: Vec<u16> = (0..3).map(|n| host.put(1, read(n))).collect();
    host.ring(1);
    let new = Driver::restored(with_disk(disk), &saved, None, &mut descriptors).unwrap();
    let mut host = host.moved(new);
    assert_eq!(host.device.polled(), 1);
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

#[test]
fn more_controllers_than_may_be_polled_are_refused() {
    let registry = Registry::new();
    registry.runtime().limit_polled(1);
    let register = |name: &str, doorbells| {
        let options = NvmeOptions { memory: Some(1 << 20), doorbells, ..NvmeOptions::default() };
        let device = Box::new(Function::new(Nvme::configured(options).unwrap()).unwrap());
        let spec = DeviceSpec { name: name.to_owned(), ..DeviceSpec::default() };
        registry.register(spec, device)
    };
    let first = register("a", DoorbellsOption::Mapped).unwrap();
    let error = register("b", DoorbellsOption::Mapped).unwrap_err();
    let causes =
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let text: Vec<String> = causes.map(ToString::to_string).collect();
    assert!(text.join(": ").contains("1 other devices have doorbells that are polled"), "{text:?}");
    let other = register("b", DoorbellsOption::Messages).unwrap();
    first.unregister(None);
    register("c", DoorbellsOption::Mapped).unwrap().unregister(None);
    other.unregister(None);
}
