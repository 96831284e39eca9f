//! A worker, as others see it.

use vfiod_sync::atomic::{AtomicBool, AtomicU64};

/// What others see of a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Different for each worker.
    pub(crate) number: u64,
    /// Odd while a task runs; different for each.
    pub(crate) beat: AtomicU64,
    /// Another one has taken its place: it ends after the task that it runs.
    pub(crate) replaced: AtomicBool,
}

impl Worker {
    pub(crate) fn new(number: u64) -> Self {
        Self { number, beat: AtomicU64::new(0), replaced: AtomicBool::new(false) }
    }
}
