//! The queues under everything that a client and the core do to them. The guest verifies that
//! each completion is right and comes exactly once.

use vfiod_core::DescriptorTable;

use super::rig::{ENTRIES, Engine, Form, Guest, Memory, Numbers, Rig, Setup, Storage};
use crate::bench::registers::QUEUES;

/// Submits a few commands to a few queues of both devices.
fn submit(rig: &mut Rig, numbers: &mut Numbers) {
    for guest in &mut rig.guests {
        for _ in 0..8 {
            let (queue, count) = (numbers.below(QUEUES as u64), numbers.below(ENTRIES.into()));
            guest.submit(queue as usize, count as u32, numbers);
        }
        guest.verify();
    }
}

fn finish(rig: &mut Rig) {
    rig.guests.iter_mut().for_each(Guest::finish);
}

#[test]
fn commands_of_all_queues_complete_in_order_exactly_once_however_they_are_rung() {
    let (mut rig, mut numbers) = (Rig::new(), Numbers(1));
    for _ in 0..4 {
        for guest in &mut rig.guests {
            for queue in 0..QUEUES {
                guest.submit(queue, ENTRIES, &mut numbers);
            }
            guest.verify();
        }
    }
    finish(&mut rig);
}

/// Memory is unmapped and truncated under the queues.
fn disturb(rig: &mut Rig, numbers: &mut Numbers) {
    for _ in 0..60 {
        submit(rig, numbers);
        let which = numbers.below(2) as usize;
        match numbers.below(4) {
            0 => rig.guests[which].remap_rings(),
            1 => rig.guests[which].remap_data(),
            2 => rig.guests[which].truncate(),
            _ => {}
        }
    }
    finish(rig);
}

#[test]
fn commands_are_right_while_memory_is_unmapped_and_truncated() {
    disturb(&mut Rig::new(), &mut Numbers(2));
}

#[test]
fn commands_are_right_without_io_uring() {
    let setup = Setup { engine: Engine::Threads, ..Setup::default() };
    disturb(&mut Rig::with(setup), &mut Numbers(9));
}

#[test]
fn nothing_is_written_to_memory_after_it_was_unmapped() {
    for engine in [Engine::Kernel, Engine::Threads] {
        let mut rig = Rig::with(Setup { engine, ..Setup::default() });
        let mut numbers = Numbers(14);
        for _ in 0..20 {
            for guest in &mut rig.guests {
                for queue in 0..QUEUES {
                    guest.submit(queue, ENTRIES, &mut numbers);
                }
                guest.remap_data();
            }
            finish(&mut rig);
        }
    }
}

#[test]
fn commands_are_right_by_message() {
    let setup = Setup { memory: Memory::ByMessage, ..Setup::default() };
    disturb(&mut Rig::with(setup), &mut Numbers(10));
}

#[test]
fn commands_complete_exactly_once_over_saves_restored_to_fresh_devices() {
    for (seed, memory) in [(11, Memory::Mapped), (12, Memory::ByMessage)] {
        let setup = Setup { memory, storage: Storage::File, ..Setup::default() };
        let (mut rig, mut numbers) = (Rig::with(setup), Numbers(seed));
        for _ in 0..40 {
            submit(&mut rig, &mut numbers);
            let form = if numbers.below(2) == 0 { Form::Text } else { Form::Image };
            rig.replace(numbers.below(2) as usize, form);
        }
        finish(&mut rig);
    }
}

#[test]
fn each_queue_has_its_own_vector() {
    let (mut rig, mut numbers) = (Rig::new(), Numbers(13));
    for guest in &mut rig.guests {
        for queue in 0..QUEUES {
            guest.submit(queue, 1, &mut numbers);
            // Also that no other queue's interrupt came.
            guest.finish();
        }
    }
}

#[test]
fn commands_complete_exactly_once_over_many_saves() {
    let (mut rig, mut numbers) = (Rig::new(), Numbers(3));
    for _ in 0..60 {
        submit(&mut rig, &mut numbers);
        let which = numbers.below(2) as usize;
        let saved = rig.guests[which].file.device().save(&mut DescriptorTable::default());
        assert!(saved.is_ok(), "{}", saved.unwrap_err());
    }
    finish(&mut rig);
}

#[test]
fn nothing_of_a_device_touches_memory_after_a_reset_and_it_goes_on() {
    let (mut rig, mut numbers) = (Rig::new(), Numbers(4));
    for _ in 0..30 {
        submit(&mut rig, &mut numbers);
        if numbers.below(2) == 0 {
            let which = numbers.below(2) as usize;
            rig.guests[which].file.reset().expect("resets");
            _ = rig.guests[which].interrupts();
            let memory = |rig: &Rig| (rig.guests[which].rings(), rig.guests[which].data());
            let before = memory(&rig);
            // The threads that would still work for one device do all that the other one has to do.
            rig.guests[1 - which].finish();
            assert!(before == memory(&rig), "something still works");
            assert_eq!(rig.guests[which].interrupts(), 0, "an interrupt after the reset");
            rig.guests[which].configure();
        } else {
            rig.guests[0].file.reset_set().expect("both are reset");
            rig.guests.iter_mut().for_each(Guest::configure);
        }
    }
    submit(&mut rig, &mut numbers);
    finish(&mut rig);
}

#[test]
fn everything_at_once_in_random_order() {
    for (seed, engine) in [(5, Engine::Kernel), (6, Engine::Threads), (7, Engine::Kernel)] {
        let setup = Setup { engine, ..Setup::default() };
        let (mut rig, mut numbers) = (Rig::with(setup), Numbers(seed));
        for _ in 0..40 {
            submit(&mut rig, &mut numbers);
            let which = numbers.below(2) as usize;
            match numbers.below(8) {
                0 => rig.guests[which].remap_rings(),
                1 => rig.guests[which].remap_data(),
                2 => rig.guests[which].truncate(),
                3 => _ = rig.guests[which].file.device().save(&mut DescriptorTable::default()),
                4 => {
                    rig.guests[which].file.reset().expect("resets");
                    rig.guests[which].configure();
                }
                5 => {
                    rig.guests[which].file.reset_set().expect("both are reset");
                    rig.guests.iter_mut().for_each(Guest::configure);
                }
                _ => {}
            }
        }
        finish(&mut rig);
    }
}

#[test]
fn two_devices_share_a_space_and_one_moves_to_another_during_io() {
    let (mut rig, mut numbers) = (Rig::new(), Numbers(8));
    let own = rig.guests[1].file.space().expect("a space");
    let shared = rig.guests[0].file.space().expect("a space");
    rig.guests[1].file.reset().expect("resets");
    rig.guests[1].file.attach_space(&shared).expect("both are in one space");
    rig.guests[1].move_to(1 << 40);
    for round in 0..40 {
        submit(&mut rig, &mut numbers);
        if round == 10 {
            // For a moment nothing is mapped there.
            rig.guests[1].expect_faults();
            rig.guests[1].file.attach_space(&own).expect("moves");
            rig.guests[1].map_rings();
            rig.guests[1].map_data();
            rig.guests[1].ring_all();
        }
        if round > 10 && round % 5 == 0 {
            let space = if round % 10 == 0 { &shared } else { &own };
            rig.guests[1].file.attach_space(space).expect("moves");
            rig.guests[1].ring_all();
        }
    }
    finish(&mut rig);
    let [first, second] = rig.guests.as_slice() else { panic!("two guests") };
    assert!(first.data() != second.data());
}
