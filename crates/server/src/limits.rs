//! Bounds on what a peer can make us spend, and warnings that a peer cannot flood the log with.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Replies that are collected before they are sent.
pub(crate) const REPLY_BATCH: usize = 256 << 10;
/// Threads that may be with one device at a time. The device handles one access at a time
/// anyway; more would only make it easier to use up all threads.
pub(crate) const MAX_THREADS_PER_DEVICE: usize = 8;
/// Receives in a row without a pause that make a connection a busy one.
pub(crate) const BUSY_STREAK: u64 = 64;
/// Connections to one socket at a time.
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// Connections beyond twice those that are on their way out, before no others are taken in.
pub(crate) const MAX_LEAVING: usize = 128;

/// Lets one warning a second through and counts the others.
#[derive(Debug)]
pub(crate) struct Quiet {
    start: Instant,
    /// Second (from `start`, plus 1) of the last warning.
    last: AtomicU64,
    swallowed: AtomicU64,
}

impl Default for Quiet {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), swallowed: AtomicU64::new(0) }
    }
}

impl Quiet {
    /// Calls `warn` with the number of warnings swallowed before, unless one went out already
    /// in this second.
    pub(crate) fn warn(&self, warn: impl FnOnce(u64)) {
        let now = self.start.elapsed().as_secs() + 1;
        if self.last.swap(now, Ordering::Relaxed) == now {
            self.swallowed.fetch_add(1, Ordering::Relaxed);
        } else {
            warn(self.take_suppressed());
        }
    }

    /// How many warnings were swallowed since the last one, for whoever reports the end. They are
    /// not reported again.
    pub(crate) fn take_suppressed(&self) -> u64 {
        self.swallowed.swap(0, Ordering::Relaxed)
    }
}
