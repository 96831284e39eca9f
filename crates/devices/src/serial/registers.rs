//! The registers of a port's BAR, as the 16550A's data sheet names them.

use vfiod_pci::{Register, RegisterMap, Widths};

/// Reads and writes of the same place often mean different things; the divisor latch lies over
/// the first two places while [`LCR_DIVISOR`] is set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reg {
    /// Read: receiver buffer. Write: transmitter holding register. Divisor, low half.
    Data,
    /// Interrupt enable. Divisor, high half.
    InterruptEnable,
    /// Read: interrupt identification. Write: FIFO control.
    InterruptIdentification,
    LineControl,
    ModemControl,
    /// Read-only.
    LineStatus,
    /// Read-only.
    ModemStatus,
    /// Does nothing.
    Scratch,
}

pub(super) const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0, Widths::W1, Reg::Data).read_changes(),
    Register::new(1, Widths::W1, Reg::InterruptEnable),
    Register::new(2, Widths::W1, Reg::InterruptIdentification).read_changes(),
    Register::new(3, Widths::W1, Reg::LineControl),
    Register::new(4, Widths::W1, Reg::ModemControl),
    Register::new(5, Widths::W1, Reg::LineStatus).read_changes(),
    Register::new(6, Widths::W1, Reg::ModemStatus).read_changes(),
    Register::new(7, Widths::W1, Reg::Scratch),
]);

/// INTERRUPT ENABLE: data received.
pub(super) const IER_RECEIVED: u8 = 0x01;
/// INTERRUPT ENABLE: transmitter holding register empty.
pub(super) const IER_EMPTY: u8 = 0x02;
/// INTERRUPT ENABLE: line status.
pub(super) const IER_LINE: u8 = 0x04;
/// INTERRUPT ENABLE: modem status.
pub(super) const IER_MODEM: u8 = 0x08;
/// INTERRUPT ENABLE: all that there is.
pub(super) const IER_MASK: u8 = 0x0f;

/// INTERRUPT IDENTIFICATION: no interrupt.
pub(super) const IIR_NONE: u8 = 0x01;
/// INTERRUPT IDENTIFICATION: the FIFOs are on.
pub(super) const IIR_FIFO: u8 = 0xc0;

/// FIFO CONTROL: on. Without it, nothing else in the register counts.
pub(super) const FCR_ENABLE: u8 = 0x01;
/// FIFO CONTROL: empty the receiver's.
pub(super) const FCR_CLEAR_RECEIVER: u8 = 0x02;
/// FIFO CONTROL: empty the transmitter's.
pub(super) const FCR_CLEAR_TRANSMITTER: u8 = 0x04;

/// LINE CONTROL: bits of a character, 5 to 8.
pub(super) const LCR_LENGTH: u8 = 0x03;
/// LINE CONTROL: the divisor latch lies over the first two registers.
pub(super) const LCR_DIVISOR: u8 = 0x80;

/// MODEM CONTROL: data terminal ready.
pub(super) const MCR_DTR: u8 = 0x01;
/// MODEM CONTROL: request to send.
pub(super) const MCR_RTS: u8 = 0x02;
/// MODEM CONTROL: first output for anything.
pub(super) const MCR_OUT1: u8 = 0x04;
/// MODEM CONTROL: second output for anything.
pub(super) const MCR_OUT2: u8 = 0x08;
/// MODEM CONTROL: everything sent is received, inside the chip.
pub(super) const MCR_LOOP: u8 = 0x10;
/// MODEM CONTROL: all that there is.
pub(super) const MCR_MASK: u8 = 0x1f;

/// LINE STATUS: data has been received.
pub(super) const LSR_READY: u8 = 0x01;
/// LINE STATUS: data has been lost.
pub(super) const LSR_OVERRUN: u8 = 0x02;
/// LINE STATUS: the transmitter takes data.
pub(super) const LSR_EMPTY: u8 = 0x20;
/// LINE STATUS: the last bit has been sent.
pub(super) const LSR_IDLE: u8 = 0x40;

bitflags::bitflags! {
    /// MODEM STATUS, upper half: the modem's lines, on where their bit is set.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Lines: u8 {
        /// Clear to send.
        const CTS = 0x10;
        /// Data set ready.
        const DSR = 0x20;
        /// Ring indicator.
        const RI = 0x40;
        /// Data carrier detect.
        const DCD = 0x80;
    }
}
