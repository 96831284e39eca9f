//! What a back end can do.

/// What a back end can do. All in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk, a multiple of `block`.
    pub capacity: u64,
    /// What offsets and lengths are multiples of: a power of two, at least 512. The controller's
    /// format has blocks of this size or larger ones.
    pub block: u32,
    /// What is written whole or not at all when power fails; at least `block`.
    pub atomic_write: u32,
    /// The alignment and the size at which writes are fast, a multiple of `block`.
    pub preferred_write: u32,
    /// No request may change anything.
    pub read_only: bool,
    /// What was written may be lost until it is flushed.
    pub volatile: bool,
    /// The granularity at which space is given back, a multiple of `block`. `None`: it is not, and
    /// [`Request::Deallocate`](crate::Request::Deallocate) fails.
    pub deallocate: Option<u32>,
    /// Whole blocks that were deallocated read as zeroes, guaranteed.
    pub deallocated_reads_zero: bool,
    /// The longest range of one deallocate or zero request that takes no longer than one of
    /// megabytes of writes; the controller splits longer ones and tells the guest.
    pub max_range: u64,
}
