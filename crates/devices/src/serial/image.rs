//! The saved state of the card.

use super::fifo::{DEPTH, Fifo};

vfiod_pci::image! {
    /// Both ports; the second one is at its power-on values where the card has one.
    pub struct SerialImage {
        pub(super) ports: [UartImage; 2],
    }
}

vfiod_pci::image! {
    /// A FIFO: the first `len` bytes.
    #[derive(Copy, Default)]
    pub struct FifoImage {
        bytes: [u8; DEPTH],
        len: u8,
    }
}

impl FifoImage {
    pub(super) fn of(fifo: &Fifo) -> Self {
        let mut image = Self { len: fifo.len() as u8, ..Self::default() };
        image.bytes[..fifo.len()].copy_from_slice(fifo.bytes());
        image
    }

    fn fifo(&self) -> Option<Fifo> {
        Fifo::of(self.bytes.get(..usize::from(self.len))?)
    }
}

vfiod_pci::image! {
    /// The chip; see [`Uart`](super::uart::Uart). Flags are 0 or 1.
    #[derive(Copy, Default)]
    pub struct UartImage {
        pub(super) divisor: [u8; 2],
        pub(super) interrupt_enable: u8,
        pub(super) fifos: u8,
        pub(super) trigger: u8,
        pub(super) line_control: u8,
        pub(super) modem_control: u8,
        pub(super) scratch: u8,
        pub(super) receiver: FifoImage,
        pub(super) transmitter: FifoImage,
        pub(super) overrun: u8,
        pub(super) empty_pending: u8,
        pub(super) inputs: u8,
        pub(super) changes: u8,
        /// Not used any more; written as 0, and ignored. Version 1 has it.
        pub(super) has_requested: u8,
    }
}

impl UartImage {
    pub(super) fn fifos(&self) -> Option<(Fifo, Fifo)> {
        Some((self.receiver.fifo()?, self.transmitter.fifo()?))
    }
}

/// A flag of an image.
pub(super) fn flag(value: u8) -> Option<bool> {
    match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
