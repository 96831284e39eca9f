//! The 16550A itself: registers, FIFOs, interrupts. No I/O, no threads, no time: what it sends is
//! taken from it, what it receives is given to it, by [`super::port`].
//!
//! A character takes no time. So there is always either one in a FIFO or none, and the timeout of
//! a receiver FIFO that is not filled to its trigger level has always expired already.

use super::fifo::{DEPTH, Fifo};
use super::image::{FifoImage, UartImage, flag};
use super::registers::*;

/// Why a port interrupts, in the order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Data was lost.
    LineStatus,
    /// The receiver is filled to the trigger level.
    Received,
    /// It has something, and nothing more came.
    Timeout,
    /// The transmitter takes data again.
    Empty,
    /// A line of the modem changed.
    ModemStatus,
}

impl Cause {
    /// What the interrupt identification register says.
    fn id(self) -> u8 {
        match self {
            Self::LineStatus => 0x06,
            Self::Received => 0x04,
            Self::Timeout => 0x0c,
            Self::Empty => 0x02,
            Self::ModemStatus => 0x00,
        }
    }
}

/// The chip.
#[derive(Clone, Debug, Default)]
pub(super) struct Uart {
    interrupt_enable: u8,
    /// The FIFOs are on; without them each direction holds one character.
    fifos: bool,
    /// Receiver's trigger level, in the upper two bits as written.
    trigger: u8,
    line_control: u8,
    modem_control: u8,
    divisor: u16,
    scratch: u8,
    receiver: Fifo,
    transmitter: Fifo,
    overrun: bool,
    /// The interrupt of the empty transmitter waits to be identified.
    empty_pending: bool,
    /// The outside's lines.
    inputs: Lines,
    /// Lower half of the modem status register.
    changes: u8,
}

impl Uart {
    /// As after power-on. The lines are the outside's.
    pub(super) fn reset(&mut self, inputs: Lines) {
        *self = Self { inputs, ..Self::default() };
    }

    /// Everything, by name: a new field must be thought of here.
    pub(super) fn save(&self) -> UartImage {
        let Self {
            interrupt_enable,
            fifos,
            trigger,
            line_control,
            modem_control,
            divisor,
            scratch,
            receiver,
            transmitter,
            overrun,
            empty_pending,
            inputs,
            changes,
        } = *self;
        UartImage {
            divisor: divisor.to_le_bytes(),
            interrupt_enable,
            fifos: fifos.into(),
            trigger,
            line_control,
            modem_control,
            scratch,
            receiver: FifoImage::of(&receiver),
            transmitter: FifoImage::of(&transmitter),
            overrun: overrun.into(),
            empty_pending: empty_pending.into(),
            inputs: inputs.bits(),
            changes,
            has_requested: 0,
        }
    }

    /// The chip in a saved state; `None` where no chip can be in it.
    pub(super) fn restored(image: &UartImage) -> Option<Self> {
        let (receiver, transmitter) = image.fifos()?;
        let uart = Self {
            interrupt_enable: image.interrupt_enable,
            fifos: flag(image.fifos)?,
            trigger: image.trigger,
            line_control: image.line_control,
            modem_control: image.modem_control,
            divisor: u16::from_le_bytes(image.divisor),
            scratch: image.scratch,
            receiver,
            transmitter,
            overrun: flag(image.overrun)?,
            empty_pending: flag(image.empty_pending)?,
            inputs: Lines::from_bits(image.inputs)?,
            changes: image.changes,
        };
        let fits = receiver.len() <= uart.depth() && transmitter.len() <= uart.depth();
        let bits = image.interrupt_enable & !IER_MASK == 0
            && image.modem_control & !MCR_MASK == 0
            && image.changes & 0xf0 == 0;
        (fits && bits).then_some(uart)
    }

    pub(super) fn read(&mut self, register: Reg) -> u8 {
        match register {
            Reg::Data if self.divisor_latched() => self.divisor as u8,
            Reg::InterruptEnable if self.divisor_latched() => (self.divisor >> 8) as u8,
            Reg::Data => self.receiver.pop().unwrap_or(0),
            Reg::InterruptEnable => self.interrupt_enable,
            Reg::InterruptIdentification => {
                let cause = self.cause();
                if cause == Some(Cause::Empty) {
                    self.empty_pending = false;
                }
                cause.map_or(IIR_NONE, Cause::id) | if self.fifos { IIR_FIFO } else { 0 }
            }
            Reg::LineControl => self.line_control,
            Reg::ModemControl => self.modem_control,
            Reg::LineStatus => {
                let bit = |on: bool, bit: u8| if on { bit } else { 0 };
                bit(!self.receiver.is_empty(), LSR_READY)
                    | bit(std::mem::take(&mut self.overrun), LSR_OVERRUN)
                    | bit(self.transmitter.is_empty(), LSR_EMPTY | LSR_IDLE)
            }
            Reg::ModemStatus => self.lines().bits() | std::mem::take(&mut self.changes),
            Reg::Scratch => self.scratch,
        }
    }

    pub(super) fn write(&mut self, register: Reg, value: u8) {
        match register {
            Reg::Data if self.divisor_latched() => {
                self.divisor = self.divisor & 0xff00 | u16::from(value);
            }
            Reg::InterruptEnable if self.divisor_latched() => {
                self.divisor = self.divisor & 0x00ff | u16::from(value) << 8;
            }
            Reg::Data => self.send(value & self.character_mask()),
            Reg::InterruptEnable => {
                let before = std::mem::replace(&mut self.interrupt_enable, value & IER_MASK);
                // Enabling it reports a transmitter that is empty already.
                if value & !before & IER_EMPTY != 0 && self.transmitter.is_empty() {
                    self.empty_pending = true;
                }
            }
            Reg::InterruptIdentification => self.control_fifos(value),
            Reg::LineControl => self.line_control = value,
            Reg::ModemControl => self.control_modem(value & MCR_MASK),
            Reg::Scratch => self.scratch = value,
            Reg::LineStatus | Reg::ModemStatus => {} // for the factory's tests only
        }
    }

