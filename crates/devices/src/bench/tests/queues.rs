//! The queues under everything that a client and the core do to them. The guest verifies that
//! each completion is right and comes exactly once.

use vfiod_core::DescriptorTable;

use super::rig::{ENTRIES, Numbers, Rig};
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
    rig.guests.iter_mut().for_each(super::rig::Guest::finish);
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

#[test]
fn commands_are_right_while_memory_is_unmapped_and_truncated() {
    let (mut rig, mut numbers) = (Rig::new(), Numbers(2));
    for _ in 0..60 {
        submit(&mut rig, &mut numbers);
        let which = numbers.below(2) as usize;
        match numbers.below(4) {
            0 => rig.guests[which].remap_rings(),
            1 => rig.guests[which].remap_data(),
            2 => rig.guests[which].truncate(),
            _ => {}
        }
    }
    finish(&mut rig);
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
            let guest = &mut rig.guests[numbers.below(2) as usize];
            guest.file.reset().expect("resets");
            let before = (guest.rings(), guest.data());
            std::thread::yield_now();
            assert!(before == (guest.rings(), guest.data()), "something still works");
            guest.configure();
        } else {
            rig.guests[0].file.reset_set().expect("both are reset");
            rig.guests.iter_mut().for_each(super::rig::Guest::configure);
        }
    }
    submit(&mut rig, &mut numbers);
    finish(&mut rig);
}

#[test]
fn everything_at_once_in_random_order() {
    for seed in 5..8 {
        let (mut rig, mut numbers) = (Rig::new(), Numbers(seed));
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
                    rig.guests.iter_mut().for_each(super::rig::Guest::configure);
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
