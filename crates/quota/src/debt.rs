//! Time that calls on a client's objects take of the process.
//!
//! To write to an eventfd or a socket wakes whoever watches it, and a client can have its own watched
//! hundreds of thousands of times (`epoll`, through duplicates of the descriptor): each write then takes
//! milliseconds in the kernel. Such time is a debt of the user, which is served again only after a
//! multiple of it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How much longer than a slow call its user is not served. It has a tenth of a processor then.
const PAUSES: u32 = 9;
/// Nobody is in debt for longer.
const MAX_DEBT: Duration = Duration::from_secs(10);
/// Processor time from which a call is slow. Without watchers it takes some microseconds.
const SLOW: Duration = Duration::from_millis(1);
/// How many calls are measured once one may have been slow.
const SUSPICION: u8 = 64;

/// What a user owes.
#[derive(Debug, Default)]
pub struct Debt {
    /// Until when, nanoseconds of `CLOCK_MONOTONIC`. 0: never since it was paid.
    until: AtomicU64,
}

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Debt {
    /// A call for the user has taken `time` of a processor.
    #[cold]
    pub fn owe(&self, time: Duration) {
        self.owe_at(time, read(ClockId::Monotonic));
    }

    /// How long the user is not to be served, if it is in debt.
    #[inline]
    pub fn pause(&self) -> Option<Duration> {
        // Nobody is in debt, as a rule, and then there is no clock to read.
        (self.until.load(Ordering::Relaxed) != 0)
            .then(|| self.pause_at(read(ClockId::Monotonic)))?
    }

    fn owe_at(&self, time: Duration, now: u64) {
        let pause = nanoseconds(time.saturating_mul(PAUSES));
        let longest = now.saturating_add(nanoseconds(MAX_DEBT));
        let owe = |until: u64| Some(until.max(now).saturating_add(pause).min(longest));
        let _ = self.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, owe);
    }

    #[cold]
    fn pause_at(&self, now: u64) -> Option<Duration> {
        let until = self.until.load(Ordering::Relaxed);
        if until > now {
            return Some(Duration::from_nanos(until - now));
        }
        // Left as it is where more was added meanwhile.
        let _ = self.until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        None
    }
}

/// Finds slow calls on one object, at the cost of two reads of a coarse clock for each call.
///
/// A call during which that clock went on may have been slow; or its thread had no processor, or the
/// tick came by chance. So the next calls are measured by the time that their thread had a processor:
/// however busy the machine is, a call without watchers is not slow by that.
#[derive(Debug, Default)]
pub struct SlowCalls {
    /// How many further calls are measured.
    suspicion: AtomicU8,
}

impl SlowCalls {
    /// Makes a call. Returns how much time it took, too, if that was measured and is much.
    #[inline]
    pub fn time<R>(&self, call: impl FnOnce() -> R) -> (R, Option<Duration>) {
        // In a model, time is not of the scenario.
        if cfg!(any(loom, shuttle)) {
            return (call(), None);
        }
        if self.suspicion.load(Ordering::Relaxed) > 0 {
            return self.measure(call);
        }
        let before = read(ClockId::MonotonicCoarse);
        let result = call();
        if read(ClockId::MonotonicCoarse) != before {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
        }
        (result, None)
    }

    #[cold]
    fn measure<R>(&self, call: impl FnOnce() -> R) -> (R, Option<Duration>) {
        let before = read(ClockId::ThreadCPUTime);
        let result = call();
        let took = Duration::from_nanos(read(ClockId::ThreadCPUTime).saturating_sub(before));
        if took >= SLOW {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
            return (result, Some(took));
        }
        let less = |left: u8| left.checked_sub(1);
        let _ = self.suspicion.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        (result, None)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn user_in_debt_is_not_served_for_a_multiple_of_the_time() {
        let debt = Debt::default();
        assert_eq!(debt.pause(), None);
        debt.owe_at(Duration::from_millis(10), 5 * MS);
        debt.owe_at(Duration::from_millis(2), 6 * MS);
        assert_eq!(debt.pause_at(7 * MS), Some(Duration::from_millis(5 + 9 * 12 - 7)));
        assert_eq!(debt.pause_at((5 + 9 * 12) * MS), None);
        assert_eq!(debt.pause(), None, "paid");
        debt.owe_at(Duration::from_secs(100), 0);
        assert_eq!(debt.pause_at(0), Some(MAX_DEBT));
    }

    fn work(time: Duration) {
        let start = read(ClockId::ThreadCPUTime);
        while read(ClockId::ThreadCPUTime) - start < nanoseconds(time) {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn calls_that_use_the_processor_for_long_are_found() {
        let calls = SlowCalls::default();
        // More than the longest tick of a kernel, 10 ms.
        let (_, first) = calls.time(|| work(Duration::from_millis(11)));
        assert_eq!(first, None, "suspected");
        for _ in 0..2 {
            let (_, took) = calls.time(|| work(Duration::from_millis(2)));
            assert!(took.is_some_and(|took| took >= Duration::from_millis(2)), "{took:?}");
        }
    }

    #[test]
    fn calls_without_a_processor_are_not_slow() {
        let calls = SlowCalls::default();
        for _ in 0..5 {
            let (_, took) = calls.time(|| std::thread::sleep(Duration::from_millis(11)));
            assert_eq!(took, None);
        }
        assert!(calls.suspicion.load(Ordering::Relaxed) > 0);
        for _ in 0..SUSPICION {
            calls.time(|| ());
        }
    }
}
