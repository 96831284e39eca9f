//! A worker, as others see it.

use vfiod_sync::atomic::{AtomicBool, AtomicU64};

/// What others see of a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Different for each worker.
    pub(crate) number: u64,
    /// Its place among the workers, which it has from the one that it replaces.
    pub(crate) seat: usize,
    /// Odd while a task runs; different for each.
    pub(crate) beat: AtomicU64,
    /// Another one has taken its place: it ends after the task that it runs. Stays set, so that the
    /// watchdog, which may have seen the task run before it ended, does not replace it twice.
    pub(crate) replaced: AtomicBool,
}

impl Worker {
    pub(crate) fn new(number: u64, seat: usize) -> Self {
        Self { number, seat, beat: AtomicU64::new(0), replaced: AtomicBool::new(false) }
    }
}
