//! How much of a long deallocation is done at a time.
//!
//! A file system locks the file while it gives blocks back, and the larger the piece the longer. How
//! long depends on the file system, the disk and how the file is laid out, so it is measured.

use std::time::Duration;

use vfiod_sync::atomic::{AtomicU64, Ordering};

const SMALLEST: u64 = 256 << 10;
const LARGEST: u64 = 1 << 30;
/// A disk begins with this.
const FIRST: u64 = 4 << 20;
/// A piece that takes longer is followed by a smaller one. Others may wait for several pieces, and must not
/// wait for longer than 10 ms.
const LONG: Duration = Duration::from_millis(2);
const SHORT: Duration = Duration::from_micros(500);

pub(crate) struct PieceSize {
    /// What pieces end at multiples of.
    unit: u64,
    size: AtomicU64,
}

impl PieceSize {
    pub(crate) fn new(unit: u64) -> Self {
        Self { unit: unit.max(1), size: AtomicU64::new(FIRST) }
    }

    /// The length of the piece that begins at `at`, of a range until `end`. It ends where a unit does.
    pub(crate) fn next(&self, at: u64, end: u64) -> u64 {
        let size = self.size.load(Ordering::Relaxed).max(self.unit);
        let to = at.saturating_add(size);
        (to - to % self.unit).min(end) - at
    }

    /// A piece took this long.
    pub(crate) fn took(&self, piece: u64, time: Duration) {
        let size = self.size.load(Ordering::Relaxed);
        let next = if time > LONG {
            // Not of the size: the piece may have been made by another size.
            piece.min(size) / 2
        } else if time < SHORT && piece >= size {
            size * 2
        } else {
            return;
        };
        self.size.store(next.clamp(SMALLEST, LARGEST), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_units_and_follow_the_time_they_take() {
        let size = PieceSize::new(4096);
        assert_eq!(size.next(0, u64::MAX), FIRST);
        assert_eq!(size.next(512, u64::MAX), FIRST - 512);
        assert_eq!(size.next(512, 1024), 512);
        size.took(FIRST, Duration::ZERO);
        assert_eq!(size.next(0, u64::MAX), 2 * FIRST);
        // A short one says nothing of long ones.
        size.took(512, Duration::ZERO);
        assert_eq!(size.next(0, u64::MAX), 2 * FIRST);
        size.took(2 * FIRST, Duration::from_millis(3));
        assert_eq!(size.next(0, u64::MAX), FIRST);
        for _ in 0..40 {
            size.took(FIRST, Duration::from_secs(1));
        }
        assert_eq!(size.next(0, u64::MAX), SMALLEST);
        for _ in 0..40 {
            size.took(LARGEST, Duration::ZERO);
        }
        assert_eq!(size.next(0, u64::MAX), LARGEST);
        // A unit is never cut.
        assert_eq!(PieceSize::new(1 << 31).next(0, u64::MAX), 1 << 31);
    }
}
