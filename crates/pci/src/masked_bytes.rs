//! Bytes of configuration space, and which bits of them a guest may write.

/// Bytes and the bits of them that can be written.
#[derive(Clone, Debug)]
pub(crate) struct MaskedBytes {
    pub(crate) bytes: Vec<u8>,
    pub(crate) writable: Vec<u8>,
}

impl MaskedBytes {
    pub(crate) fn new(len: usize) -> Self {
        Self { bytes: vec![0; len], writable: vec![0; len] }
    }

    pub(crate) fn set16(&mut self, offset: usize, value: u16, writable: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        self.writable[offset..offset + 2].copy_from_slice(&writable.to_le_bytes());
    }

    pub(crate) fn set32(&mut self, offset: usize, value: u32, writable: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        self.writable[offset..offset + 4].copy_from_slice(&writable.to_le_bytes());
    }
}
