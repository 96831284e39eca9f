//! Interrupts: what causes them, their order, what ends them, and the pin.

use vfiod_core::Context;
use vfiod_core::irq::{IrqFlags, IrqInfo};
use vfiod_pci::irq_index::INTX;

use super::super::registers::Reg;
use super::*;

fn identify(device: &Driver) -> u8 {
    device.read8(0, IIR)
}

/// Enabling it, emptying the transmitter; identifying it ends it, and so does sending.
#[test]
fn the_empty_transmitter() {
    let (device, _) = card(Ports::One, Backend::None);
    set_up(&device, 0, 0);
    assert_eq!(identify(&device), NONE);
    device.write8(0, IER, 2);
    assert_eq!(identify(&device), EMPTY, "it was empty when it was enabled");
    assert_eq!(identify(&device), NONE, "identified");
    device.write8(0, IER, 2);
    assert_eq!(identify(&device), NONE, "enabled already");
    device.write8(0, IER, 0);
    device.write8(0, IER, 2);
    assert_eq!(identify(&device), EMPTY, "enabled anew");
    send(&device, 0, b"x");
    assert_eq!(identify(&device), EMPTY, "empty again");
    assert_eq!(device.read8(0, LSR), IDLE);
    assert_eq!(identify(&device), NONE);
    device.read8(0, LSR);
    device.write8(0, IER, 0x0d);
    assert_eq!(identify(&device), NONE);
}

/// Another one that comes first is identified, and this one waits.
#[test]
fn the_empty_transmitter_waits_for_those_before_it() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    set_up(&device, 0, 0);
    device.write8(0, IER, 3);
    send(&device, 0, b"x");
    assert_eq!(identify(&device), RECEIVED);
    assert_eq!(identify(&device), RECEIVED);
    device.read8(0, DATA);
    assert_eq!(identify(&device), EMPTY);
    assert_eq!(identify(&device), NONE);
}

#[test]
fn the_receiver_at_its_trigger_level() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    for (trigger, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        set_up(&device, 0, trigger);
        device.write8(0, IER, 1);
        for count in 1..=16 {
            send(&device, 0, b"x");
            let expected = if count < level { TIMEOUT } else { RECEIVED };
            assert_eq!(identify(&device), expected, "{count} of {level}");
        }
        for count in (0..16).rev() {
            device.read8(0, DATA);
            let expected = match count {
                0 => NONE,
                count if count < level => TIMEOUT,
                _ => RECEIVED,
            };
            assert_eq!(identify(&device), expected, "{count} of {level} left");
        }
    }
    device.write8(0, IIR, 0);
    send(&device, 0, b"x");
    assert_eq!(identify(&device), 0x04, "without FIFO there is no timeout");
}

#[test]
fn all_at_once_in_the_order_of_priority() {
    let (device, _) = card(Ports::One, Backend::None);
    set_up(&device, 0, 3);
    device.write8(0, MCR, LOOP);
    device.read8(0, MSR);
    device.write8(0, IER, 0x0f);
    device.write8(0, MCR, LOOP | 1);
    send(&device, 0, &[b'x'; 17]);
    assert_eq!(identify(&device), LINE_STATUS);
    assert_eq!(device.read8(0, LSR) & 2, 2);
    assert_eq!(identify(&device), RECEIVED);
    for _ in 0..15 {
        device.read8(0, DATA);
    }
    assert_eq!(identify(&device), TIMEOUT);
    device.read8(0, DATA);
    assert_eq!(identify(&device), EMPTY);
    assert_eq!(identify(&device), MODEM_STATUS);
    assert_eq!(identify(&device), MODEM_STATUS);
    assert_eq!(device.read8(0, MSR), 0x22);
    assert_eq!(identify(&device), NONE);
}

#[test]
fn the_pin_follows() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    let interrupt = device.interrupt(INTX, 0);
    set_up(&device, 0, 0);
    send(&device, 0, b"a");
    assert_eq!(interrupt.count(), 0, "not enabled");
    device.write8(0, IER, 1);
    assert_eq!(interrupt.count(), 1);
    send(&device, 0, b"b");
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 1, "still asserted");
    device.read8(0, DATA);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 1, "one is left");
    device.read8(0, DATA);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0);

    device.write8(0, IER, 2);
    assert_eq!(interrupt.count(), 1);
    device.read8(0, IIR);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0, "identified");
    send(&device, 0, b"c");
    assert_eq!(interrupt.count(), 1, "and empty again");
}

#[test]
fn two_ports_share_the_pin() {
    let (device, _) = card(Ports::Two, Backend::Loopback);
    let interrupt = device.interrupt(INTX, 0);
    for bar in 0..2 {
        set_up(&device, bar, 0);
        device.write8(bar, IER, 1);
        send(&device, bar, &[b'0' + bar as u8]);
    }
    assert_eq!(interrupt.count(), 1);
    assert_eq!(received(&device, 0), b"0");
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 1, "the other one still asserts it");
    assert_eq!(received(&device, 1), b"1");
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0);
}

#[test]
fn reset_of_a_port_clears_its_interrupt() {
    let flags = IrqFlags::EVENTFD | IrqFlags::MASKABLE;
    let ctx = Context::detached("serial", &[IrqInfo { flags, count: 1 }]);
    // Masked, so that what is pending is the level.
    ctx.irqs().set_device_mask(INTX, 0, true).unwrap();
    let interrupts = vfiod_pci::Interrupts::new(ctx.clone());
    let mut port = Port::new(0);
    port.write(Reg::InterruptEnable, 2, &interrupts);
    assert!(ctx.irqs().is_pending(INTX, 0));
    port.reset(&interrupts);
    assert!(!ctx.irqs().is_pending(INTX, 0));
}
