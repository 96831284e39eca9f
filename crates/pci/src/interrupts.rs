//! One handle for a model's interrupts, whichever way the guest wants them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use vfiod_core::irq::{IrqBatch, IrqVector};
use vfiod_core::{Context, IrqIndex};

/// Interrupt indices of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
pub mod irq_index {
    use vfiod_core::IrqIndex;

    /// INTx.
    pub const INTX: IrqIndex = IrqIndex(0);
    /// Message signalled.
    pub const MSI: IrqIndex = IrqIndex(1);
    /// Message signalled, extended.
    pub const MSIX: IrqIndex = IrqIndex(2);
    /// Unrecoverable error. Stops a QEMU guest: not to be triggered lightly.
    pub const ERR: IrqIndex = IrqIndex(3);
    /// The user is asked to close the device.
    pub const REQ: IrqIndex = IrqIndex(4);
}

/// Most vectors of a function: as many as MSI-X can have (PCIe 7.7.2).
pub(crate) const VECTORS: usize = 2048;

/// Raises interrupts: by MSI-X if the client has set that up, else by MSI, else by INTx.
/// Cheap to clone, usable from any thread; takes no lock that another vector needs. Blocks for
/// some milliseconds at most, and that only where a client provokes it
/// ([`IrqVector`](vfiod_core::irq::IrqVector)).
///
/// A kind counts as set up while the client has an eventfd on it. The guest's own enable bits
/// are kept in configuration space but do not decide: a client lets its eventfds follow them,
/// and one that was written for the kernel's VFIO never writes them, because there the kernel
/// does that.
#[derive(Clone)]
pub struct Interrupts {
    inner: Arc<Inner>,
}

struct Inner {
    ctx: Context,
    /// `None`: the function has no INTx.
    pin: Option<IrqVector>,
    msi: Box<[IrqVector]>,
    msix: Box<[IrqVector]>,
    conditions: Conditions,
}

impl Interrupts {
    /// Those of a context outside any function, for tests of models.
    pub fn new(ctx: Context) -> Self {
        let vectors = |index: IrqIndex| -> Box<[IrqVector]> {
            let count = ctx.irqs().info(index).map_or(0, |info| info.count);
            (0..count).filter_map(|vector| ctx.irqs().vector(index, vector).ok()).collect()
        };
        let pin = ctx.irqs().vector(irq_index::INTX, 0).ok();
        let (msi, msix) = (vectors(irq_index::MSI), vectors(irq_index::MSIX));
        let conditions = Conditions::default();
        Self { inner: Arc::new(Inner { ctx, pin, msi, msix, conditions }) }
    }

    /// One of the model's interrupts, to be raised again and again: by the data path, or in a
    /// batch. It stays valid when the guest changes between MSI-X, MSI and INTx.
    pub fn vector(&self, vector: u32) -> Interrupt {
        Interrupt { interrupts: self.clone(), vector }
    }

    /// Whether the client has set up messages, MSI-X or MSI; otherwise interrupts are by INTx.
    pub fn uses_messages(&self) -> bool {
        let is_enabled =
            |vectors: &[IrqVector]| vectors.first().is_some_and(IrqVector::is_index_enabled);
        is_enabled(&self.inner.msix) || is_enabled(&self.inner.msi)
    }

    /// The vector that a message goes to; `None` where the guest uses no messages, or the
    /// function has no such vector.
    fn message(&self, vector: u32) -> Option<&IrqVector> {
        let Inner { msi, msix, .. } = &*self.inner;
        if msix.first().is_some_and(IrqVector::is_index_enabled) {
            return msix.get(vector as usize);
        }
        if !msi.first()?.is_index_enabled() {
            return None;
        }
        let wanted = (vector as usize).min(msi.len() - 1);
        msi[..=wanted].iter().rev().find(|vector| vector.has_eventfd()).or(msi.get(wanted))
    }

