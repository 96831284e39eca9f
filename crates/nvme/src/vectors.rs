//! Interrupts (PCIe transport 3.2): messages, the pin, and INTMS and INTMC; interrupt coalescing (5.27.1.6,
//! 5.27.1.7).

use std::time::Duration;

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
    /// Interrupt Coalescing, as the feature has it.
    coalescing: AtomicU32,
    /// Coalescing Disable, a bit for each vector.
    uncoalesced: [AtomicU32; 3],
}

#[derive(Default)]
struct Vector {
    /// Completion queues that have entries.
    queues: u32,
    /// Entries of which the host will be told together with others.
    held: u32,
}

/// Entries that a queue has got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posted {
    pub(crate) count: u32,
    /// The queue had none that the host has not taken.
    pub(crate) first: bool,
    /// They can be told of together with others: they are of an I/O queue, and none is an error.
    pub(crate) can_wait: bool,
}

impl Vectors {
    pub(crate) fn new(count: usize) -> Self {
        let vectors = (0..count).map(|_| Mutex::default()).collect();
        let uncoalesced = [const { AtomicU32::new(0) }; 3];
        Self { vectors, masked: AtomicU32::new(0), coalescing: AtomicU32::new(0), uncoalesced }
    }

    /// Sets the features; what was held back comes now.
    pub(crate) fn coalesce(&self, raise: &dyn Raise, coalescing: u32, uncoalesced: [u32; 3]) {
        self.coalescing.store(coalescing, Ordering::SeqCst);
        for (place, bits) in self.uncoalesced.iter().zip(uncoalesced) {
            place.store(bits, Ordering::SeqCst);
        }
        (0..self.vectors.len()).for_each(|vector| self.flush(raise, vector as u16));
    }

    /// How many entries of a vector are told of together, and how long the first one waits at most.
    fn aggregation(&self, vector: u16) -> Option<(u32, Duration)> {
        let value = self.coalescing.load(Ordering::SeqCst);
        let (entries, time) = ((value & 0xff) + 1, value >> 8 & 0xff);
        let vector = usize::from(vector);
        let bits = self.uncoalesced.get(vector / 32)?.load(Ordering::SeqCst);
        let aggregates = entries > 1 && time > 0 && bits >> (vector % 32) & 1 == 0;
        aggregates.then(|| (entries, Duration::from_micros(100) * time))
    }

    fn is_masked(&self, vector: u16) -> bool {
        vector < 32 && self.masked.load(Ordering::SeqCst) & 1 << vector != 0
    }

    /// A queue has got entries. If the interrupt waits for others, the first caller calls
    /// [`Vectors::flush`] after the time that is returned.
    pub(crate) fn entries(
        &self,
        raise: &dyn Raise,
        vector: u16,
        posted: Posted,
    ) -> Option<Duration> {
        let mut state = lock(self.vectors.get(usize::from(vector))?);
        state.queues += u32::from(posted.first);
        if let Some((entries, time)) = self.aggregation(vector).filter(|_| posted.can_wait) {
            let before = state.held;
            state.held += posted.count;
            if state.held < entries {
                return (before == 0).then_some(time);
            }
        }
        // With the lock held, as in `taken` and `mask`: what is set last is what is true.
        state.held = 0;
        if !self.is_masked(vector) {
            raise.set(vector, true);
        }
        None
    }

    /// Tells the host of entries that were held back.
    pub(crate) fn flush(&self, raise: &dyn Raise, vector: u16) {
        let Some(state) = self.vectors.get(usize::from(vector)) else { return };
        let mut state = lock(state);
        let held = std::mem::take(&mut state.held);
        if held > 0 && state.queues > 0 && !self.is_masked(vector) {
            raise.set(vector, true);
        }
    }

    /// The host has taken the last entry of a queue.
    pub(crate) fn taken(&self, raise: &dyn Raise, vector: u16) {
        let Some(state) = self.vectors.get(usize::from(vector)) else { return };
        let mut state = lock(state);
        state.queues = state.queues.saturating_sub(1);
        if state.queues == 0 {
            state.held = 0;
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
            let mut state = lock(state);
            state.held = 0;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an interrupt came, and whether the pin is asserted.
    #[derive(Default)]
    struct Line(Mutex<(u32, bool)>);

    impl Raise for Line {
        fn set(&self, _vector: u16, active: bool) {
            let mut state = lock(&self.0);
            *state = (state.0 + u32::from(active), active);
        }

        fn is_pin(&self) -> bool {
            true
        }
    }

    impl Line {
        fn take(&self) -> (u32, bool) {
            let mut state = lock(&self.0);
            (std::mem::take(&mut state.0), state.1)
        }
    }

    fn posted(count: u32, first: bool) -> Posted {
        Posted { count, first, can_wait: true }
    }

    const TIME: Option<Duration> = Some(Duration::from_micros(500));

    #[test]
    fn entries_are_told_of_together_up_to_the_threshold_or_the_time() {
        let (vectors, line) = (Vectors::new(3), Line::default());
        assert_eq!(vectors.entries(&line, 2, posted(1, true)), None);
        assert_eq!(line.take(), (1, true), "nothing is set");
        vectors.taken(&line, 2);
        // Four entries, 500 microseconds.
        vectors.coalesce(&line, 5 << 8 | 3, [2, 0, 0]);
        assert_eq!(vectors.entries(&line, 2, posted(1, true)), TIME);
        assert_eq!(vectors.entries(&line, 2, posted(2, false)), None);
        assert_eq!(line.take(), (0, false), "three wait");
        assert_eq!(vectors.entries(&line, 2, posted(1, false)), None);
        assert_eq!(line.take(), (1, true), "the fourth has come");
        assert_eq!(vectors.entries(&line, 2, posted(1, false)), TIME);
        vectors.flush(&line, 2);
        assert_eq!(line.take(), (1, true), "the time is over");
        vectors.flush(&line, 2);
        assert_eq!(line.take(), (0, true), "once");
        let urgent = Posted { can_wait: false, ..posted(1, false) };
        assert_eq!(vectors.entries(&line, 2, posted(1, false)), TIME);
        assert_eq!(vectors.entries(&line, 2, urgent), None);
        assert_eq!(line.take(), (1, true), "an error");
        assert_eq!(vectors.entries(&line, 1, posted(1, true)), None);
        assert_eq!(line.take(), (1, true), "a vector that is not coalesced");
    }

    #[test]
    fn entries_that_are_held_back_are_not_lost_and_those_that_were_taken_not_told() {
        let (vectors, line) = (Vectors::new(1), Line::default());
        vectors.coalesce(&line, 5 << 8 | 3, [0; 3]);
        assert_eq!(vectors.entries(&line, 0, posted(1, true)), TIME);
        vectors.taken(&line, 0);
        vectors.flush(&line, 0);
        assert_eq!(line.take(), (0, false), "the host has taken it");
        assert_eq!(vectors.entries(&line, 0, posted(1, true)), TIME);
        vectors.coalesce(&line, 0, [0; 3]);
        assert_eq!(line.take(), (1, true), "the feature is off");
        vectors.coalesce(&line, 5 << 8 | 3, [0; 3]);
        assert_eq!(vectors.entries(&line, 0, posted(1, false)), TIME);
        vectors.mask(&line, 1);
        vectors.flush(&line, 0);
        assert_eq!(line.take(), (0, false), "it is masked");
        vectors.mask(&line, 0);
        assert_eq!(line.take(), (1, true), "it is unmasked");
    }
}
