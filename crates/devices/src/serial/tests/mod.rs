//! What a driver and the outside see of the card.

mod backends;
mod interrupts;
mod registers;

use super::*;
use vfiod_testing::Driver;

const DATA: u64 = 0;
const IER: u64 = 1;
/// Interrupt identification, FIFO control.
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

/// IIR: which interrupt, with the FIFOs on.
const NONE: u8 = 0xc1;
const LINE_STATUS: u8 = 0xc6;
const RECEIVED: u8 = 0xc4;
const TIMEOUT: u8 = 0xcc;
const EMPTY: u8 = 0xc2;
const MODEM_STATUS: u8 = 0xc0;

/// LSR: data has been received.
const READY: u8 = 0x01;
/// LSR: the transmitter takes data, and has sent all it had.
const IDLE: u8 = 0x60;

/// MCR: DTR, RTS and OUT2, as Linux sets them.
const ON: u8 = 0x0b;
/// MCR: the chip's own loop-back.
const LOOP: u8 = 0x10;

fn card(ports: Ports, backend: Backend) -> (Driver, Arc<Backends>) {
    let card = Serial::new(SerialOptions { ports, backend, ..SerialOptions::default() });
    let backends = card.backends();
    let device = Driver::new(card);
    device.enable();
    (device, backends)
}

/// A port set up as Linux does: characters of 8 bits, FIFOs on with a trigger level, lines on.
fn set_up(device: &Driver, bar: u32, trigger: u8) {
    device.write8(bar, LCR, 3);
    device.write8(bar, IIR, 7 | trigger << 6);
    device.write8(bar, MCR, ON);
    device.read8(bar, MSR);
}

fn send(device: &Driver, bar: u32, bytes: &[u8]) {
    for &byte in bytes {
        device.write8(bar, DATA, byte);
    }
}

/// What the receiver has.
fn received(device: &Driver, bar: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while device.read8(bar, LSR) & READY != 0 {
        bytes.push(device.read8(bar, DATA));
    }
    bytes
}
