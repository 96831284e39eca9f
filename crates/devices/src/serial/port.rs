//! A port: the chip, what it is connected to, and its share of the card's interrupt.

use std::path::Path;
use std::sync::Arc;

use vfiod_core::InputLog;
use vfiod_pci::Interrupts;
use vfiod_tasks::Descriptor;

use super::fifo::DEPTH;
use super::image::UartImage;
use super::pty::Pty;
use super::registers::{Lines, Reg};
use super::replayed::ReplayedPort;
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
    /// A terminal of the past: what it had comes from a capture.
    Replayed(Arc<ReplayedPort>),
}

/// What a task waits for: that a terminal changes.
pub(super) enum Change {
    Terminal(Arc<Descriptor>),
    Replayed(Arc<ReplayedPort>),
}

impl Change {
    pub(super) async fn changed(&self) {
        match self {
            Self::Terminal(terminal) => terminal.changed().await,
            Self::Replayed(port) => port.changed().await,
        }
    }
}

impl Wire {
    /// The modem's lines that are always on.
    fn lines(&self, uart: &Uart) -> Lines {
        match self {
            Self::Nothing => Lines::empty(),
            Self::Plug => uart.plugged(),
            Self::Terminal(_) | Self::Replayed(_) => Lines::CTS | Lines::DSR | Lines::DCD,
        }
    }
}

/// A port. All calls are made with the card's lock held.
#[derive(Debug)]
pub(super) struct Port {
    /// The condition behind the card's INTx that is this port's.
    vector: u32,
    uart: Uart,
    wire: Wire,
    /// Where what a terminal has is recorded.
    input_log: Option<InputLog>,
    /// The port has asserted its condition.
    asserted: bool,
}

impl Port {
    pub(super) fn new(vector: u32) -> Self {
        Self {
            vector,
            uart: Uart::default(),
            wire: Wire::Nothing,
            input_log: None,
            asserted: false,
        }
    }

    /// Connects the wire, as if it had been there before.
    pub(super) fn connect(&mut self, wire: Wire, interrupts: &Interrupts, log: &InputLog) {
        self.uart.assume_inputs(wire.lines(&self.uart));
        self.wire = wire;
        self.input_log = Some(log.clone());
        self.settle(interrupts);
    }

    /// Removes the backend. The device is closed, so no guest notices.
    pub(super) fn disconnect(&mut self) {
        self.wire = Wire::Nothing;
    }

    /// Where the terminal is, if it has one.
    pub(super) fn terminal(&self) -> Option<&Path> {
        match &self.wire {
            Wire::Terminal(pty) => Some(pty.path()),
            Wire::Nothing | Wire::Plug | Wire::Replayed(_) => None,
        }
    }

    /// What a task waits for, if there is a terminal.
    pub(super) fn change(&self) -> Option<Change> {
        match &self.wire {
            Wire::Terminal(pty) => Some(Change::Terminal(pty.descriptor().clone())),
            Wire::Replayed(port) => Some(Change::Replayed(port.clone())),
            Wire::Nothing | Wire::Plug => None,
        }
    }

    pub(super) fn read(&mut self, register: Reg, interrupts: &Interrupts) -> u8 {
        let value = self.uart.read(register);
        match register {
            Reg::Data if self.uart.is_drained() => self.settle(interrupts),
            _ => self.drive(interrupts),
        }
        value
    }

    pub(super) fn write(&mut self, register: Reg, value: u8, interrupts: &Interrupts) {
        self.uart.write(register, value);
        self.settle(interrupts);
    }

    /// The terminal may have changed.
    pub(super) fn terminal_changed(&mut self, interrupts: &Interrupts) {
        match &mut self.wire {
            Wire::Terminal(pty) => pty.changed(),
            Wire::Replayed(_) => {}
            Wire::Nothing | Wire::Plug => return,
        }
        self.settle(interrupts);
    }

    /// As after power-on, with the wire connected.
    pub(super) fn reset(&mut self, interrupts: &Interrupts) {
        let lines = self.wire.lines(&Uart::default());
        self.uart.reset(lines);
        self.asserted = false;
        interrupts.set(self.vector, false);
        self.settle(interrupts);
    }

    pub(super) fn save(&self) -> UartImage {
        self.uart.save()
    }

    /// Restores the chip. The interrupt's condition is restored with the function.
    pub(super) fn restore(&mut self, uart: Uart) {
        self.asserted = uart.cause().is_some();
        self.uart = uart;
    }

    /// Moves what can be moved, and makes the interrupt follow.
    fn settle(&mut self, interrupts: &Interrupts) {
        let Self { vector, uart, wire, input_log, .. } = self;
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
                        count => {
                            uart.receive(&buffer[..count]);
                            if let Some(log) = input_log {
                                log.arrived(&ReplayedPort::entry(*vector, &buffer[..count]));
                            }
                        }
                    }
                }
            }
            Wire::Replayed(port) => {
                uart.sent(DEPTH);
                let input = port.take(uart.room());
                uart.receive(&input);
            }
        }
        self.drive(interrupts);
    }

    /// Makes the interrupt follow.
    fn drive(&mut self, interrupts: &Interrupts) {
        let asserted = self.uart.cause().is_some();
        if std::mem::replace(&mut self.asserted, asserted) != asserted {
            interrupts.set(self.vector, asserted);
        }
    }
}
