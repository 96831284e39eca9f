//! How far a controller is in keeping its counters (`kept.rs` does it).

use vfiod_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::counters::KEPT;

/// How counters are kept.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// CNTLID, which the names of what is kept begin with: other controllers of the subsystem have their own.
    controller: u16,
    /// What was kept last.
    pub(crate) last: Mutex<Option<([u64; KEPT], bool)>>,
    pub(crate) wanted: AtomicBool,
    /// A thread keeps what is wanted.
    pub(crate) runs: AtomicBool,
    /// It has failed, and that was logged.
    pub(crate) failed: AtomicBool,
    /// How many snapshots there were.
    snapshots: Mutex<u64>,
    /// The number of the latest snapshot that was kept.
    kept: AtomicU64,
}

/// Counters at one moment, and whether the controller was in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    /// A later one has a larger number.
    number: u64,
    pub(crate) values: ([u64; KEPT], bool),
}

impl Keeping {
    /// How those of a controller with this number are kept.
    pub(crate) fn of(controller: u16) -> Self {
        Self { controller, ..Self::default() }
    }

    /// What `look` finds now.
    pub(crate) fn snapshot(&self, look: impl FnOnce() -> ([u64; KEPT], bool)) -> Snapshot {
        // With the lock held: the order of the numbers is that of the looks.
        let mut number = lock(&self.snapshots);
        *number += 1;
        Snapshot { number: *number, values: look() }
    }

    /// Whether no later snapshot was kept. This one is, from now on.
    pub(crate) fn is_latest(&self, snapshot: &Snapshot) -> bool {
        self.kept.fetch_max(snapshot.number, Ordering::SeqCst) < snapshot.number
    }

    /// The name that something has where it is kept.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.controller)
    }
}
