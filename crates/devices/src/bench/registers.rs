//! The registers of BAR 2, the doorbells, and the rings in guest memory.
//!
//! | BAR 2 | what |
//! | --- | --- |
//! | 0x0000 | registers of the operations that are measured ([`Measurement`](super::measure::Measurement)) |
//! | 0x1000 + 4 · *q* | doorbell of queue *q*, 4 bytes, any value; queues 0-7 also by eventfd |
//! | 0x1100 | a 4-byte write of *q* rings queue *q*; queues 8-15 also by eventfd with datamatch |
//! | 0x2000 + 64 · *q* | registers of queue *q* ([`Queue`](super::queue::Queue)) |
//!
//! With the option `polled`, BAR 3 is a page that clients may map. A store of another value to the
//! 4 bytes at 4 · *q* rings queue *q*: the device polls the page, and never sleeps while it is
//! open. A message to it stores and rings.
//!
//! A queue has two rings of the same number of entries in guest memory; all numbers are
//! little-endian.
//!
//! | submission ring | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | how many commands were ever submitted, modulo 2^32 |
//! | 64 + 32 · (*n* mod entries) | 32 | command *n* |
//!
//! | command | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | tag: comes back with the completion |
//! | 4 | 4 | operation: 0 nothing, 1 file to memory, 2 memory to file |
//! | 8 | 8 | address in guest memory |
//! | 16 | 8 | offset in the file |
//! | 24 | 4 | length in bytes, at most 1 MiB |
//!
//! | completion | bytes | at completion ring + 16 · (*n* mod entries), of command *n* |
//! | --- | --- | --- |
//! | 0 | 4 | tag |
//! | 4 | 4 | 0, or the errno of Linux |
//! | 8 | 4 | bytes moved |
//! | 12 | 4 | *n* + 1, stored last: the completion is there |
//!
//! Commands may run at the same time. They complete in order, each exactly once, and the queue's
//! MSI-X vector tells. At most as many may be under way as a ring has entries. Where a ring cannot
//! be reached the queue counts a fault and goes on from there when it is rung again.

/// The queues.
pub(super) const QUEUES: usize = 64;
/// Size of BAR 2 in bytes.
pub(super) const SIZE: u64 = 0x4000;
/// Doorbells of the queues, 4 bytes each.
pub(super) const DOORBELLS: u64 = 0x1000;
/// The doorbell that takes the number of a queue.
pub(super) const SELECT: u64 = 0x1100;
/// Registers of the queues.
pub(super) const QUEUE_REGISTERS: u64 = 0x2000;
/// Size of the registers of a queue in bytes.
pub(super) const QUEUE_STRIDE: u64 = 64;
/// Queues that are also rung by eventfds without datamatch: the first ones.
pub(super) const BY_EVENTFD: usize = 8;
/// Queues that are also rung by eventfds with datamatch: those that follow.
pub(super) const BY_DATAMATCH: usize = 8;

/// The queue whose registers an access to BAR 2 means, and the offset in them.
pub(super) fn queue_at(offset: u64) -> Option<(usize, u64)> {
    let within = offset.checked_sub(QUEUE_REGISTERS)?;
    let queue = usize::try_from(within / QUEUE_STRIDE).ok()?;
    (queue < QUEUES).then_some((queue, within % QUEUE_STRIDE))
}

/// What a write to OP can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// 1: translate an address in a random mapping.
    TranslateRandom,
    /// 2: translate one in the first mapping.
    TranslateSame,
    /// 3 and 4: read LEN bytes of a random mapping; by copy where it is memory, by message where
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
