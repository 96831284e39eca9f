//! Completion queue entries (3.3.3.2).

use super::status::Status;

/// Bytes of an entry.
pub const LEN: usize = 16;
/// Bytes that are written before the rest, in which the phase tag is.
pub const BEFORE_PHASE: usize = 12;

/// What a command ends with, but for the phase tag, which belongs to the place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Dword 0: the command's own.
    pub result: u32,
    /// SQHD: how far the submission queue was read.
    pub head: u16,
    /// SQID.
    pub queue: u16,
    /// CID.
    pub id: u16,
    pub status: Status,
}

impl Completion {
    /// The entry but for its last dword, and that.
    pub fn encode(&self, phase: bool) -> ([u8; BEFORE_PHASE], u32) {
        let mut bytes = [0; BEFORE_PHASE];
        crate::put(&mut bytes, 0, self.result.to_le_bytes());
        crate::put(&mut bytes, 8, self.head.to_le_bytes());
        crate::put(&mut bytes, 10, self.queue.to_le_bytes());
        let last = u32::from(self.id) | u32::from(phase) << 16 | u32::from(self.status.0) << 17;
        (bytes, last)
    }
}
