//! How far a controller is in keeping its counters, and how often it may (`kept.rs` does it).

use std::time::{Duration, Instant};

use vfiod_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vfiod_sync::{Condvar, Mutex, lock, wait_while};

use crate::counters::KEPT;

/// How counters are kept.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// CNTLID, which the names of what is kept begin with: other controllers of the subsystem have their own.
    controller: u16,
    /// What was kept last.
    pub(crate) last: Mutex<Option<([u64; KEPT], bool)>>,
    pub(crate) wanted: AtomicBool,
    /// A thread keeps what is wanted.
    pub(crate) runs: AtomicBool,
    /// It has failed, and that was logged.
    pub(crate) failed: AtomicBool,
    /// How many snapshots there were.
    snapshots: Mutex<u64>,
    /// The number of the latest snapshot that was kept.
    kept: AtomicU64,
    /// How often counters are written, and saved features: each time is a sync, and a host decides when.
    pub(crate) pace: Pace,
    pub(crate) pace_of_features: Pace,
    /// The thread that keeps counters waits.
    pub(crate) rests: AtomicBool,
    /// It waits no more.
    hurries: Mutex<bool>,
    hurry: Condvar,
}

/// How often something is written that a host causes.
const PERIOD: Duration = Duration::from_secs(1);
/// How often that is done at once after a pause.
const BURST: u32 = 8;

/// When something may be written again: [`BURST`] times at once, and then once in a [`PERIOD`].
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Takes a turn, if there is one.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub(crate) fn ask(&self, now: Instant) -> Result<(), Duration> {
        let mut place = lock(&self.0);
        // All turns that were taken are over by then.
        let over = place.map_or(now, |over| over.max(now));
        let ahead = over.saturating_duration_since(now);
        let allowed = PERIOD * (BURST - 1);
        if ahead > allowed {
            return Err(ahead - allowed);
        }
        *place = Some(over + PERIOD);
        Ok(())
    }
}

/// Counters at one moment, and whether the controller was in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    /// A later one has a larger number.
    number: u64,
    pub(crate) values: ([u64; KEPT], bool),
}

impl Keeping {
    /// How those of a controller with this number are kept.
    pub(crate) fn of(controller: u16) -> Self {
        Self { controller, ..Self::default() }
    }

    /// What `look` finds now.
    pub(crate) fn snapshot(&self, look: impl FnOnce() -> ([u64; KEPT], bool)) -> Snapshot {
        // With the lock held: the order of the numbers is that of the looks.
        let mut number = lock(&self.snapshots);
        *number += 1;
        Snapshot { number: *number, values: look() }
    }

    /// Whether no later snapshot was kept. This one is, from now on.
    pub(crate) fn is_latest(&self, snapshot: &Snapshot) -> bool {
        self.kept.fetch_max(snapshot.number, Ordering::SeqCst) < snapshot.number
    }

    /// Waits for a turn to write counters, unless the controller ends.
    pub(crate) fn wait_for_turn(&self) {
        while let Err(time) = self.pace.ask(Instant::now()) {
            let hurries = lock(&self.hurries);
            self.rests.store(true, Ordering::SeqCst);
            let hurries =
                wait_while(&self.hurry, &self.hurries, hurries, time, |hurries| !*hurries);
            self.rests.store(false, Ordering::SeqCst);
            if *hurries {
                return;
            }
        }
    }

    /// The controller ends: nothing waits for a turn any more.
    pub(crate) fn hurry(&self) {
        *lock(&self.hurries) = true;
        self.hurry.notify_all();
    }

    /// The name that something has where it is kept.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.controller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_turns_are_had_at_once_and_then_one_in_a_period() {
        let (pace, start) = (Pace::default(), Instant::now());
        assert_eq!([(); BURST as usize].map(|()| pace.ask(start)), [Ok(()); BURST as usize]);
        let half = PERIOD / 2;
        assert_eq!((pace.ask(start), pace.ask(start + half)), (Err(PERIOD), Err(half)));
        let later = start + PERIOD;
        assert_eq!((pace.ask(later), pace.ask(later)), (Ok(()), Err(PERIOD)));
        let pause = later + PERIOD * 100;
        assert_eq!([(); BURST as usize].map(|()| pace.ask(pause)), [Ok(()); BURST as usize]);
        assert_eq!(pace.ask(pause), Err(PERIOD));
    }
}
