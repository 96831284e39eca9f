//! The registers of BAR 2.

use vfiod_pci::{Register, RegisterMap, Widths};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    /// A write runs an operation before it is answered; see [`Op`].
    Op,
    /// How often.
    Iters,
    /// Address of the first window.
    Base,
    /// Distance from one window to the next, bytes.
    Stride,
    /// Number of windows.
    Count,
    /// Bytes of one access.
    Len,
    /// How long the last operation took, ns.
    ResultNs,
    /// How many of its iterations failed, or were not reached in time.
    Errors,
    /// A sum over what it read or translated.
    Check,
}

pub(super) const COUNT: usize = 9;

pub(super) const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0x00, Widths::W8, Reg::Op),
    Register::new(0x08, Widths::W8, Reg::Iters),
    Register::new(0x10, Widths::W8, Reg::Base),
    Register::new(0x18, Widths::W8, Reg::Stride),
    Register::new(0x20, Widths::W8, Reg::Count),
    Register::new(0x28, Widths::W8, Reg::Len),
    Register::new(0x30, Widths::W8, Reg::ResultNs),
    Register::new(0x38, Widths::W8, Reg::Errors),
    Register::new(0x40, Widths::W8, Reg::Check),
]);

/// What a write to OP can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// 1: translate an address in a random window.
    TranslateRandom,
    /// 2: translate one in the first window.
    TranslateSame,
    /// 3 and 4: read LEN bytes of a random window; by copy where it is memory, by message where
    /// only messages reach it. The device does not notice the difference.
    Read,
    /// 5: trigger MSI-X vector 0.
    Interrupt,
}

impl Op {
    pub(super) fn from_value(value: u64) -> Option<Self> {
        match value {
            1 => Some(Self::TranslateRandom),
            2 => Some(Self::TranslateSame),
            3 | 4 => Some(Self::Read),
            5 => Some(Self::Interrupt),
            _ => None,
        }
    }
}
