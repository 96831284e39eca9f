//! How often a client is served.
//!
//! A client can make an eventfd readable without end, and without doing anything more: one that is
//! both an interrupt's trigger and what unmasks it; a doorbell that it hands back as a trigger; one
//! that counts down by one at each read (`EFD_SEMAPHORE`). Signals of an eventfd merge, so that a
//! pause loses none.

use std::sync::{Arc, Weak};
use std::time::Duration;

use vfiod_protocol::Time;
use vfiod_sync::{Mutex, lock};

use crate::pool::{Alarm, Source, Watch};

/// What a limit holds for.
const WINDOW: Duration = Duration::from_millis(10);

/// Counts how often an eventfd is served.
pub(crate) struct Pace {
    /// Most times within [`WINDOW`].
    limit: u32,
    served: Mutex<Served>,
}

#[derive(Default)]
struct Served {
    /// When the window began.
    since: Time,
    times: u32,
}

impl Pace {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, served: Mutex::default() }
    }

    /// The eventfd is served at `now`. Returns how long not to look at it afterwards.
    pub(crate) fn pause_at(&self, now: Time) -> Option<Duration> {
        let mut served = lock(&self.served);
        let end = served.since.after(WINDOW);
        if now >= end {
            *served = Served { since: now, times: 1 };
            return None;
        }
        served.times += 1;
        (served.times >= self.limit).then(|| end.left(now))
    }
}

/// The pause of a connection whose user is in debt ([`vfiod_quota::Debt`]).
#[derive(Default)]
pub(crate) struct DebtPause {
    alarm: Mutex<Option<Alarm>>,
}

impl DebtPause {
    /// Has the source woken after `pause`. Returns whether that is to be.
    pub(crate) fn begin<S: Source + 'static>(
        &self,
        pause: Duration,
        watch: &Watch,
        source: Weak<S>,
    ) -> bool {
        let Some(source) = source.upgrade() else { return false };
        let source: Arc<dyn Source> = source;
        let alarm = watch.pool().wake_after(pause, watch, &source);
        let before = lock(&self.alarm).replace(alarm);
        drop(before);
        true
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn eventfd_that_is_always_readable_is_served_a_bounded_number_of_times() {
        let pace = Pace::new(100);
        let (mut now, mut times) = (Time(1_000_000_000), 0);
        let end = now.after(Duration::from_secs(1));
        while now < end {
            times += 1;
            // Serving takes a microsecond.
            now = now.after(Duration::from_micros(1));
            if let Some(pause) = pace.pause_at(now) {
                now = now.after(pause);
            }
        }
        assert!((9_000..=10_100).contains(&times), "{times} times in a second");
    }

    #[test]
    fn eventfd_that_is_signalled_less_often_is_never_left_alone() {
        let pace = Pace::new(100);
        for n in 0..10_000 {
            assert_eq!(pace.pause_at(Time(n * 102_000)), None, "signal {n}");
        }
    }
}
