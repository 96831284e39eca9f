//! Lines of the log about what a user does.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// Most lines in a second: ends and refusals of a device, as many as it has of each. A journal drops
/// those of everybody where a service writes too many.
const MOST: u64 = 20;

/// Lets so many lines a second through for one user, on whatever connections, and counts the others.
#[derive(Debug)]
pub struct Lines {
    /// Most lines in a second.
    most: u64,
    /// Second of the last line in the upper half, and how many there were in it in the lower one.
    last: AtomicU64,
    suppressed: AtomicU64,
}

fn second() -> u64 {
    // Not the first, which is that of no line.
    clock_gettime(ClockId::MonotonicCoarse).tv_sec as u64 + 1
}

impl Default for Lines {
    fn default() -> Self {
        Self::up_to(MOST)
    }
}

impl Lines {
    /// Lets up to `most` lines a second through.
    pub fn up_to(most: u64) -> Self {
        Self { most, last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a line may be logged now, before which `suppressed` others were not. Returns how many were
    /// not, of this user's in all since its last one; those are told then.
    pub fn pass(&self, suppressed: u64) -> Option<u64> {
        self.pass_at(suppressed, second())
    }

    /// How many lines were not logged since the last one. They are not returned again.
    pub(crate) fn take_suppressed(&self) -> u64 {
        self.suppressed.swap(0, Ordering::Relaxed)
    }

    /// Whether there was a line in this second or the last one.
    pub(crate) fn is_recent(&self) -> bool {
        (self.last.load(Ordering::Relaxed) >> 32) + 1 >= second()
    }

    fn pass_at(&self, suppressed: u64, second: u64) -> Option<u64> {
        let next = |last: u64| match (last >> 32 == second, last & u64::from(u32::MAX)) {
            (false, _) => Some((second << 32) | 1),
            (true, count) => (count < self.most).then_some((second << 32) | (count + 1)),
        };
        if self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_err() {
            self.suppressed.fetch_add(suppressed + 1, Ordering::Relaxed);
            return None;
        }
        Some(suppressed + self.take_suppressed())
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_user_are_few_and_the_others_are_counted() {
        let lines = Lines::default();
        for _ in 0..MOST {
            assert_eq!(lines.pass_at(0, 1), Some(0));
        }
        assert_eq!((lines.pass_at(0, 1), lines.pass_at(5, 1)), (None, None));
        assert_eq!(lines.pass_at(2, 2), Some(1 + 6 + 2));
        assert_eq!(lines.pass_at(0, 2), Some(0));
    }
}
