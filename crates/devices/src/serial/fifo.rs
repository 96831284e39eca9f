//! The FIFO of a 16550A.

/// Characters that it holds.
pub(super) const DEPTH: usize = 16;

/// Up to 16 characters in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fifo {
    bytes: [u8; DEPTH],
    len: usize,
}

impl Fifo {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, the oldest first.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Adds a character; whether there was room.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        let Some(place) = self.bytes.get_mut(self.len) else { return false };
        *place = byte;
        self.len += 1;
        true
    }

    /// Takes the oldest.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = *self.bytes().first()?;
        self.remove(1);
        Some(byte)
    }

    /// Takes the `count` oldest, at most all.
    pub(super) fn remove(&mut self, count: usize) {
        let count = count.min(self.len);
        self.bytes.copy_within(count..self.len, 0);
        self.len -= count;
    }

    /// A FIFO with these characters, at most 16.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut fifo = Self { len: bytes.len(), ..Self::default() };
        fifo.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(fifo)
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}
