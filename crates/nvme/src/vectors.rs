//! Interrupts (PCIe transport 3.2): messages, the pin, and INTMS and INTMC.

use vfiod_sync::atomic::{AtomicU32, Ordering};
use vfiod_sync::{Mutex, lock};

/// Raises the interrupts of a controller.
pub(crate) trait Raise: Send + Sync {
    /// Sets the condition behind a vector: sends a message if it is true, and moves the pin.
    fn set(&self, vector: u16, active: bool);

    /// Whether the host uses the pin, and so has to see each condition fall.
    fn is_pin(&self) -> bool;
}

impl Raise for vfiod_pci::Interrupts {
    fn set(&self, vector: u16, active: bool) {
        vfiod_pci::Interrupts::set(self, vector.into(), active);
    }

    fn is_pin(&self) -> bool {
        !self.uses_messages()
    }
}

/// The interrupt vectors of a controller. Each has a condition: some completion queue of it has an entry
/// that the host has not taken.
pub(crate) struct Vectors {
    vectors: Box<[Mutex<Vector>]>,
    /// INTMS: a bit for each of the first 32 vectors.
    masked: AtomicU32,
}

#[derive(Default)]
struct Vector {
    /// Completion queues that have entries.
    queues: u32,
}

impl Vectors {
    pub(crate) fn new(count: usize) -> Self {
        let vectors = (0..count).map(|_| Mutex::default()).collect();
        Self { vectors, masked: AtomicU32::new(0) }
    }

    fn is_masked(&self, vector: u16) -> bool {
        vector < 32 && self.masked.load(Ordering::SeqCst) & 1 << vector != 0
    }

    /// A queue has got entries; `first` says that it had none.
    pub(crate) fn entries(&self, raise: &dyn Raise, vector: u16, first: bool) {
        let Some(state) = self.vectors.get(usize::from(vector)) else { return };
        let mut state = lock(state);
        state.queues += u32::from(first);
        // With the lock held, as in `taken` and `mask`: what is set last is what is true.
        if !self.is_masked(vector) {
            raise.set(vector, true);
        }
    }

    /// The host has taken the last entry of a queue.
    pub(crate) fn taken(&self, raise: &dyn Raise, vector: u16) {
        let Some(state) = self.vectors.get(usize::from(vector)) else { return };
        let mut state = lock(state);
        state.queues = state.queues.saturating_sub(1);
        if state.queues == 0 {
            raise.set(vector, false);
        }
    }

    /// A queue that was restored has entries; its condition is restored by others.
    pub(crate) fn restore(&self, vector: u16) {
        if let Some(state) = self.vectors.get(usize::from(vector)) {
            lock(state).queues += 1;
        }
    }

    /// Lets the bits that are set in `mask` withhold their vectors.
    pub(crate) fn mask(&self, raise: &dyn Raise, mask: u32) {
        let before = self.masked.swap(mask, Ordering::SeqCst);
        for vector in 0..32 {
            let Some(state) = self.vectors.get(usize::from(vector)) else { return };
            if (before ^ mask) & 1 << vector == 0 {
                continue;
            }
            let state = lock(state);
            match (self.is_masked(vector), state.queues) {
                (true, _) => raise.set(vector, false),
                (false, 1..) => raise.set(vector, true),
                (false, 0) => {}
            }
        }
    }

    /// What is masked after a restore.
    pub(crate) fn restore_mask(&self, mask: u32) {
        self.masked.store(mask, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Vectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vectors").field("masked", &self.masked).finish_non_exhaustive()
    }
}
