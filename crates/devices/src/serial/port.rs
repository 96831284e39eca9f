//! A port: the chip, its wire, and its share of the card's interrupt.

use std::path::PathBuf;

use vfiod_pci::Interrupts;
use vfiod_sync::{Mutex, MutexGuard};

use super::fifo::DEPTH;
use super::image::UartImage;
use super::pty::Pty;
use super::registers::{Lines, Reg};
use super::uart::Uart;

/// What a port is connected to.
#[derive(Debug)]
pub(super) enum Wire {
    /// Nothing.
    Nothing,
    /// A plug that joins each output to the inputs that belong to it. What does not fit the
    /// receiver waits in the transmitter: the plug loses nothing.
    Plug,
    /// A terminal on the host.
    Terminal(Pty),
}

impl Wire {
    /// The modem's lines that are always on.
    fn lines(&self, uart: &Uart) -> Lines {
        match self {
            Self::Nothing => Lines::empty(),
            Self::Plug => uart.plugged(),
            Self::Terminal(_) => Lines::CTS | Lines::DSR | Lines::DCD,
        }
    }
}

/// A port. Accesses come from the card, changes of the terminal from the poller's thread.
#[derive(Debug)]
pub(super) struct Port {
    /// The condition behind the card's pin that is this port's.
    vector: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    uart: Uart,
    wire: Wire,
    /// There from the registration on.
    interrupts: Option<Interrupts>,
    /// What the interrupt was told last.
    asserted: bool,
}

impl Port {
    pub(super) fn new(vector: u32) -> Self {
        let uart = Uart::default();
        let state = State { uart, wire: Wire::Nothing, interrupts: None, asserted: false };
        Self { vector, state: Mutex::new(state) }
    }

    pub(super) fn use_interrupts(&self, interrupts: Interrupts) {
        self.lock().interrupts = Some(interrupts);
    }

    /// Puts the wire in, as if it had been there before.
    pub(super) fn connect(&self, wire: Wire) {
        let mut state = self.lock();
        let lines = wire.lines(&state.uart);
        state.uart.assume_inputs(lines);
        state.wire = wire;
        self.settle(&mut state);
    }

    /// Takes it out, unnoticed by the guest, which has gone.
    pub(super) fn disconnect(&self) {
        let wire = std::mem::replace(&mut self.lock().wire, Wire::Nothing);
        drop(wire); // with the lock free
    }

    /// Where the terminal is, if it has one.
    pub(super) fn terminal(&self) -> Option<PathBuf> {
        match &self.lock().wire {
            Wire::Terminal(pty) => Some(pty.path().to_owned()),
            Wire::Nothing | Wire::Plug => None,
        }
    }

    pub(super) fn read(&self, register: Reg) -> u8 {
        let mut state = self.lock();
        let value = state.uart.read(register);
        match register {
            Reg::Data if state.uart.is_drained() => self.settle(&mut state),
            _ => self.drive(&mut state),
        }
        value
    }

    pub(super) fn write(&self, register: Reg, value: u8) {
        let mut state = self.lock();
        state.uart.write(register, value);
        self.settle(&mut state);
    }

    /// The terminal has changed.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        if let Wire::Terminal(pty) = &mut state.wire {
            pty.wake();
            self.settle(&mut state);
        }
    }

    /// As after power-on, with the wire in.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        let lines = state.wire.lines(&Uart::default());
        state.uart.reset(lines);
        // The interrupt has been told that it is off; the poller may have told it since.
        state.asserted = false;
        if let Some(interrupts) = &state.interrupts {
            interrupts.set(self.vector, false);
        }
        self.settle(&mut state);
    }

    pub(super) fn save(&self) -> UartImage {
        self.lock().uart.save()
    }

    /// Puts the chip into a saved state; the interrupt is restored along with it.
    pub(super) fn restore(&self, uart: Uart) {
        let mut state = self.lock();
        state.asserted = uart.cause().is_some();
        state.uart = uart;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        vfiod_sync::lock(&self.state)
    }

    /// Moves what can be moved, and makes the interrupt follow.
    fn settle(&self, state: &mut State) {
        let State { uart, wire, .. } = state;
        let lines = wire.lines(uart);
        uart.set_inputs(lines);
        match wire {
            Wire::Nothing => uart.sent(DEPTH),
            Wire::Plug => {
                while let (Some(&byte), 1..) = (uart.to_send().first(), uart.room()) {
                    uart.receive(&[byte]);
                    uart.sent(1);
                }
            }
            Wire::Terminal(pty) => {
                while !uart.to_send().is_empty() {
                    match pty.send(uart.to_send()) {
                        0 => break,
                        count => uart.sent(count),
                    }
                }
                let mut buffer = [0; DEPTH];
                loop {
                    let room = uart.room();
                    match pty.receive(&mut buffer[..room]) {
                        0 => break,
                        count => uart.receive(&buffer[..count]),
                    }
                }
            }
        }
        self.drive(state);
    }

    /// Makes the interrupt follow.
    fn drive(&self, state: &mut State) {
        let asserted = state.uart.cause().is_some();
        if std::mem::replace(&mut state.asserted, asserted) != asserted
            && let Some(interrupts) = &state.interrupts
        {
            interrupts.set(self.vector, asserted);
        }
    }
}
