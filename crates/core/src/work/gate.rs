//! The gate of a device: whether work may begin, and whether any is inside.

use vfiod_sync::atomic::{AtomicU64, Ordering};
use vfiod_tasks::Waiters;

/// The low bits of the word: 0 while the gate is open.
const STATE: u64 = 3;
const FINISHING: u64 = 1;
const CANCELLING: u64 = 2;
const RESUMING: u64 = 3;
/// The rest of the word counts what is inside.
const ONE: u64 = 4;

/// How a gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Close {
    /// What is inside runs to its end.
    Finish,
    /// Tasks are cancelled.
    Cancel,
}

/// The state of a gate.
///
/// ```text
///            close(Finish)                  the last one leaves
///      Open ───────────────► Finishing ──────────────────────────┐
///       ▲ │                      │ close(Cancel)                 ▼
///       │ │  close(Cancel)       ▼          the last one leaves
///       │ └────────────────► Cancelling ────────────────────► Closed
///       │                        │                               │
///       └────────────────────────┴───────────────────────────────┘
///                      resume, from any: Resuming ─────► Open
///                                                 open
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Work begins.
    Open,
    /// Tasks begin, calls do not yet: the device is being resumed.
    Resuming,
    /// Nothing new begins, and what is inside runs to its end.
    Finishing,
    /// Nothing new begins, and tasks end at their next await.
    Cancelling,
    /// Nothing is inside.
    Closed,
}

/// A call of a data path, inside the gate until this is dropped.
#[derive(Debug)]
pub struct Inside<'a> {
    gate: &'a Gate,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

/// Counts the tasks and calls of a device, and lets nothing begin while it is closed.
#[derive(Debug, Default)]
pub(super) struct Gate {
    word: AtomicU64,
    /// Tasks and threads that wait until nothing is inside.
    pub(super) idle: Waiters,
}

impl Gate {
    /// Goes inside, if the gate is open. [`Gate::leave`] follows.
    #[inline]
    pub(super) fn enter(&self) -> bool {
        self.enter_if(|state| state == 0)
    }

    /// Goes inside, if the gate is open, until what is returned is dropped.
    #[inline]
    pub(super) fn pass(&self) -> Option<Inside<'_>> {
        self.enter().then(|| Inside { gate: self })
    }

    /// Goes inside for a task, which may begin while the device is being resumed, too.
    /// [`Gate::leave`] follows.
    pub(super) fn enter_task(&self) -> bool {
        self.enter_if(|state| state == 0 || state == RESUMING)
    }

    #[inline]
    fn enter_if(&self, may: impl Fn(u64) -> bool) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        // Do not add and subtract again: a closed gate with nothing inside must stay idle.
        while may(word & STATE) {
            let entered = word + ONE;
            match self.word.compare_exchange_weak(
                word,
                entered,
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(changed) => word = changed,
            }
        }
        false
    }

    /// Ends what [`Gate::enter`] began.
    #[inline]
    pub(super) fn leave(&self) {
        // Releases what was done inside to whoever sees the gate idle.
        let word = self.word.fetch_sub(ONE, Ordering::SeqCst) - ONE;
        if word < ONE && word != 0 {
            self.idle.wake_all();
        }
    }

    /// Closes the gate. A gate that is closed by cancelling stays so.
    pub(super) fn close(&self, how: Close) {
        let state = match how {
            Close::Finish => FINISHING,
            Close::Cancel => CANCELLING,
        };
        let close = |word| match word & STATE {
            RESUMING => Some((word & !STATE) | state),
            before => Some((word & !STATE) | state.max(before)),
        };
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, close);
    }

    /// Lets tasks begin. [`Gate::open`] follows.
    pub(super) fn resume(&self) {
        self.word.fetch_or(RESUMING, Ordering::SeqCst);
    }

    /// Opens a gate that [`Gate::resume`] has prepared, unless it has been closed since.
    pub(super) fn open(&self) {
        let open = |word| (word & STATE == RESUMING).then_some(word & !STATE);
        let _ = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, open);
    }

    /// Opens the gate, from any state.
    pub(super) fn reopen(&self) {
        self.word.fetch_and(!STATE, Ordering::SeqCst);
    }

    pub(super) fn state(&self) -> GateState {
        match self.word.load(Ordering::SeqCst) {
            word if word & STATE == 0 => GateState::Open,
            word if word & STATE == RESUMING => GateState::Resuming,
            word if word < ONE => GateState::Closed,
            word if word & STATE == FINISHING => GateState::Finishing,
            _ => GateState::Cancelling,
        }
    }
}