    /// Sets the condition behind a vector. A condition that becomes true, or is set to true once
    /// more, sends a message; INTx follows the conditions as a level, asserted while that of any
    /// vector is true.
    ///
    /// A vector beyond those that the client set up is sent on the nearest one below (MSI:
    /// the guest may grant fewer messages than asked for, PCIe 6.1.4.2), or stays pending until
    /// it is set up (MSI-X). One that the function does not have is sent on the last one (MSI) or
    /// dropped (MSI-X).
    pub fn set(&self, vector: u32, active: bool) {
        if active {
            self.trigger(vector);
        }
        // The line is kept up to date in any case: the guest may turn messages off meanwhile.
        if self.inner.conditions.set(vector, active) {
            self.drive(self.line());
        }
    }

    /// Makes INTx follow the conditions. The thread that sets INTx last checks the conditions again,
    /// so two threads cannot leave it different from the conditions.
    fn drive(&self, mut asserted: bool) {
        let Some(pin) = &self.inner.pin else { return };
        loop {
            pin.set_level(asserted);
            let now = self.line();
            if now == asserted {
                return;
            }
            asserted = now;
        }
    }

    /// Sends one message for an event that has no level. With INTx only, nothing is sent; models with
    /// INTx use [`Interrupts::set`].
    #[inline]
    pub fn trigger(&self, vector: u32) {
        if let Some(vector) = self.message(vector) {
            vector.trigger();
        }
    }

    /// The vectors whose condition is true.
    pub(crate) fn conditions_set(&self) -> Vec<u32> {
        let mut set = Vec::new();
        self.for_each_condition(|vector| set.push(vector));
        set
    }

    /// Calls `f` for each vector whose condition is true.
    pub(crate) fn for_each_condition(&self, f: impl FnMut(u32)) {
        self.inner.conditions.for_each(f);
    }

    /// Makes just these conditions true, without a message: the vectors are restored by the core.
    pub(crate) fn restore_conditions(&self, conditions: Vec<u32>) {
        self.inner.conditions.clear();
        for vector in conditions {
            self.inner.conditions.set(vector, true);
        }
        self.drive(self.line());
    }

    /// Whether INTx is asserted.
    pub(crate) fn line(&self) -> bool {
        self.inner.conditions.any()
    }

    /// Levels, masks and pending triggers go; what the client set up stays.
    pub(crate) fn reset(&self) {
        self.inner.conditions.clear();
        self.reset_vectors();
    }

    fn reset_vectors(&self) {
        self.inner.ctx.irqs().reset();
        // A thread of the device may have set a condition since they were cleared.
        self.drive(self.line());
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts").field("device", &self.inner.ctx.name()).finish_non_exhaustive()
    }
}

/// One interrupt of a model; see [`Interrupts::vector`]. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Interrupt {
    interrupts: Interrupts,
    vector: u32,
}

impl Interrupt {
    /// Sends one message; see [`Interrupts::trigger`].
    #[inline]
    pub fn trigger(&self) {
        self.interrupts.trigger(self.vector);
    }

    /// Adds one message to a batch, to be sent with it.
    pub fn trigger_in(&self, batch: &mut IrqBatch) {
        if let Some(vector) = self.interrupts.message(self.vector) {
            batch.trigger(vector);
        }
    }

    /// Sets the condition behind the interrupt; see [`Interrupts::set`].
    pub fn set(&self, active: bool) {
        self.interrupts.set(self.vector, active);
    }
}

/// The vectors whose conditions are true. Those beyond [`VECTORS`] count as the last one.
struct Conditions {
    bits: [AtomicU64; VECTORS / 64],
    /// How many bits are set, or about to be. Off by what other threads are about to count.
    count: AtomicI32,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { bits: [const { AtomicU64::new(0) }; VECTORS / 64], count: AtomicI32::new(0) }
    }
}

