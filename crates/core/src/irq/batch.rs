//! Interrupts that are raised together and signalled afterwards.

use super::index::{self, IrqVector, Noted};

/// Interrupts that were raised and are not signalled yet. Dropping it sends them.
///
/// A vector that was raised is pending until then, also in a saved state. What a mask or a client
/// changes before [`IrqBatch::send`] counts: a line that was asserted and deasserted again is not
/// signalled.
#[derive(Debug, Default)]
pub struct IrqBatch {
    noted: Noted,
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
        (result, Self { noted })
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
        if let [raised] = &*self.noted {
            // The usual case, in one step.
            raised.vector.index.apply(raised.vector.at, |_| raised.due);
        } else {
            for raised in &mut self.noted {
                let (vector, due) = (&raised.vector, raised.due);
                raised.signal = vector.index.decide(vector.at, |_| due);
            }
            for raised in &mut self.noted {
                if let Some(fd) = raised.signal.take() {
                    raised.vector.index.send(raised.vector.at, &fd);
                }
            }
        }
        self.noted.clear();
    }

    /// Sends nothing. What was raised stays pending.
    pub(crate) fn discard(&mut self) {
        self.noted.clear();
    }
}

impl Drop for IrqBatch {
    fn drop(&mut self) {
        self.send();
        index::recycle(std::mem::take(&mut self.noted));
    }
}
