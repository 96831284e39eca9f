//! Registers, FIFOs and modem lines.

use super::*;

/// What Linux looks for to tell a 16550A from its relatives, in the order in which it looks.
#[test]
fn linux_takes_it_for_a_16550a() {
    for backend in [Backend::Loopback, Backend::None, Backend::Pty] {
        let (device, _) = card(Ports::One, backend);
        let register = |offset, value| {
            device.write8(0, offset, value);
            device.read8(0, offset)
        };
        assert_eq!(register(IER, 0), 0);
        assert_eq!(register(IER, 0x0f), 0x0f, "four interrupts");
        device.write8(0, IER, 0);
        device.write8(0, MCR, LOOP | 0x0a);
        assert_eq!(device.read8(0, MSR) & 0xf0, 0x90, "outputs are inputs in loop-back");
        device.write8(0, MCR, 0);
        device.write8(0, LCR, 0xbf);
        device.write8(0, IIR, 0);
        device.write8(0, LCR, 0);
        device.write8(0, IIR, 1);
        assert_eq!(device.read8(0, IIR) >> 6, 3, "it has FIFOs");
        for latch in [0x80, 0xbf] {
            device.write8(0, LCR, latch);
            assert_ne!(device.read8(0, IIR), 0, "it has no enhanced features register");
        }
        device.write8(0, LCR, 0);
        device.write8(0, IIR, 0x21);
        assert_eq!(device.read8(0, IIR) & 0x20, 0, "its FIFOs are 16 deep");
        device.write8(0, LCR, 0x80);
        device.write8(0, IIR, 0x21);
        assert_eq!(device.read8(0, IIR) & 0x20, 0, "with the latch as well");
        device.write8(0, LCR, 0);
        assert_eq!(register(IER, 0x40), 0, "it is no XScale's");
    }
}

#[test]
fn after_power_on() {
    let (device, _) = card(Ports::Two, Backend::None);
    for bar in 0..2 {
        let registers: Vec<_> = (0..8).map(|offset| device.read8(bar, offset)).collect();
        assert_eq!(registers, [0, 0, 1, 0, 0, IDLE, 0, 0], "port {bar}");
    }
}

#[test]
fn the_divisor_lies_over_data_and_interrupts() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    device.write8(0, IER, 0x05);
    device.write8(0, LCR, 0x83);
    device.write8(0, DATA, 0x34);
    device.write8(0, IER, 0x12);
    assert_eq!((device.read8(0, DATA), device.read8(0, IER)), (0x34, 0x12));
    device.write8(0, DATA, 0x56);
    assert_eq!((device.read8(0, DATA), device.read8(0, IER)), (0x56, 0x12));
    device.write8(0, LCR, 0x03);
    assert_eq!(device.read8(0, LSR), IDLE, "nothing was sent");
    assert_eq!(device.read8(0, IER), 0x05);
    device.write8(0, LCR, 0x83);
    assert_eq!((device.read8(0, DATA), device.read8(0, IER)), (0x56, 0x12), "it is kept");
}

#[test]
fn bits_that_there_are() {
    let (device, _) = card(Ports::One, Backend::None);
    for (offset, mask) in [(IER, 0x0f), (MCR, 0x1f), (7, 0xff)] {
        device.write8(0, offset, 0xff);
        assert_eq!(device.read8(0, offset), mask, "register {offset}");
    }
    device.write8(0, LSR, 0xff);
    assert_eq!(device.read8(0, LSR), IDLE);
    device.write32(0, 0, 0);
    assert_eq!(device.read32(0, 0), u32::MAX, "a byte each, nothing wider");
    assert_eq!(device.read8(0, IER), 0x0f);
}

/// In the chip's own loop-back: what does not fit is lost, and one overrun is reported.
#[test]
fn a_full_receiver_overruns() {
    let (device, _) = card(Ports::One, Backend::None);
    set_up(&device, 0, 3);
    device.write8(0, MCR, LOOP);
    let all: Vec<u8> = (0x30..0x42).collect();
    send(&device, 0, &all);
    assert_eq!(device.read8(0, LSR), IDLE | READY | 2, "overrun");
    assert_eq!(device.read8(0, LSR), IDLE | READY, "told");
    assert_eq!(received(&device, 0), all[..16], "the FIFO keeps what it has");
    assert_eq!(device.read8(0, LSR), IDLE);

    device.write8(0, IIR, 0);
    send(&device, 0, b"ab");
    assert_eq!(device.read8(0, LSR), IDLE | READY | 2);
    assert_eq!(received(&device, 0), b"b", "without FIFO, the register is overwritten");
}

