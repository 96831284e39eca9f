//! Bounds on what a peer can make us spend, and warnings that a peer cannot flood the log with.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vfiod_quota::Payer;

/// Room for descriptors in one receive: as many as Linux passes with one send. The kernel would
/// close what does not fit, and the receive would wait for that.
pub(crate) const MAX_FDS: usize = 253;
/// How much is received at once at first, and for a thread that waits.
pub(crate) const SMALL_CHUNK: usize = 16 << 10;
/// How much is received at once from a client that sends more than that; what a socket holds by
/// default is a little less.
pub(crate) const CHUNK: usize = 256 << 10;
/// Replies that are collected before they are sent.
pub(crate) const REPLY_BATCH: usize = 256 << 10;
/// Threads that may be with one device at a time. The device handles one access at a time
/// anyway; more would only make it easier to use up all threads.
pub(crate) const MAX_THREADS_PER_DEVICE: usize = 8;
/// How long a connection is served once others are known to wait for one of those threads. It waits
/// behind them then.
pub(crate) const CROWDED_TURN: Duration = Duration::from_millis(1);
/// Receives in a row without a pause that make a connection a busy one.
pub(crate) const BUSY_STREAK: u64 = 64;
/// Lines of the log a second about the ends of a device's connections, and about what was refused
/// to those that have not opened it: of each of both.
pub(crate) const MAX_LINES: u64 = 10;
/// Connections to one socket at a time.
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// Connections beyond twice those that are on their way out, before no others are taken in.
pub(crate) const MAX_LEAVING: usize = 128;

/// Lets so many messages a second through and counts the others.
#[derive(Debug)]
pub(crate) struct Quiet {
    start: Instant,
    /// Most messages in a second.
    most: u64,
    /// Second (from `start`, plus 1) of the last message in the upper half, and how many there were in
    /// it in the lower one.
    last: AtomicU64,
    swallowed: AtomicU64,
}

impl Default for Quiet {
    fn default() -> Self {
        Self::up_to(1)
    }
}

impl Quiet {
    /// Lets up to `most` messages a second through.
    pub(crate) fn up_to(most: u64) -> Self {
        let (last, swallowed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { start: Instant::now(), most, last, swallowed }
    }

    /// Calls `warn` with the number of messages swallowed before, unless there were enough in this
    /// second already.
    pub(crate) fn warn(&self, warn: impl FnOnce(u64)) {
        let second = self.start.elapsed().as_secs() + 1;
        let next = |last: u64| match (last >> 32 == second, last & u64::from(u32::MAX)) {
            (false, _) => Some((second << 32) | 1),
            (true, count) => (count < self.most).then_some((second << 32) | (count + 1)),
        };
        if self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_err() {
            self.swallowed.fetch_add(1, Ordering::Relaxed);
        } else {
            warn(self.take_suppressed());
        }
    }

    /// [`Quiet::warn`], unless there were enough lines about the user who pays, too.
    pub(crate) fn warn_of(&self, payer: &Payer, warn: impl FnOnce(u64)) {
        self.warn(|suppressed| {
            if let Some(suppressed) = payer.lines().pass(suppressed) {
                warn(suppressed);
            }
        });
    }

    /// How many warnings were swallowed since the last one, for whoever reports the end. They are
    /// not reported again.
    pub(crate) fn take_suppressed(&self) -> u64 {
        self.swallowed.swap(0, Ordering::Relaxed)
    }
}

/// A text for the log in which there may be some of a client's: the first 256 bytes of it.
pub(crate) struct Clipped<'a>(pub(crate) &'a dyn Display);

impl Display for Clipped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 256;
        let text = self.0.to_string();
        let end = (0..=MOST.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        let clipped = &text[..end.unwrap_or(0)];
        f.write_str(clipped)?;
        if clipped.len() < text.len() { f.write_str("…") } else { Ok(()) }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use vfiod_quota::{Ledger, Limits, User};

    use super::*;

    #[test]
    fn text_of_a_client_is_clipped_between_characters() {
        assert_eq!(Clipped(&"short").to_string(), "short");
        let long = format!("x{}", "ä".repeat(300));
        assert_eq!(Clipped(&long).to_string(), format!("x{}…", "ä".repeat(127)));
    }

    #[test]
    fn lines_about_a_user_are_few_on_however_many_connections() {
        let ledger = Ledger::new(Limits::of_process(2));
        let accounts = ["x", "y"].map(|device| ledger.open(device).unwrap().account);
        let start = Instant::now();
        let (mut lines, mut told) = (0, 0);
        for n in 0..500 {
            let payer = Payer::new(accounts[n % 2].clone(), User::Account(1));
            Quiet::default().warn_of(&payer, |suppressed| {
                lines += 1;
                told += suppressed;
            });
        }
        let seconds = start.elapsed().as_secs() as usize + 2;
        assert!(lines <= 20 * seconds, "{lines} lines");
        let other = Payer::new(accounts[0].clone(), User::Account(2));
        let mut of_other = None;
        Quiet::default().warn_of(&other, |suppressed| of_other = Some(suppressed));
        assert_eq!(of_other, Some(0), "another user has lines of its own");
        assert!(lines + told as usize <= 500);
    }
}
