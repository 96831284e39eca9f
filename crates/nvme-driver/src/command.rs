//! Submission and completion queue entries (NVM Express base 2.0, 3.3.3), as the host sees them.

use std::fmt;

/// Bytes of a submission queue entry.
pub(crate) const SUBMISSION: usize = 64;
/// Bytes of a completion queue entry.
pub(crate) const COMPLETION: usize = 16;

/// Opcodes: of admin commands (base 2.0, 5), and of I/O commands (NVM command set 1.0, 3).
pub mod opcode {
    #![expect(missing_docs, reason = "they are the specification's names")]

    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNCHRONOUS_EVENT_REQUEST: u8 = 0x0c;
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;

    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
}

/// A command, but for its identifier and where its data is: the queue sets these.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Command([u32; SUBMISSION / 4]);

impl Command {
    /// A command of an [`opcode`], all else 0.
    pub fn new(opcode: u8) -> Self {
        let mut dwords = [0; SUBMISSION / 4];
        dwords[0] = opcode.into();
        Self(dwords)
    }

    /// Sets Command Dword `n`, 0 to 15.
    ///
    /// # Panics
    /// There is no Dword `n`.
    #[must_use]
    pub fn dword(mut self, n: usize, value: u32) -> Self {
        self.0[n] = value;
        self
    }

    /// Command Dword `n`, 0 to 15.
    ///
    /// # Panics
    /// There is no Dword `n`.
    pub fn get(&self, n: usize) -> u32 {
        self.0[n]
    }

    /// Sets the namespace.
    #[must_use]
    pub fn namespace(self, id: u32) -> Self {
        self.dword(1, id)
    }

    /// Sets the blocks that an I/O command is about: `count` of them, 1 to 65,536, from `first` on.
    #[must_use]
    pub fn blocks(self, first: u64, count: u32) -> Self {
        let (low, high) = (first as u32, (first >> 32) as u32);
        let others = self.0[12] & !0xffff;
        self.dword(10, low).dword(11, high).dword(12, others | (count.wrapping_sub(1) & 0xffff))
    }

    /// Force Unit Access: what a write has written is durable when it completes.
    #[must_use]
    pub fn durable(self) -> Self {
        let dword = self.0[12] | 1 << 30;
        self.dword(12, dword)
    }

    /// The bytes of the entry.
    pub(crate) fn encode(mut self, id: u16, (first, second): (u64, u64)) -> [u8; SUBMISSION] {
        self.0[0] |= u32::from(id) << 16;
        if (first, second) != (0, 0) {
            let part = |value: u64, n: u32| (value >> (32 * n)) as u32;
            self.0[6..10].copy_from_slice(&[
                part(first, 0),
                part(first, 1),
                part(second, 0),
                part(second, 1),
            ]);
        }
        let mut bytes = [0; SUBMISSION];
        for (place, dword) in bytes.chunks_exact_mut(4).zip(self.0) {
            place.copy_from_slice(&dword.to_le_bytes());
        }
        bytes
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({:x?})", self.0)
    }
}

/// What a command ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The identifier that the queue gave the command when it was submitted.
    pub id: u16,
    /// Dword 0, whose meaning is the command's.
    pub result: u32,
    /// Whether it succeeded.
    pub status: Status,
}

impl Completion {
    /// The entry of these bytes, and its phase tag.
    pub(crate) fn decode(bytes: &[u8; COMPLETION]) -> (Self, bool) {
        let [r0, r1, r2, r3, .., i0, i1, s0, s1] = *bytes;
        let last = u16::from_le_bytes([s0, s1]);
        let result = u32::from_le_bytes([r0, r1, r2, r3]);
        let id = u16::from_le_bytes([i0, i1]);
        (Self { id, result, status: Status(last >> 1) }, last & 1 != 0)
    }
}

/// The status of a command (3.3.3.2.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// Whether the command succeeded.
    pub fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Status code type, bits 8 to 10, and status code, bits 0 to 7.
    pub fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// Do Not Retry: the same command would fail again.
    pub fn do_not_retry(self) -> bool {
        self.0 & 1 << 14 != 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.code() >> 8, self.code() & 0xff);
        write!(f, "status code type {kind:x}h, status code {code:02x}h")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#x})", self.0)
    }
}
