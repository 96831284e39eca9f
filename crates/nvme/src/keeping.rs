//! How far a controller is in keeping its counters (`kept.rs` does it).

use vfiod_sync::Mutex;
use vfiod_sync::atomic::AtomicBool;

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
}

impl Keeping {
    /// How those of a controller with this number are kept.
    pub(crate) fn of(controller: u16) -> Self {
        Self { controller, ..Self::default() }
    }

    /// The name that something has where it is kept.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.controller)
    }
}
