//! A disk, as its channels use it.

use std::sync::Arc;

use vfiod_dma::{Errno, Error};
use vfiod_sync::Mutex;
use vfiod_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use vfiod_tasks::Waiters;

use crate::backend::Backend;
use crate::failure::{Failure, FailureKind};
use crate::limits::Limits;
use crate::pieces::PieceSize;
use crate::ranges::Ranges;
use crate::syncs::Syncs;

/// What all channels of a disk have in common.
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Mutex<Limits>,
    /// Of the limits: requests look at it without a lock. It becomes smaller before the end is cut off.
    pub(crate) capacity: AtomicU64,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) syncs: Arc<Syncs>,
    pub(crate) write_through: AtomicBool,
    pub(crate) piece: PieceSize,
    pub(crate) in_flight: AtomicUsize,
    pub(crate) ended: Waiters,
}

impl Shared {
    /// Whether the disk goes as far as this.
    pub(crate) fn has(&self, end: u64) -> bool {
        end <= self.capacity.load(Ordering::SeqCst)
    }

    pub(crate) fn out_of_range(&self, offset: u64, len: u64) -> Failure {
        let capacity = self.capacity.load(Ordering::SeqCst);
        let what = format!("{len} bytes at {offset:#x} of a disk of {capacity}");
        Failure { kind: FailureKind::OutOfRange, error: Error::new(Errno::NXIO, what) }
    }
}
