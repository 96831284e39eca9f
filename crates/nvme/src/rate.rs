//! Limits of commands and of bytes per second, by token buckets.
//!
//! A command that exceeds a limit is not read: it stays in its submission queue. Queues that wait for tokens
//! stand in a line. The first one waits for the time when there is a token, the others for their turn; who has
//! read goes to the end. The size of a command is known once it is read, so that it may take more bytes than
//! the bucket has; what is missing has to come in before the next one is read.
//!
//! The buckets are the project's own: what libraries offer takes no more than there is, has its limits fixed,
//! or waits by the clock of another runtime.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfiod_core::{Errno, Error, Result};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::limits::MAX_TRANSFER;
use crate::queues::SubmissionQueue;

/// Parts of a token that are counted: with a rate in tokens per second, one comes in each nanosecond for each
/// token.
const TOKEN: u128 = 1_000_000_000;
/// How long a queue waits at least where that much fits into the bucket, so that a high limit is not kept by
/// a timer for each command.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// Limits of what a host may have done; `None` and 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateLimits {
    /// I/O commands per second, and how many may be carried out at once after a pause.
    pub(crate) iops: Option<u64>,
    pub(crate) iops_burst: Option<u64>,
    /// Bytes per second, and how many at once after a pause.
    pub(crate) bandwidth: Option<u64>,
    pub(crate) bandwidth_burst: Option<u64>,
}

/// A change of limits; what is `None` stays, and 0 is no limit, or the burst as by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateChange(pub(crate) RateLimits);

/// How much is carried out at once after a pause, unless it is given: that of a tenth of a second.
pub(crate) fn default_burst(rate: u64) -> u64 {
    (rate / 10).max(1)
}

impl RateLimits {
    /// These limits, where 0 is none.
    fn without_zeroes(self) -> Self {
        let some = |rate: Option<u64>| rate.filter(|rate| *rate > 0);
        let Self { iops, iops_burst, bandwidth, bandwidth_burst } = self;
        Self {
            iops: some(iops),
            iops_burst: some(iops).and(some(iops_burst)),
            bandwidth: some(bandwidth),
            bandwidth_burst: some(bandwidth).and(some(bandwidth_burst)),
        }
    }

    /// The limits after a change.
    ///
    /// # Errors
    /// `EINVAL`: it changes nothing, or a burst is of a limit that is not there.
    pub(crate) fn changed(self, RateChange(change): RateChange) -> Result<Self> {
        if change == Self::default() {
            let what = "no limit is given; `iops`, `iops_burst`, `bandwidth` and `bandwidth_burst` are limits, and \
                        0 is none";
            return Err(Error::new(Errno::INVAL, what));
        }
        let given = |burst: Option<u64>| burst.filter(|burst| *burst > 0);
        let merged = |rate: Option<u64>, new: Option<u64>| new.or(rate).filter(|rate| *rate > 0);
        let (iops, bandwidth) =
            (merged(self.iops, change.iops), merged(self.bandwidth, change.bandwidth));
        // A burst goes with its limit; one that is asked for without it is a mistake.
        let burst = |rate: Option<u64>, old: Option<u64>, new: Option<u64>| match new {
            Some(_) => given(new),
            None => rate.and(old),
        };
        let changed = Self {
            iops,
            iops_burst: burst(iops, self.iops_burst, change.iops_burst),
            bandwidth,
            bandwidth_burst: burst(bandwidth, self.bandwidth_burst, change.bandwidth_burst),
        };
        changed.check()?;
        Ok(changed)
    }

    /// That a burst is one of a limit.
    ///
    /// # Errors
    /// `EINVAL`.
    pub(crate) fn check(&self) -> Result<()> {
        let bursts = [
            ("iops", self.iops, self.iops_burst),
            ("bandwidth", self.bandwidth, self.bandwidth_burst),
        ];
        for (name, rate, burst) in bursts {
            let what = match burst {
                Some(0) => format!(
                    "`{name}_burst` is 0, and nothing would be carried out; must be at least 1"
                ),
                Some(_) if rate.unwrap_or(0) == 0 => {
                    format!("`{name}_burst` is about a limit that is not there; `{name}` sets it")
                }
                _ => continue,
            };
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(())
    }
}

/// A bucket of tokens, which come in with the time.
#[derive(Debug)]
struct Bucket {
    /// Tokens per second.
    rate: u64,
    /// Tokens that fit in, in parts.
    depth: u128,
    /// What was taken and has not come in again, in parts; more than `depth` if more was taken than there was.
    missing: u128,
    /// When that was so; `None`: the bucket was never used, and is full.
    at: Option<Instant>,
}

impl Bucket {
    /// `None`: there is no limit. A burst is a tenth of a second unless it is given.
    fn new(rate: Option<u64>, burst: Option<u64>) -> Option<Self> {
        let rate = rate.filter(|rate| *rate > 0)?;
        let burst = burst.unwrap_or(default_burst(rate)).max(1);
        Some(Self { rate, depth: u128::from(burst) * TOKEN, missing: 0, at: None })
    }

    /// What was taken of another bucket is taken of this one, as far as it has that much.
    fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before {
            (self.missing, self.at) = (before.missing.min(self.depth), before.at);
        }
        self
    }

    /// Lets come in what has come in by now.
    fn fill(&mut self, now: Instant) {
        if let Some(at) = self.at.replace(now) {
            let time = now.saturating_duration_since(at).as_nanos();
            self.missing = self.missing.saturating_sub(time.saturating_mul(self.rate.into()));
        }
    }

    /// How many tokens there are.
    fn tokens(&self) -> u64 {
        u64::try_from(self.depth.saturating_sub(self.missing) / TOKEN).unwrap_or(u64::MAX)
    }

