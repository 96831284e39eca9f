//! Sizes of the files of a connection. They take memory only where they are used.

/// The outbox after which a lap ends.
pub const LAP_BYTES: u64 = 2 << 20;
/// The longest message that a lap may end with, and some more.
pub const MESSAGE_BYTES: u64 = (1 << 20) + (64 << 10);
/// The file of the outbox.
pub const OUTBOX_BYTES: u64 = LAP_BYTES + MESSAGE_BYTES;
/// The file of the journal.
pub const JOURNAL_BYTES: u64 = 256 << 10;
