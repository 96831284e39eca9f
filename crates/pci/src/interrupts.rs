//! One handle for a model's interrupts, whichever way the guest wants them.

use std::collections::BTreeSet;
use std::sync::Arc;

use vfiod_core::{Context, IrqIndex};
use vfiod_sync::{Mutex, MutexGuard, lock};

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
///
/// A kind counts as set up while the client has an eventfd on it. The guest's own enable bits
/// are kept in configuration space but do not decide: a client lets its eventfds follow them,
/// and one that was written for the kernel's VFIO never writes them, because there the kernel
/// does that.
#[derive(Clone, Debug)]
pub struct Interrupts {
    ctx: Context,
    /// The vectors whose condition is true: the pin is asserted while there is one.
    conditions: Arc<Mutex<BTreeSet<u32>>>,
}

impl Interrupts {
    pub(crate) fn new(ctx: Context) -> Self {
        Self { ctx, conditions: Arc::default() }
    }

    fn conditions(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        lock(&self.conditions)
    }

    /// Which kind of message-signalled interrupt the client uses, if any.
    fn message_index(&self) -> Option<IrqIndex> {
        [irq_index::MSIX, irq_index::MSI]
            .into_iter()
            .find(|&index| self.ctx.irqs().is_enabled(index))
    }

    /// Tells the condition behind a vector. A condition that becomes true, or is told to be
    /// true once more, sends a message; the pin follows the conditions as a level, asserted
    /// while that of any vector is true.
    ///
    /// A vector beyond those that the client set up is sent on the nearest one below (MSI:
    /// the guest may grant fewer messages than asked for, PCIe 6.1.4.2), or held back until it
    /// is set up (MSI-X). One that the function does not have is sent on the last one (MSI) or
    /// dropped (MSI-X).
    pub fn set(&self, vector: u32, active: bool) {
        if active {
            self.trigger(vector);
        }
        // The line is kept up to date in any case: the guest may turn messages off meanwhile.
        if active {
            self.conditions().insert(vector);
        } else {
            self.conditions().remove(&vector);
        }
        self.drive(self.line());
    }

    /// Makes the pin follow the conditions. Not under their lock: a signal to a client that
    /// plays tricks can take long. Whoever told the pin last looks again, so two threads cannot
    /// leave it different from what the conditions say.
    fn drive(&self, mut asserted: bool) {
        loop {
            // EINVAL without a pin: then there is nothing to tell.
            let _ = self.ctx.irqs().set_level(irq_index::INTX, 0, asserted);
            let now = self.line();
            if now == asserted {
                return;
            }
            asserted = now;
        }
    }

    /// Sends one message for an event that has no level. With only a pin nothing is sent;
    /// models with a pin use [`Interrupts::set`].
    pub fn trigger(&self, vector: u32) {
        let Some(index) = self.message_index() else { return };
        let irqs = self.ctx.irqs();
        let count = irqs.info(index).map_or(0, |info| info.count);
        let vector = if index == irq_index::MSI {
            let wanted = vector.min(count.saturating_sub(1));
            let granted =
                |vector: &u32| irqs.vector(index, *vector).is_ok_and(|found| found.has_eventfd());
            (0..=wanted).rev().find(granted).unwrap_or(wanted)
        } else {
            vector
        };
        if vector < count {
            // Cannot fail: index and vector are there.
            let _ = irqs.trigger(index, vector);
        }
    }

    /// The vectors whose condition is true.
    pub(crate) fn conditions_set(&self) -> Vec<u32> {
        self.conditions().iter().copied().collect()
    }

    /// Calls `f` for each vector whose condition is true.
    pub(crate) fn for_each_condition(&self, f: impl FnMut(u32)) {
        self.conditions().iter().copied().for_each(f);
    }

    /// Makes just these conditions true, without a message: the vectors are restored by the core.
    pub(crate) fn restore_conditions(&self, conditions: Vec<u32>) {
        *self.conditions() = conditions.into_iter().collect();
        self.drive(self.line());
    }

    /// Whether the pin is asserted.
    pub(crate) fn line(&self) -> bool {
        !self.conditions().is_empty()
    }

    /// Levels, masks and pending triggers go; what the client set up stays.
    pub(crate) fn reset(&self) {
        self.conditions().clear();
        self.reset_vectors();
    }

    fn reset_vectors(&self) {
        self.ctx.irqs().reset();
        // A thread of the device may have told a condition since they were cleared.
        self.drive(self.line());
    }
}

#[cfg(test)]
mod tests {
    use vfiod_core::irq::{IrqFlags, IrqInfo};

    use super::*;

    /// Interrupts whose pin is masked: so what is pending is the level.
    fn masked_pin() -> Interrupts {
        let info = IrqInfo { flags: IrqFlags::EVENTFD | IrqFlags::MASKABLE, count: 1 };
        let ctx = Context::detached("interrupts", &[info]);
        ctx.irqs().set_device_mask(irq_index::INTX, 0, true).unwrap();
        Interrupts::new(ctx)
    }

    fn level(interrupts: &Interrupts) -> bool {
        interrupts.ctx.irqs().is_pending(irq_index::INTX, 0)
    }

    /// One thread asserts and is about to tell the pin when another one deasserts.
    #[test]
    fn what_was_true_when_a_thread_looked_does_not_last() {
        let interrupts = masked_pin();
        interrupts.set(0, true);
        assert!(level(&interrupts));
        let looked = interrupts.line();
        interrupts.set(0, false);
        interrupts.drive(looked);
        assert!(!level(&interrupts));
    }

    /// A thread asserts just between the two halves of a reset.
    #[test]
    fn a_condition_told_in_the_middle_of_a_reset_is_kept() {
        let interrupts = masked_pin();
        interrupts.set(0, true);
        interrupts.reset_vectors();
        interrupts.ctx.irqs().set_device_mask(irq_index::INTX, 0, true).unwrap();
        assert!(level(&interrupts) && interrupts.line());
        interrupts.reset();
        interrupts.ctx.irqs().set_device_mask(irq_index::INTX, 0, true).unwrap();
        assert!(!level(&interrupts) && !interrupts.line());
    }
}
