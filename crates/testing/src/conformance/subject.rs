//! The model under test.

use vfiod_pci::Model;

use crate::driver::Driver;
use crate::snapshot::Snapshot;

/// A model under test and what must be known of it. Its methods are the checks.
pub struct Subject<F> {
    /// Makes the model.
    pub make: F,
    /// Places (BAR, offset) that change by themselves and that the model's register map cannot
    /// declare volatile.
    pub unstable: &'static [(u32, u64)],
}

impl<M: Model, F: Fn() -> M> Subject<F> {
    pub(super) fn open(&self) -> Driver {
        Driver::new((self.make)())
    }

    pub(super) fn snapshot(&self, device: &Driver) -> Snapshot {
        Snapshot::take(device, self.unstable)
    }
}
