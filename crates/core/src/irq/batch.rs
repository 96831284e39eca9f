//! Interrupts that are raised together and signalled afterwards.

use super::eventfd::EventFd;
use super::index::{self, IrqVector, Noted};
use crate::sync::Arc;

/// Interrupts that were raised and are not signalled yet. Dropping it sends them.
///
/// A vector that was raised is pending until then, also in a saved state. What a mask or a client
/// changes before [`IrqBatch::send`] counts: a line that was asserted and deasserted again is not
/// signalled.
#[derive(Debug, Default)]
pub struct IrqBatch {
    noted: Noted,
    /// Empty between calls; kept for its memory.
    signals: Vec<(IrqVector, Arc<EventFd>)>,
}

impl IrqBatch {
    /// An empty batch. It can be used again after [`IrqBatch::send`], and allocates nothing then
    /// for as many vectors as before.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a call and collects the interrupts that it raises on this thread, through whatever
    /// handles. Calls may be nested: each collects its own.
    ///
    /// If the call panics, what it has raised so far stays pending.
    pub fn collect<R>(call: impl FnOnce() -> R) -> (R, Self) {
        let (result, noted) = index::collect(call);
        (result, Self { noted, signals: Vec::new() })
    }

    /// Triggers a vector, as [`IrqVector::trigger`] does, but signals it later.
    pub fn trigger(&mut self, vector: &IrqVector) {
        vector.defer(&mut self.noted, |state| state.edge(vector.index.enabled()));
    }

    /// Sets the level of a line, as [`IrqVector::set_level`] does, but signals it later.
    pub fn set_level(&mut self, vector: &IrqVector, asserted: bool) {
        vector.defer(&mut self.noted, |state| state.set_level(asserted));
    }

    /// Whether nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    /// Decides about every vector, and then signals them all. The batch is empty afterwards.
    /// Blocks no longer than a single trigger does for each vector.
    pub fn send(&mut self) {
        for (vector, due) in self.noted.drain(..) {
            if let Some(fd) = vector.index.decide(vector.at, |_| due) {
                self.signals.push((vector, fd));
            }
        }
        for (vector, fd) in self.signals.drain(..) {
            vector.index.send(vector.at, &fd);
        }
    }
}

impl Drop for IrqBatch {
    fn drop(&mut self) {
        self.send();
    }
}
