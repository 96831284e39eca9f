//! The model under test.

use vfiod_pci::Model;

use crate::driver::Driver;
use crate::snapshot::Snapshot;

/// A model under test and what must be known of it. Its methods are the checks.
pub struct Subject<F> {
    pub(super) make: F,
    pub(super) unstable: &'static [(u32, u64)],
    pub(super) measured: &'static [&'static str],
    pub(super) dma: Option<fn(&Driver)>,
}

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// A model of which nothing more needs to be known.
    pub fn new(make: F) -> Self {
        Self { make, unstable: &[], measured: &[], dma: None }
    }

    /// Places (BAR, offset) that change by themselves and that the model's register map cannot
    /// declare volatile.
    #[must_use]
    pub fn unstable(self, unstable: &'static [(u32, u64)]) -> Self {
        Self { unstable, ..self }
    }

    /// Fields of the model's saved state, as JSON pointers (`/figures/nanoseconds`), that are measured
    /// and so differ from run to run.
    #[must_use]
    pub fn measured(self, measured: &'static [&'static str]) -> Self {
        Self { measured, ..self }
    }

    /// Makes the model start DMA to or from guest memory that begins at address 0. Bus mastering is
    /// enabled.
    #[must_use]
    pub fn dma(self, start: fn(&Driver)) -> Self {
        Self { dma: Some(start), ..self }
    }

    pub(super) fn open(&self) -> Driver {
        Driver::new((self.make)())
    }

    pub(super) fn snapshot(&self, device: &Driver) -> Snapshot {
        Snapshot::take(device, self.unstable)
    }
}
