//! Time as the driver gives it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment: nanoseconds of a clock that the driver chooses and that never goes back. It must be
/// the same clock after a restore (on Linux, `CLOCK_MONOTONIC`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// The moment `duration` later; saturates.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long it is from `now` until this moment; zero if it has passed.
    pub fn left(self, now: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0))
    }
}
