//! Warnings about what a guest does, rarely enough that it cannot fill a log with them.

use std::time::{Duration, Instant};

/// Lets one warning through in each interval, and counts those held back.
#[derive(Clone, Debug)]
pub struct Complaints {
    interval: Duration,
    last: Option<Instant>,
    held_back: u64,
}

impl Default for Complaints {
    /// One a second.
    fn default() -> Self {
        Self::every(Duration::from_secs(1))
    }
}

impl Complaints {
    /// One in each interval.
    pub fn every(interval: Duration) -> Self {
        Self { interval, last: None, held_back: 0 }
    }

    /// Whether to warn now: then, of how many warnings nothing was said since the last time.
    pub fn due(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < self.interval) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_many_were_held_back() {
        let mut complaints = Complaints::every(Duration::MAX);
        assert_eq!(complaints.due(), Some(0));
        assert_eq!(complaints.due(), None);
        assert_eq!(complaints.due(), None);
        complaints.interval = Duration::ZERO;
        assert_eq!(complaints.due(), Some(2));
        assert_eq!(complaints.due(), Some(0));
    }
}
