//! Which thread serves a source.
//!
//! ```text
//!          enter              wait
//!   Idle ────────► Serving ──────────► Waiting
//!    ▲  ◄────────  │    ▲  ◄────────── │
//!    │    leave    │    │    resume    └─ enter: Visit::Pump
//!    │        enter│    │
//!    │             ▼    │ leave: again
//!    └───────────  Missed
//! ```
//!
//! A source is watched again (`epoll`, one event) while its thread still serves it. An event that
//! comes in between must not be lost: the thread that it wakes leaves a mark, and the one that
//! serves looks again. So a source can be in a gate's queue and be watched, too: if it ends meanwhile, its
//! turn watches it once more, and whoever gets its event forgets it (`Ended`, from any state).

use std::sync::Arc;

use rustix::io::Errno;
use vfiod_quota::Payer;
use vfiod_sync::atomic::{AtomicU8, Ordering};

use crate::gate::Gate;
use crate::pool::{Interest, Source, Watch, Worker};

const IDLE: u8 = 0;
const SERVING: u8 = 1;
/// Serving, and something has happened since.
const MISSED: u8 = 2;
/// The thread that serves it is in a call that may wait for the peer.
const WAITING: u8 = 3;
/// It has ended.
const ENDED: u8 = 4;

/// What a thread that an event has woken shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// Serve the source.
    Serve,
    /// Take in what has arrived, for a thread that waits.
    Pump,
    /// Nothing: the thread that serves it will look again.
    Leave,
    /// Stop watching the source, which has ended.
    Forget,
}

#[derive(Debug)]
pub(crate) struct Serving(AtomicU8);

impl Default for Serving {
    fn default() -> Self {
        Self(AtomicU8::new(IDLE))
    }
}

impl Serving {
    /// A thread was woken for the source.
    pub(crate) fn enter(&self) -> Visit {
        let mut state = self.0.load(Ordering::Acquire);
        loop {
            let (next, visit) = match state {
                IDLE => (SERVING, Visit::Serve),
                WAITING => return Visit::Pump,
                ENDED => return Visit::Forget,
                _ => (MISSED, Visit::Leave),
            };
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match self.0.compare_exchange(state, next, order.0, order.1) {
                Ok(_) => return visit,
                Err(now) => state = now,
            }
        }
    }

    /// The thread that serves the source has watched it again, and would go. `false`: something
    /// has happened since it looked, and it must look again.
    pub(crate) fn leave(&self) -> bool {
        let left = self.0.compare_exchange(SERVING, IDLE, Ordering::AcqRel, Ordering::Acquire);
        if left.is_err() {
            self.0.store(SERVING, Ordering::Release);
        }
        left.is_ok()
    }

    /// The source has ended. Whoever waited at a gate for it may still watch it again.
    fn end(&self) {
        self.0.store(ENDED, Ordering::Release);
    }

    /// The thread that serves the source goes into a call that may wait for the peer.
    pub(crate) fn wait(&self) {
        self.0.store(WAITING, Ordering::Release);
    }

    /// It is back.
    pub(crate) fn resume(&self) {
        self.0.store(SERVING, Ordering::Release);
    }

    /// Whether the thread that serves the source is in a call that may wait for the peer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Acquire) == WAITING
    }

    /// Another thread has something for the thread that serves the source. `false`: there is
    /// none, or it waits.
    pub(crate) fn mark(&self) -> bool {
        let marked = self.0.compare_exchange(SERVING, MISSED, Ordering::AcqRel, Ordering::Acquire);
        matches!(marked, Ok(_) | Err(MISSED))
    }
}

/// A source that one thread at a time serves, behind a gate.
pub(crate) trait Guarded: Source + Sized + 'static {
    /// Why it ends.
    type End: From<Errno>;

    /// Which thread serves it.
    fn serving(&self) -> &Serving;
    /// The gate in front of its device.
    fn gate(&self) -> &Arc<Gate>;
    /// Who pays for the thread that serves it.
    fn payer(&self) -> Option<&Payer>;
    /// Serves it until there is nothing to do, and says what it waits for then.
    ///
    /// # Errors
    /// It has ended.
    fn run(&self, worker: &mut Worker) -> Result<Interest, Self::End>;
    /// Takes in what has arrived, for a thread that waits in [`Guarded::run`].
    fn pump(&self);
    /// It has ended, and is not watched any more once this has returned.
    fn ended(&self, end: &Self::End);
}

/// Has a source looked at again for a reason other than its descriptor: by the thread that serves
/// it, or else by one that it is watched for. It must be ready for `interest`.
///
/// The mark is needed: a thread that leaves the source may watch it for something else meanwhile,
/// and an event that nobody has taken yet is gone then.
pub(crate) fn wake<S: Guarded>(source: &S, watch: &Watch, interest: Interest) {
    if !source.serving().mark() {
        // Fails only where the source is not watched any more.
        let _ = watch.rearm(source, interest);
    }
}

/// Serves a source for which the calling thread was woken.
pub(crate) fn serve<S: Guarded>(source: Arc<S>, watch: &Watch, worker: &mut Worker) {
    match source.serving().enter() {
        Visit::Serve => {}
        Visit::Pump => return source.pump(),
        Visit::Leave => return,
        // It was in the gate's queue when it ended, and had its turn.
        Visit::Forget => return watch.forget(),
    }
    let gate = source.gate().clone();
    loop {
        // For everything: the reason for which it was woken may be none of its descriptor's ([`wake`]),
        // and must be looked at when there is room. So must what a client that takes no replies sends.
        let Some(permit) = gate.enter(watch, source.clone(), Interest::Both, source.payer()) else {
            if source.serving().leave() {
                return;
            }
            // The gate has had room since, and has watched the source again; its event has come,
            // and found this thread here. There will be no other.
            continue;
        };
        let parked = source
            .run(worker)
            .and_then(|interest| watch.park(source.clone(), interest).map_err(S::End::from));
        let ended = parked.inspect_err(|end| {
            source.serving().end();
            source.ended(end);
            watch.forget();
        });
        if ended.is_err() || source.serving().leave() {
            // Releases the file, as long as the device has this thread.
            drop(source);
            drop(permit);
            return;
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn every_transition() {
        let reach = |state| Serving(AtomicU8::new(state));
        let after = |serving: &Serving| serving.0.load(Ordering::Relaxed);
        for (before, visit, state) in [
            (IDLE, Visit::Serve, SERVING),
            (SERVING, Visit::Leave, MISSED),
            (MISSED, Visit::Leave, MISSED),
            (WAITING, Visit::Pump, WAITING),
            (ENDED, Visit::Forget, ENDED),
        ] {
            let serving = reach(before);
            assert_eq!((serving.enter(), after(&serving)), (visit, state), "from {before}");
        }
        for (before, left, state) in [(SERVING, true, IDLE), (MISSED, false, SERVING)] {
            let serving = reach(before);
            assert_eq!((serving.leave(), after(&serving)), (left, state), "from {before}");
        }
        for (before, marked, state) in [
            (IDLE, false, IDLE),
            (SERVING, true, MISSED),
            (MISSED, true, MISSED),
            (WAITING, false, WAITING),
            (ENDED, false, ENDED),
        ] {
            let serving = reach(before);
            assert_eq!((serving.mark(), after(&serving)), (marked, state), "from {before}");
        }
    }
}
