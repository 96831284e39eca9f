//! Bounded waits on the clock, or on turns where a model checker has no clock.

use std::time::Duration;

/// A wait that ends after some time.
#[cfg(not(any(loom, shuttle)))]
pub(crate) struct Timeout(std::time::Instant);

#[cfg(not(any(loom, shuttle)))]
impl Timeout {
    /// Starts the clock.
    pub(crate) fn new(limit: Duration) -> Self {
        Self(std::time::Instant::now() + limit)
    }

    /// When it ends, by the system's clock.
    pub(crate) fn deadline(&self) -> std::time::Instant {
        self.0
    }

    /// How long to wait now; `None` when the time is up.
    pub(crate) fn left(&mut self) -> Option<Duration> {
        let left = self.0.saturating_duration_since(std::time::Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// In a model no time passes: the wait lasts for two turns of the others.
#[cfg(any(loom, shuttle))]
pub(crate) struct Timeout(u32);

#[cfg(any(loom, shuttle))]
impl Timeout {
    pub(crate) fn new(_limit: Duration) -> Self {
        Self(2)
    }

    pub(crate) fn left(&mut self) -> Option<Duration> {
        self.0 = self.0.checked_sub(1)?;
        Some(Duration::ZERO)
    }
}