    /// How long it takes until there is a token.
    fn wait(&self) -> Duration {
        let surplus = (self.missing + TOKEN).saturating_sub(self.depth);
        let time = |parts: u128| {
            Duration::from_nanos(parts.div_ceil(self.rate.into()).try_into().unwrap_or(u64::MAX))
        };
        if surplus == 0 {
            Duration::ZERO
        } else {
            time(surplus).max(LEAST_WAIT.min(time(self.depth / 2)))
        }
    }

    fn take(&mut self, tokens: u64) {
        self.missing += u128::from(tokens) * TOKEN;
    }
}

/// The limits of a controller, and what is left of them.
#[derive(Debug)]
pub(crate) struct RateLimit {
    /// Whether there is one: a queue of a controller that has none looks at nothing else.
    limited: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: RateLimits,
    commands: Option<Bucket>,
    bytes: Option<Bucket>,
    /// Queues that wait for tokens, or read: by their places, and in their order.
    line: VecDeque<(u64, Arc<SubmissionQueue>)>,
    next_place: u64,
}

/// What a queue may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// So many commands. They are counted by [`Place::spend`].
    Commands(u32),
    /// None before this time has passed, or the bell rings.
    After(Duration),
    /// None before others have read: the bell rings then.
    InTurn,
}

/// A queue's place in the line; dropping it lets the next one have its turn.
#[derive(Debug)]
pub(crate) struct Place {
    limit: Arc<RateLimit>,
    place: u64,
}

impl RateLimit {
    pub(crate) fn new(limits: RateLimits) -> Self {
        let limit = Self {
            limited: AtomicBool::new(false),
            state: Mutex::new(State {
                limits: RateLimits::default(),
                commands: None,
                bytes: None,
                line: VecDeque::new(),
                next_place: 0,
            }),
        };
        limit.set(limits);
        limit
    }

    /// Sets the limits. Queues that wait look again at once, and what was taken before stays taken.
    pub(crate) fn set(&self, limits: RateLimits) {
        let mut state = lock(&self.state);
        state.limits = limits.without_zeroes();
        let State { commands, bytes, .. } = &mut *state;
        for (bucket, rate, burst) in [
            (commands, limits.iops, limits.iops_burst),
            (bytes, limits.bandwidth, limits.bandwidth_burst),
        ] {
            *bucket = Bucket::new(rate, burst).map(|new| new.after(bucket.as_ref()));
        }
        self.limited.store(state.commands.is_some() || state.bytes.is_some(), Ordering::SeqCst);
        let waiting: Vec<_> = state.line.iter().map(|(_, queue)| queue.clone()).collect();
        drop(state);
        waiting.iter().for_each(|queue| queue.bell.ring(None));
    }

    /// The limits; `None`: there is none.
    pub(crate) fn limits(&self) -> RateLimits {
        lock(&self.state).limits
    }

    /// How many queues wait for tokens or their turn, or read.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).line.len()
    }

    /// Whether there are limits.
    pub(crate) fn is_limited(&self) -> bool {
        self.limited.load(Ordering::SeqCst)
    }

    /// How many commands a queue may read that wants up to `most`, and at least `least` if any. `place` is
    /// the one that it has in the line, or gets.
    pub(crate) fn ask(
        self: &Arc<Self>,
        place: &mut Option<Place>,
        queue: &Arc<SubmissionQueue>,
        now: Instant,
        (least, most): (u32, u32),
    ) -> Allowed {
        let mut state = lock(&self.state);
        let own = place.get_or_insert_with(|| {
            let place = state.next_place;
            state.next_place += 1;
            state.line.push_back((place, queue.clone()));
            Place { limit: self.clone(), place }
        });
        if state.line.front().is_some_and(|(first, _)| *first != own.place) {
            return Allowed::InTurn;
        }
        let State { commands, bytes, .. } = &mut *state;
        let mut allowed = u64::from(most);
        let mut wait = Duration::ZERO;
        if let Some(bucket) = commands {
            bucket.fill(now);
            wait = bucket.wait();
            allowed = allowed.min(bucket.tokens());
        }
        if let Some(bucket) = bytes {
            bucket.fill(now);
            wait = wait.max(bucket.wait());
            // The last one may take more than there is; those before it do not.
            allowed = allowed.min((bucket.tokens() / MAX_TRANSFER).max(1));
        }
        if !wait.is_zero() {
            return Allowed::After(wait);
        }
        Allowed::Commands((allowed as u32).max(least).min(most))
    }

    /// Bytes that were taken and have not come in again.
    #[cfg(test)]
    pub(crate) fn missing_bytes(&self) -> u64 {
        lock(&self.state).bytes.as_ref().map_or(0, |bucket| (bucket.missing / TOKEN) as u64)
    }

    /// Takes what commands cost.
    pub(crate) fn spend(&self, commands: u64, bytes: u64) {
        if !self.is_limited() {
            return;
        }
        let mut state = lock(&self.state);
        if let Some(bucket) = &mut state.commands {
            bucket.take(commands);
        }
        if let Some(bucket) = &mut state.bytes {
            bucket.take(bytes);
        }
    }
}

impl Place {
    /// Takes what commands cost that were read, and lets the next one have its turn.
    pub(crate) fn spend(self, commands: u64, bytes: u64) {
        self.limit.spend(commands, bytes);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.limit.state);
        let was_first = state.line.front().is_some_and(|(first, _)| *first == self.place);
        state.line.retain(|(place, _)| *place != self.place);
        let next = state.line.front().filter(|_| was_first).map(|(_, queue)| queue.clone());
        drop(state);
        if let Some(next) = next {
            next.bell.ring(None);
        }
    }
}
