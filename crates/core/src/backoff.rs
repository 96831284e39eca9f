//! How long an unregister waits between its requests to close the device, and in all.

use std::time::Duration;

/// The first pause between two requests; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: that of the kernel's `vfio_unregister_group_dev`.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(not(any(loom, shuttle)))]
mod real {
    use std::time::Instant;

    use super::*;

    /// Counts the requests and watches the clock. Whoever has any time is asked once, however little of
    /// it is left by then: on a busy machine it may be over before the first request.
    pub(crate) struct RequestBackoff {
        end: Option<Instant>,
        asked: u32,
        pause: Duration,
        pause_end: Option<Instant>,
        /// There was no time from the start.
        over: bool,
    }

    impl RequestBackoff {
        /// `None`: without end.
        pub(crate) fn new(limit: Option<Duration>) -> Self {
            // A limit past the end of time is none.
            let end = limit.and_then(|limit| Instant::now().checked_add(limit));
            let over = limit == Some(Duration::ZERO);
            Self { end, asked: 0, pause: FIRST_PAUSE, pause_end: None, over }
        }

        /// The number of the next request; `None` when time is up. Starts the next pause.
        pub(crate) fn next_request(&mut self) -> Option<u32> {
            let now = Instant::now();
            let is_late = self.asked > 0 && self.end.is_some_and(|end| now >= end);
            if self.over || is_late {
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
pub(crate) use real::RequestBackoff;

/// In a model no time passes: with a limit, two requests with one turn of the others each;
/// without, the second pause lasts for ever, so that a wake-up that gets lost is a deadlock.
#[cfg(any(loom, shuttle))]
pub(crate) struct RequestBackoff {
    limited: bool,
    asked: u32,
    waited: bool,
}

#[cfg(any(loom, shuttle))]
impl RequestBackoff {
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let _ = (FIRST_PAUSE, LONGEST_PAUSE);
        let over = limit == Some(Duration::ZERO);
        Self { limited: limit.is_some(), asked: if over { 2 } else { 0 }, waited: false }
    }

    pub(crate) fn next_request(&mut self) -> Option<u32> {
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

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    #[test]
    fn asks_at_once_then_pauses_longer_and_longer() {
        let pauses_grow = || {
            let mut backoff = RequestBackoff::new(None);
            let mut last = Duration::ZERO;
            (0..12).all(|n| {
                assert_eq!(backoff.next_request(), Some(n));
                let pause = backoff.wait().unwrap_or_default();
                assert!(pause <= LONGEST_PAUSE);
                std::mem::replace(&mut last, pause) < pause || pause > LONGEST_PAUSE / 2
            })
        };
        // What is left of a pause is less after a machine has stood still, which it does not in each try.
        assert!((0..5).any(|_| pauses_grow()));
    }

    #[test]
    fn no_time_means_no_request() {
        assert_eq!(RequestBackoff::new(Some(Duration::ZERO)).next_request(), None);
    }

    #[test]
    fn time_that_is_over_before_the_first_request_is_enough_for_that() {
        let mut backoff = RequestBackoff::new(Some(Duration::from_nanos(1)));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(backoff.next_request(), Some(0));
        assert_eq!(backoff.next_request(), None);
    }

    #[test]
    fn pauses_end_with_the_limit_and_the_longest_limit_is_none() {
        let mut backoff = RequestBackoff::new(Some(Duration::from_millis(20)));
        assert_eq!(backoff.next_request(), Some(0));
        assert!(backoff.wait().is_none_or(|pause| pause <= Duration::from_millis(20)));
        assert_eq!(RequestBackoff::new(Some(Duration::MAX)).next_request(), Some(0));
    }
}
