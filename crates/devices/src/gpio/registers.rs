//! The registers of BAR 2, as Linux's driver and the card's manual name them.

use vfiod_pci::{Register, RegisterMap, Widths};

/// STATUS: an input from 0 to 7 changed since the last acknowledgement.
pub(super) const CHANGED_LOW: u8 = 1;
/// STATUS: an input from 8 to 15 did.
pub(super) const CHANGED_HIGH: u8 = 2;
/// STATUS: the card asserts its interrupt.
pub(super) const ASSERTED: u8 = 4;

/// Reads and writes of the same place often mean different things on this card.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reg {
    /// Outputs 0 to 7.
    OutLow,
    /// Read: inputs 0 to 7. Write: acknowledge the interrupt.
    InLow,
    /// Read: enable the interrupt. Write: disable it.
    InterruptControl,
    /// Read: filter the inputs. Write: do not.
    FilterControl,
    /// Outputs 8 to 15.
    OutHigh,
    /// Inputs 8 to 15.
    InHigh,
    /// What changed, and whether the interrupt is asserted.
    Status,
}

pub(super) const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0, Widths::W1, Reg::OutLow),
    Register::new(1, Widths::W1, Reg::InLow),
    Register::new(2, Widths::W1, Reg::InterruptControl).read_changes(),
    Register::new(3, Widths::W1, Reg::FilterControl).read_changes(),
    Register::new(4, Widths::W1, Reg::OutHigh),
    Register::new(5, Widths::W1, Reg::InHigh),
    Register::new(6, Widths::W1, Reg::Status),
]);
