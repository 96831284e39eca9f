//! What a driver and the outside see of the card.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vfiod_pci::irq_index::INTX;

use super::{Gpio, GpioOptions, Lines, Snapshot};
use vfiod_testing::Driver;

const BAR: u32 = 2;
const OUT_LOW: u64 = 0;
const IN_LOW: u64 = 1;
const INTERRUPT: u64 = 2;
const FILTER: u64 = 3;
const OUT_HIGH: u64 = 4;
const IN_HIGH: u64 = 5;
const STATUS: u64 = 6;

fn card(inputs: u16) -> (Driver, Arc<Lines>) {
    let card = Gpio::new(GpioOptions { inputs, control: None });
    let lines = card.lines();
    let device = Driver::new(card);
    device.enable();
    (device, lines)
}

#[test]
fn outputs_are_seen_outside() {
    let (device, lines) = card(0);
    device.write8(BAR, OUT_LOW, 0xa5);
    device.write8(BAR, OUT_HIGH, 0x3c);
    assert_eq!(lines.snapshot().outputs, 0x3ca5);
    assert_eq!((device.read8(BAR, OUT_LOW), device.read8(BAR, OUT_HIGH)), (0xa5, 0x3c));
    device.reset();
    assert_eq!(lines.snapshot(), Snapshot { outputs: 0, inputs: 0 });
}

#[test]
fn card_that_was_unregistered_leaves_nothing_behind() {
    let (device, lines) = card(0);
    let left = Arc::downgrade(&lines);
    drop((device, lines));
    assert_eq!(left.strong_count(), 0);
}

#[test]
fn inputs_are_the_outsides() {
    let (device, lines) = card(0x8001);
    assert_eq!((device.read8(BAR, IN_LOW), device.read8(BAR, IN_HIGH)), (0x01, 0x80));
    lines.set_inputs(0x0011, 0x0010);
    assert_eq!((device.read8(BAR, IN_LOW), device.read8(BAR, IN_HIGH)), (0x10, 0x80));
    device.write8(BAR, IN_HIGH, 0xff);
    device.reset();
    assert_eq!((device.read8(BAR, IN_LOW), device.read8(BAR, IN_HIGH)), (0x10, 0x80));
}

/// As Linux's driver does it: clear, enable; at an interrupt read the status, then clear.
#[test]
fn a_change_interrupts_where_that_is_enabled() {
    let (device, lines) = card(0);
    let interrupt = device.interrupt(INTX, 0);
    lines.set_inputs(1, 1);
    assert_eq!(interrupt.count(), 0, "not enabled");
    assert_eq!(device.read8(BAR, STATUS), 1);
    device.write8(BAR, IN_LOW, 0);
    assert_eq!(device.read8(BAR, STATUS), 0);
    device.read8(BAR, INTERRUPT);
    assert_eq!(interrupt.count(), 0, "nothing changed since it was cleared");

    lines.set_inputs(0x0100, 0x0100);
    assert_eq!(interrupt.count(), 1);
    assert_eq!(device.read8(BAR, STATUS), 2 | 4);
    lines.set_inputs(0x0001, 0);
    assert_eq!(device.read8(BAR, STATUS), 1 | 2 | 4);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 1, "still asserted");
    device.write8(BAR, IN_LOW, 0);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0);

    lines.set_inputs(0x0001, 0);
    assert_eq!(device.read8(BAR, STATUS), 0, "set to what it was");
    device.write8(BAR, INTERRUPT, 0);
    lines.set_inputs(0x0001, 1);
    assert_eq!(interrupt.count(), 0, "disabled");
    device.reset();
    assert_eq!(device.read8(BAR, STATUS), 0);
}

#[test]
fn filters_and_other_widths_change_nothing() {
    let (device, lines) = card(0x0010);
    device.read8(BAR, FILTER);
    device.write8(BAR, FILTER, 0);
    assert_eq!(device.read8(BAR, IN_LOW), 0x10);
    device.write32(BAR, OUT_LOW, u32::MAX);
    assert_eq!(device.read32(BAR, OUT_LOW), u32::MAX, "no such register");
    assert_eq!(lines.snapshot().outputs, 0);
    assert_eq!(device.read8(BAR, 7), 0xff);
}

#[test]
fn observers_see_every_change_in_order() {
    let (device, lines) = card(0);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let subscription = lines.on_change({
        let seen = seen.clone();
        move |now| seen.lock().unwrap().push((now.outputs, now.inputs))
    });
    device.write8(BAR, OUT_LOW, 1);
    device.write8(BAR, OUT_LOW, 1);
    lines.set_inputs(4, 4);
    device.reset();
    drop(subscription);
    device.write8(BAR, OUT_LOW, 2);
    assert_eq!(*seen.lock().unwrap(), [(1, 0), (1, 4), (0, 4)]);
}

/// A wire from each output to its input.
#[test]
fn an_observer_may_answer() {
    let (device, lines) = card(0);
    let interrupt = device.interrupt(INTX, 0);
    device.read8(BAR, INTERRUPT);
    let last = Arc::new(Mutex::new(lines.snapshot()));
    let _wires = lines.on_change({
        let (lines, last) = (Arc::downgrade(&lines), last.clone());
        move |now| {
            *last.lock().unwrap() = now;
            lines.upgrade().unwrap().set_inputs(0xffff, now.outputs);
        }
    });
    device.write8(BAR, OUT_HIGH, 0x42);
    assert_eq!(device.read8(BAR, IN_HIGH), 0x42);
    assert_eq!(interrupt.count(), 1);
    let end = Snapshot { outputs: 0x4200, inputs: 0x4200 };
    assert_eq!(*last.lock().unwrap(), end, "it is told of its own change too");
}

#[test]
fn an_observer_that_panics_is_left_out() {
    let (device, lines) = card(0);
    let calls = Arc::new(AtomicU32::new(0));
    let _bad = lines.on_change(|_| panic!("on purpose"));
    let _good = lines.on_change({
        let calls = calls.clone();
        move |_| _ = calls.fetch_add(1, Ordering::Relaxed)
    });
    device.write8(BAR, OUT_LOW, 1);
    device.write8(BAR, OUT_LOW, 2);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(device.read8(BAR, OUT_LOW), 2, "and the card goes on working");
}

#[test]
fn many_threads_move_the_lines() {
    let (device, lines) = card(0);
    let interrupt = device.interrupt(INTX, 0);
    device.read8(BAR, INTERRUPT);
    let last = Arc::new(Mutex::new(lines.snapshot()));
    let _seen = lines.on_change({
        let last = last.clone();
        move |now| *last.lock().unwrap() = now
    });
    std::thread::scope(|scope| {
        for input in 0..8 {
            let lines = &lines;
            scope.spawn(move || {
                for round in 0..1000u16 {
                    lines.set_inputs(1 << input, ((round + 1) % 2) << input);
                }
                lines.set_inputs(1 << input, 1 << input);
            });
        }
        for round in 0..1000 {
            device.write8(BAR, OUT_LOW, round as u8);
            if interrupt.count() > 0 {
                device.write8(BAR, IN_LOW, 0);
                device.mask_pin(false);
            }
        }
    });
    let end = Snapshot { outputs: 999u16 & 0xff, inputs: 0xff };
    assert_eq!(lines.snapshot(), end);
    assert_eq!(*last.lock().unwrap(), end, "the last change is told whoever made it");
}
