//! Which thread serves a source.
//!
//! ```text
//!          enter             begin               wait
//!   Idle ────────► Queueing ───────► Serving ──────────► Waiting
//!    ▲                ▲  ◄─────────  │    ▲  ◄────────── │
//!    │                     requeue   │    │    resume    └─ enter: Visit::Pump
//!    │                          enter│    │
//!    │        leave                  ▼    │ leave: again
//!    └─────────────────────────────  Missed
//! ```
//!
//! A source is watched again (`epoll`, one event) while its thread still serves it. An event that
//! comes in between must not be lost: the thread that it wakes leaves a mark, and the one that
//! serves looks again. An event of a source that waits at a gate needs no mark: whoever serves it in its
//! turn looks at everything. So a source is in a gate's queue once, and does not end there.

use std::sync::Arc;

use rustix::io::Errno;
use vfiod_quota::Payer;
use vfiod_sync::atomic::{AtomicU8, Ordering};

use crate::gate::{Gate, Visitor};
use crate::pool::{Interest, Source, Watch, Worker};

const IDLE: u8 = 0;
/// At the gate.
const QUEUEING: u8 = 1;
const SERVING: u8 = 2;
/// Serving, and something has happened since.
const MISSED: u8 = 3;
/// The thread that serves it is in a call that may wait for the peer.
const WAITING: u8 = 4;

/// What a thread that an event has woken shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// Take the source to the gate.
    Serve,
    /// Take in what has arrived, for a thread that waits.
    Pump,
    /// Nothing: the thread that serves it will look again.
    Leave,
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
                IDLE => (QUEUEING, Visit::Serve),
                WAITING => return Visit::Pump,
                // Written again, so that what has happened is seen after [`Serving::begin`].
                QUEUEING => (QUEUEING, Visit::Leave),
                _ => (MISSED, Visit::Leave),
            };
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match self.0.compare_exchange(state, next, order.0, order.1) {
                Ok(_) => return visit,
                Err(now) => state = now,
            }
        }
    }

    /// A thread serves the source, which was at the gate.
    pub(crate) fn begin(&self) {
        self.0.swap(SERVING, Ordering::AcqRel);
    }

    /// The source goes back to the gate, with whatever has happened.
    fn requeue(&self) {
        self.0.swap(QUEUEING, Ordering::AcqRel);
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

    /// Another thread has something for whoever serves the source. `false`: nobody does, and it is not at
    /// the gate; or its thread waits.
    pub(crate) fn mark(&self) -> bool {
        let marked =
            self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
                SERVING | MISSED => Some(MISSED),
                QUEUEING => Some(QUEUEING),
                _ => None,
            });
        marked.is_ok()
    }
}

/// What a source needs after it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// To be watched.
    Watch(Interest),
    /// To be served again, after those who wait at the gate: it can go on at once.
    Again,
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
    /// Serves it until there is nothing to do, or others have waited for long.
    ///
    /// # Errors
    /// It has ended.
    fn run(&self, worker: &mut Worker) -> Result<Next, Self::End>;
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

/// Serves a source for which the calling thread was woken, when it is its turn; if others wait at the
/// gate, the thread may serve one of them instead.
pub(crate) fn serve<S: Guarded>(source: Arc<S>, watch: &Watch, worker: &mut Worker) {
    match source.serving().enter() {
        Visit::Serve => {}
        Visit::Pump => return source.pump(),
        Visit::Leave => return,
    }
    let gate = source.gate().clone();
    if let Some(turn) = gate.enter(watch, source) {
        turn.take(worker);
    }
}

impl<S: Guarded> Visitor for S {
    fn payer(&self) -> Option<&Payer> {
        Guarded::payer(self)
    }

    fn visit(self: Arc<Self>, watch: &Watch, worker: &mut Worker) -> Option<Arc<dyn Visitor>> {
        self.serving().begin();
        loop {
            let parked = self.run(worker).and_then(|next| match next {
                Next::Watch(interest) => {
                    watch.park(self.clone(), interest).map(|()| true).map_err(S::End::from)
                }
                Next::Again => Ok(false),
            });
            match parked {
                Ok(true) if self.serving().leave() => return None,
                // Something has happened since it looked; if others wait, they are first.
                Ok(true) if !self.gate().is_crowded() => {}
                Ok(_) => {
                    self.serving().requeue();
                    return Some(self);
                }
                Err(end) => {
                    self.ended(&end);
                    watch.forget();
                    return None;
                }
            }
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
            (IDLE, Visit::Serve, QUEUEING),
            (QUEUEING, Visit::Leave, QUEUEING),
            (SERVING, Visit::Leave, MISSED),
            (MISSED, Visit::Leave, MISSED),
            (WAITING, Visit::Pump, WAITING),
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
            (QUEUEING, true, QUEUEING),
            (SERVING, true, MISSED),
            (MISSED, true, MISSED),
            (WAITING, false, WAITING),
        ] {
            let serving = reach(before);
            assert_eq!((serving.mark(), after(&serving)), (marked, state), "from {before}");
        }
    }
}
