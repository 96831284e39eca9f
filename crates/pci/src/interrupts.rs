//! One handle for a model's interrupts, whichever way the guest wants them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfiod_core::{Context, IrqIndex};

/// Interrupt indices of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
pub mod irq_index {
    use vfiod_core::IrqIndex;

    /// The pin.
    pub const INTX: IrqIndex = IrqIndex(0);
    /// Message signalled.
    pub const MSI: IrqIndex = IrqIndex(1);
    /// Message signalled, extended.
    pub const MSIX: IrqIndex = IrqIndex(2);
    /// Unrecoverable error. Stops a QEMU guest: not to be triggered lightly.
    pub const ERR: IrqIndex = IrqIndex(3);
    /// The device is wanted back.
    pub const REQ: IrqIndex = IrqIndex(4);
}

/// Raises interrupts: by MSI-X if the client has set that up, else by MSI, else by the pin.
/// Cheap to clone, usable from any thread; never blocks.
#[derive(Clone, Debug)]
pub struct Interrupts {
    ctx: Context,
    line: Arc<AtomicBool>,
}

impl Interrupts {
    pub(crate) fn new(ctx: Context) -> Self {
        Self { ctx, line: Arc::new(AtomicBool::new(false)) }
    }

    /// Which kind of message-signalled interrupt the client uses, if any.
    fn message_index(&self) -> Option<IrqIndex> {
        [irq_index::MSIX, irq_index::MSI]
            .into_iter()
            .find(|&index| self.ctx.irqs().is_enabled(index))
    }

    /// Tells the condition behind a vector. A condition that becomes true, or is told to be
    /// true once more, sends a message; the pin follows the condition as a level.
    ///
    /// A vector beyond those that the client enabled is sent on the last one (MSI) or dropped
    /// (MSI-X); a function that has only a pin uses vector 0.
    pub fn set(&self, vector: u32, active: bool) {
        if active && let Some(index) = self.message_index() {
            self.message(index, vector);
        }
        // The line is kept up to date in any case: the guest may turn messages off meanwhile.
        self.line.store(active, Ordering::SeqCst);
        // EINVAL without a pin: then there is nothing to tell.
        let _ = self.ctx.irqs().set_level(irq_index::INTX, 0, active);
    }

    /// Sends one message for an event that has no level. With only a pin nothing is sent;
    /// models with a pin use [`Interrupts::set`].
    pub fn trigger(&self, vector: u32) {
        if let Some(index) = self.message_index() {
            self.message(index, vector);
        }
    }

    fn message(&self, index: IrqIndex, vector: u32) {
        let count = self.ctx.irqs().info(index).map_or(0, |info| info.count);
        let vector =
            if index == irq_index::MSI { vector.min(count.saturating_sub(1)) } else { vector };
        if vector < count {
            // Cannot fail: index and vector are there.
            let _ = self.ctx.irqs().trigger(index, vector);
        }
    }

    pub(crate) fn line(&self) -> bool {
        self.line.load(Ordering::SeqCst)
    }

    pub(crate) fn reset(&self) {
        self.line.store(false, Ordering::SeqCst);
    }
}