    /// Why it interrupts, the first of several causes.
    pub(super) fn cause(&self) -> Option<Cause> {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        let received = enabled(IER_RECEIVED) && !self.receiver.is_empty();
        if enabled(IER_LINE) && self.overrun {
            Some(Cause::LineStatus)
        } else if received && self.receiver.len() >= self.trigger_level() {
            Some(Cause::Received)
        } else if received {
            Some(Cause::Timeout)
        } else if enabled(IER_EMPTY) && self.empty_pending {
            Some(Cause::Empty)
        } else if enabled(IER_MODEM) && self.changes != 0 {
            Some(Cause::ModemStatus)
        } else {
            None
        }
    }

    /// What waits to be sent, the oldest first.
    pub(super) fn to_send(&self) -> &[u8] {
        self.transmitter.bytes()
    }

    /// The `count` oldest of them have been sent.
    pub(super) fn sent(&mut self, count: usize) {
        if count > 0 && !self.transmitter.is_empty() {
            self.transmitter.remove(count);
            self.empty_pending |= self.transmitter.is_empty();
        }
    }

    /// How many characters it can receive now without loss; none while it listens to itself. The
    /// chip has no automatic flow control: request to send (RTS) is an output pin and no more
    /// (PC16550D data sheet, modem control register), so a driver may use it for the direction of an RS-485 line.
    pub(super) fn room(&self) -> usize {
        if self.loops() { 0 } else { self.depth() - self.receiver.len() }
    }

    /// Receives characters; one for which there is no room is an overrun.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.hear(byte & self.character_mask());
        }
    }

    /// The receiver has nothing.
    pub(super) fn is_drained(&self) -> bool {
        self.receiver.is_empty()
    }

    /// The modem's lines as if they had never been different.
    pub(super) fn assume_inputs(&mut self, inputs: Lines) {
        self.inputs = inputs;
    }

    /// The outside changes the modem's lines.
    pub(super) fn set_inputs(&mut self, inputs: Lines) {
        let before = self.lines();
        self.inputs = inputs;
        self.note_changes(before);
    }

    /// What a plug makes of the outputs that joins each to the inputs that belong to it: request
    /// to send is clear to send, terminal ready is set ready and carrier.
    pub(super) fn plugged(&self) -> Lines {
        let outputs = if self.loops() { 0 } else { self.modem_control };
        let mut lines = Lines::empty();
        lines.set(Lines::CTS, outputs & MCR_RTS != 0);
        lines.set(Lines::DSR | Lines::DCD, outputs & MCR_DTR != 0);
        lines
    }

    fn divisor_latched(&self) -> bool {
        self.line_control & LCR_DIVISOR != 0
    }

    fn loops(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }

    fn character_mask(&self) -> u8 {
        0xff >> (3 - (self.line_control & LCR_LENGTH))
    }

    /// Characters that each direction holds.
    fn depth(&self) -> usize {
        if self.fifos { DEPTH } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        match self.trigger >> 6 {
            _ if !self.fifos => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn send(&mut self, byte: u8) {
        self.empty_pending = false;
        if self.transmitter.len() < self.depth() {
            self.transmitter.push(byte);
        } else if !self.fifos {
            self.transmitter.clear(); // the register is overwritten
            self.transmitter.push(byte);
        }
        self.loop_back();
    }

    /// In loop-back mode everything is sent at once, to itself.
    fn loop_back(&mut self) {
        if self.loops() {
            while let Some(byte) = self.transmitter.pop() {
                self.hear(byte);
                self.empty_pending |= self.transmitter.is_empty();
            }
        }
    }

    fn hear(&mut self, byte: u8) {
        if self.receiver.len() < self.depth() {
            self.receiver.push(byte);
            return;
        }
        self.overrun = true;
        if !self.fifos {
            self.receiver.clear(); // the register is overwritten
            self.receiver.push(byte);
        }
    }

    fn control_fifos(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        let toggled = std::mem::replace(&mut self.fifos, enable) != enable;
        if toggled || enable && value & FCR_CLEAR_RECEIVER != 0 {
            self.receiver.clear();
        }
        if toggled || enable && value & FCR_CLEAR_TRANSMITTER != 0 {
            self.sent(DEPTH);
        }
        self.trigger = if enable { value } else { 0 };
    }

    fn control_modem(&mut self, value: u8) {
        let before = self.lines();
        self.modem_control = value;
        self.note_changes(before);
        self.loop_back();
    }

    /// The lines as the modem status register has them.
    fn lines(&self) -> Lines {
        if !self.loops() {
            return self.inputs;
        }
        let mut lines = Lines::empty();
        lines.set(Lines::CTS, self.modem_control & MCR_RTS != 0);
        lines.set(Lines::DSR, self.modem_control & MCR_DTR != 0);
        lines.set(Lines::RI, self.modem_control & MCR_OUT1 != 0);
        lines.set(Lines::DCD, self.modem_control & MCR_OUT2 != 0);
        lines
    }

    /// Of the ring indicator only its end counts.
    fn note_changes(&mut self, before: Lines) {
        let now = self.lines();
        let changed = (before ^ now) - (Lines::RI & now);
        self.changes |= changed.bits() >> 4;
    }
}
