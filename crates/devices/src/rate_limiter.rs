//! Limits the rate of warnings that a guest can cause, so that it cannot fill a log with them.

use std::time::{Duration, Instant};

/// Allows one warning in each interval, and counts those that are suppressed.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    interval: Duration,
    last: Option<Instant>,
    suppressed: u64,
}

impl Default for RateLimiter {
    /// One warning a second.
    fn default() -> Self {
        Self::every(Duration::from_secs(1))
    }
}

impl RateLimiter {
    /// One warning in each interval.
    pub fn every(interval: Duration) -> Self {
        Self { interval, last: None, suppressed: 0 }
    }

    /// Returns the number of warnings suppressed since the last one, or `None` if this one must be
    /// suppressed, too.
    pub fn allow(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < self.interval) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_warning_gets_the_number_of_suppressed_ones() {
        let mut limiter = RateLimiter::every(Duration::MAX);
        assert_eq!(limiter.allow(), Some(0));
        assert_eq!(limiter.allow(), None);
        assert_eq!(limiter.allow(), None);
        limiter.interval = Duration::ZERO;
        assert_eq!(limiter.allow(), Some(2));
        assert_eq!(limiter.allow(), Some(0));
    }
}