impl Conditions {
    /// Sets the condition of a vector. Returns whether [`Conditions::any`] may have changed.
    ///
    /// The order of these operations does not matter to others: the lock of the pin's vector,
    /// which whoever has changed the line takes, puts them in order.
    fn set(&self, vector: u32, active: bool) -> bool {
        let vector = (vector as usize).min(VECTORS - 1);
        let (word, bit) = (&self.bits[vector / 64], 1 << (vector % 64));
        if active {
            let new = word.fetch_or(bit, Ordering::Relaxed) & bit == 0;
            new && self.count.fetch_add(1, Ordering::Relaxed) == 0
        } else {
            let old = word.fetch_and(!bit, Ordering::Relaxed) & bit != 0;
            old && self.count.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn clear(&self) {
        for word in &self.bits {
            let cleared = word.swap(0, Ordering::Relaxed).count_ones() as i32;
            if cleared > 0 {
                self.count.fetch_sub(cleared, Ordering::Relaxed);
            }
        }
    }

    fn for_each(&self, mut f: impl FnMut(u32)) {
        for (first, word) in (0..).step_by(64).zip(&self.bits) {
            let mut word = word.load(Ordering::Relaxed);
            while word != 0 {
                f(first + word.trailing_zeros());
                word &= word - 1;
            }
        }
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
        interrupts.inner.ctx.irqs().is_pending(irq_index::INTX, 0)
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
        interrupts.inner.ctx.irqs().set_device_mask(irq_index::INTX, 0, true).unwrap();
        assert!(level(&interrupts) && interrupts.line());
        interrupts.reset();
        interrupts.inner.ctx.irqs().set_device_mask(irq_index::INTX, 0, true).unwrap();
        assert!(!level(&interrupts) && !interrupts.line());
    }

    #[test]
    fn conditions_beyond_the_last_vector_count_as_the_last() {
        let conditions = Conditions::default();
        assert!(conditions.set(3, true) && !conditions.set(3, true) && !conditions.set(64, true));
        assert!(!conditions.set(u32::MAX, true));
        let mut set = Vec::new();
        conditions.for_each(|vector| set.push(vector));
        assert_eq!(set, [3, 64, VECTORS as u32 - 1]);
        assert!(!conditions.set(3, false) && !conditions.set(64, false));
        assert!(conditions.any() && conditions.set(u32::MAX, false) && !conditions.any());
        conditions.set(7, true);
        conditions.clear();
        assert!(!conditions.any());
    }

    #[test]
    fn handle_follows_the_guest_from_messages_to_the_pin() {
        use std::os::fd::OwnedFd;

        use vfiod_core::FileId;
        use vfiod_core::irq::{IrqAction, IrqData};

        let info = |count| IrqInfo { flags: IrqFlags::EVENTFD, count };
        let ctx = Context::detached("interrupts", &[info(1), info(4), info(8)]);
        let interrupt = Interrupts::new(ctx.clone()).vector(2);
        let fds: [OwnedFd; 3] = [(); 3]
            .map(|()| rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap());
        let set = |index, vector, fd: Option<&OwnedFd>| {
            let fds = IrqData::EventFds(vec![fd.map(|fd| fd.try_clone().unwrap())]);
            ctx.irqs().set(FileId(0), index, vector, 1, IrqAction::Trigger, fds).unwrap();
        };
        let seen = || {
            fds.each_ref().map(|fd| {
                let mut counter = [0; 8];
                rustix::io::read(fd, &mut counter).map_or(0, |_| u64::from_ne_bytes(counter))
            })
        };
        set(irq_index::INTX, 0, Some(&fds[0]));
        interrupt.set(true);
        assert_eq!(seen(), [1, 0, 0]);
        // Granted one message of four.
        set(irq_index::MSI, 0, Some(&fds[1]));
        interrupt.trigger();
        assert_eq!(seen(), [0, 1, 0]);
        set(irq_index::MSIX, 2, Some(&fds[2]));
        interrupt.trigger();
        let mut batch = IrqBatch::new();
        interrupt.trigger_in(&mut batch);
        assert_eq!(seen(), [0, 0, 1]);
        batch.send();
        assert_eq!(seen(), [0, 0, 1]);
        set(irq_index::MSIX, 2, None);
        interrupt.set(true);
        assert_eq!(seen(), [0, 1, 0]);
    }
}
