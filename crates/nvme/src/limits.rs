//! What a command may be at most, and what a controller has unless its options say otherwise.

/// MDTS, as a power of two of pages of 4 KiB.
pub(crate) const MAX_TRANSFER_PAGES: u8 = 8;
/// Bytes of data that a command may have.
pub(crate) const MAX_TRANSFER: u64 = 4096 << MAX_TRANSFER_PAGES;
/// WZSL: bytes that one Write Zeroes may be for, as a power of two of pages of 4 KiB.
pub(crate) const MAX_ZEROES_PAGES: u8 = 13;
pub(crate) const MAX_ZEROES: u64 = 4096 << MAX_ZEROES_PAGES;
/// Source ranges that a Copy command may have (MSRC).
pub(crate) const MAX_COPY_RANGES: usize = 128;

/// Outstanding Asynchronous Event Requests (AERL, as a count).
pub(crate) const MAX_EVENT_REQUESTS: usize = 4;

/// The largest number of a namespace that the options allow. So a list of namespaces, which has 1,024
/// entries, has a place for all.
pub(crate) const LARGEST_NAMESPACE: u32 = 1024;
/// The largest number that a namespace can have, unless the options say so.
pub(crate) const DEFAULT_NAMESPACES: u32 = 16;
/// Commands that may be under way, unless the options say so.
pub(crate) const DEFAULT_COMMANDS: u32 = 1024;
/// Bytes of buffers that a controller may have at the same time, unless the options say so.
pub(crate) const DEFAULT_BUFFERS: usize = 16 << 20;
/// Bytes that a completion queue is charged as, and a submission queue: with its task, and the places of commands that
/// are kept for it though none is under way. Entries are in the host's memory.
pub(crate) const COMPLETION_QUEUE_MEMORY: u64 = 2 << 10;
pub(crate) const SUBMISSION_QUEUE_MEMORY: u64 = 34 << 10;
/// Completions that are saved while they wait until the host lets the device reach memory: those of as many
/// commands, and of all requests for events.
pub(crate) const MAX_DEFERRED: usize = DEFAULT_COMMANDS as usize + MAX_EVENT_REQUESTS;