#[test]
fn fifos_are_cleared_by_their_bits_and_when_they_are_turned_on_or_off() {
    let (device, _) = card(Ports::One, Backend::None);
    set_up(&device, 0, 0);
    device.write8(0, MCR, LOOP);
    for (control, left) in [(0x05, &b"xyz"[..]), (0x01, b"xyz"), (0x03, b""), (0x07, b"")] {
        device.write8(0, IIR, 0x07);
        send(&device, 0, b"xyz");
        device.write8(0, IIR, control);
        assert_eq!(received(&device, 0), left, "control {control:#x}");
    }
    send(&device, 0, b"xyz");
    device.write8(0, IIR, 0x00);
    assert_eq!(received(&device, 0), b"", "turned off");
    send(&device, 0, b"x");
    device.write8(0, IIR, 0x06);
    assert_eq!(received(&device, 0), b"x", "the other bits count only beside the first");
    send(&device, 0, b"x");
    device.write8(0, IIR, 0x01);
    assert_eq!(received(&device, 0), b"", "turned on");
}

#[test]
fn characters_have_as_many_bits_as_the_line_control_says() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    set_up(&device, 0, 0);
    for (length, mask) in [(0, 0x1f), (1, 0x3f), (2, 0x7f), (3, 0xff)] {
        device.write8(0, LCR, length);
        send(&device, 0, &[0xff]);
        assert_eq!(received(&device, 0), [mask]);
    }
}

#[test]
fn changes_of_the_modems_lines_are_told_once() {
    let (device, _) = card(Ports::One, Backend::None);
    let set = |outputs| {
        device.write8(0, MCR, LOOP | outputs);
        (device.read8(0, MSR), device.read8(0, MSR))
    };
    assert_eq!(set(0x00), (0x00, 0x00));
    assert_eq!(set(0x02), (0x11, 0x10), "RTS is CTS");
    assert_eq!(set(0x01), (0x23, 0x20), "DTR is DSR");
    assert_eq!(set(0x04), (0x42, 0x40), "OUT1 is RI, whose beginning is not told");
    assert_eq!(set(0x08), (0x8c, 0x80), "OUT2 is DCD; the end of RI is told");
    assert_eq!(set(0x0f), (0xf3, 0xf0));
    device.write8(0, MCR, 0);
    assert_eq!(device.read8(0, MSR), 0x0f, "leaving the loop-back drops all");
    set(0x00);
    device.write8(0, MCR, LOOP | 1);
    device.write8(0, MCR, LOOP);
    assert_eq!(device.read8(0, MSR), 0x02, "there and back is a change");
}

#[test]
fn the_plug_joins_outputs_and_inputs() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    let set = |outputs| {
        device.write8(0, MCR, outputs);
        device.read8(0, MSR)
    };
    assert_eq!(set(0x02), 0x11);
    assert_eq!(set(0x03), 0xba);
    assert_eq!(set(0x03), 0xb0);
    assert_eq!(set(0x0e), 0x1a, "OUT1 and OUT2 are not connected");
    assert_eq!(set(LOOP | 0x02), 0x10, "the chip's own loop-back looks the same");
}

#[test]
fn a_reset_forgets_everything() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    let interrupt = device.interrupt(vfiod_pci::irq_index::INTX, 0);
    set_up(&device, 0, 0);
    device.write8(0, IER, 0x0f);
    send(&device, 0, b"abc");
    assert_eq!(interrupt.count(), 1);
    device.reset();
    device.enable();
    device.mask_pin(true);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0, "the pin is off");
    let registers: Vec<_> = (0..8).map(|offset| device.read8(0, offset)).collect();
    assert_eq!(registers, [0, 0, 1, 0, 0, IDLE, 0, 0]);
}
