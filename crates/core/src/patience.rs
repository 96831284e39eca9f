//! How long an unregister waits between asking, and in all; and an access for its set's reset.

use std::time::Duration;

/// The first pause between two requests; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: that of the kernel's `vfio_unregister_group_dev`.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(not(any(loom, shuttle)))]
mod real {
    use std::time::Instant;

    use super::*;

    /// Counts the requests and watches the clock.
    pub(crate) struct Patience {
        end: Option<Instant>,
        asked: u32,
        pause: Duration,
        pause_end: Option<Instant>,
    }

    impl Patience {
        /// `None`: without end.
        pub(crate) fn new(limit: Option<Duration>) -> Self {
            // A limit past the end of time is none.
            let end = limit.and_then(|limit| Instant::now().checked_add(limit));
            let end = if limit == Some(Duration::ZERO) { Some(Instant::now()) } else { end };
            Self { end, asked: 0, pause: FIRST_PAUSE, pause_end: None }
        }

        /// The number of the next request; `None` when time is up. Starts the next pause.
        pub(crate) fn ask(&mut self) -> Option<u32> {
            let now = Instant::now();
            if self.end.is_some_and(|end| now >= end) {
                return None;
            }
            let n = self.asked;
            self.asked = n.saturating_add(1);
            self.pause_end = now.checked_add(self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            Some(n)
        }

        /// How long to sleep until the next request or the end; `None` when it is time for it.
        pub(crate) fn wait(&mut self) -> Option<Duration> {
            let until = match (self.pause_end, self.end) {
                (Some(pause), Some(end)) => pause.min(end),
                (pause, end) => pause.or(end)?,
            };
            let left = until.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(left)
        }
    }
}
#[cfg(not(any(loom, shuttle)))]
pub(crate) use real::Patience;

/// In a model no time passes: with a limit, two requests with one turn of the others each;
/// without, the second pause lasts for ever, so that a wake-up that gets lost is a deadlock.
#[cfg(any(loom, shuttle))]
pub(crate) struct Patience {
    limited: bool,
    asked: u32,
    waited: bool,
}

#[cfg(any(loom, shuttle))]
impl Patience {
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let _ = (FIRST_PAUSE, LONGEST_PAUSE);
        let over = limit == Some(Duration::ZERO);
        Self { limited: limit.is_some(), asked: if over { 2 } else { 0 }, waited: false }
    }

    pub(crate) fn ask(&mut self) -> Option<u32> {
        if self.limited && self.asked == 2 {
            return None;
        }
        self.waited = false;
        self.asked += 1;
        Some(self.asked - 1)
    }

    pub(crate) fn wait(&mut self) -> Option<Duration> {
        if !self.limited && self.asked == 2 {
            return Some(Duration::MAX);
        }
        (!std::mem::replace(&mut self.waited, true)).then_some(Duration::ZERO)
    }
}

/// How long an access waits while its set is being reset: clients give up after five seconds,
/// and take an error for good.
const ACCESS_WAIT: Duration = Duration::from_secs(1);

/// The time that an access has left.
#[cfg(not(any(loom, shuttle)))]
pub(crate) struct AccessPatience(std::time::Instant);

#[cfg(not(any(loom, shuttle)))]
impl AccessPatience {
    pub(crate) fn new() -> Self {
        Self(std::time::Instant::now() + ACCESS_WAIT)
    }

    /// How long to wait now; `None` when time is up.
    pub(crate) fn wait(&mut self) -> Option<Duration> {
        let left = self.0.saturating_duration_since(std::time::Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

/// In a model: two turns of the others.
#[cfg(any(loom, shuttle))]
pub(crate) struct AccessPatience(u32);

#[cfg(any(loom, shuttle))]
impl AccessPatience {
    pub(crate) fn new() -> Self {
        let _ = ACCESS_WAIT;
        Self(2)
    }

    pub(crate) fn wait(&mut self) -> Option<Duration> {
        self.0 = self.0.checked_sub(1)?;
        Some(Duration::ZERO)
    }
}

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    #[test]
    fn asks_at_once_then_pauses_longer_and_longer() {
        let mut patience = Patience::new(None);
        let mut last = Duration::ZERO;
        for n in 0..12 {
            assert_eq!(patience.ask(), Some(n));
            let pause = patience.wait().expect("a pause");
            assert!(pause > last || pause > LONGEST_PAUSE / 2, "{n}: {pause:?} after {last:?}");
            assert!(pause <= LONGEST_PAUSE);
            last = pause;
        }
    }

    #[test]
    fn no_time_means_no_request() {
        assert_eq!(Patience::new(Some(Duration::ZERO)).ask(), None);
    }

    #[test]
    fn pauses_end_with_the_limit_and_the_longest_limit_is_none() {
        let mut patience = Patience::new(Some(Duration::from_millis(20)));
        assert_eq!(patience.ask(), Some(0));
        assert!(patience.wait().is_none_or(|pause| pause <= Duration::from_millis(20)));
        assert_eq!(Patience::new(Some(Duration::MAX)).ask(), Some(0));
    }
}
