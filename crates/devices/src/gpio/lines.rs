//! The lines of the card, shared by the guest's side and the outside world.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use vfiod_pci::Interrupts;

/// What the lines are at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Outputs, a bit each; the guest sets them.
    pub outputs: u16,
    /// Inputs, a bit each; the outside sets them.
    pub inputs: u16,
}

#[derive(Debug)]
struct State {
    lines: Snapshot,
    /// Input bytes that changed since the last acknowledgement: bit 0 low, bit 1 high.
    changed: u8,
    interrupt_enabled: bool,
    filter: bool,
}

/// The lines. Usable from any thread.
#[derive(Debug)]
pub struct Lines {
    state: Mutex<State>,
    moved: Condvar,
    interrupts: OnceLock<Interrupts>,
}

impl Lines {
    pub(super) fn new(inputs: u16) -> Self {
        Self {
            state: Mutex::new(State {
                lines: Snapshot { outputs: 0, inputs },
                changed: 0,
                interrupt_enabled: false,
                filter: false,
            }),
            moved: Condvar::new(),
            interrupts: OnceLock::new(),
        }
    }

    pub(super) fn connect(&self, interrupts: Interrupts) {
        // A second registration of the same model keeps the first one's interrupts: there is none.
        let _ = self.interrupts.set(interrupts);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the interrupt line follow the state. Called with the state locked, so that two
    /// changes cannot overtake each other.
    fn drive(&self, state: &State) {
        if let Some(interrupts) = self.interrupts.get() {
            interrupts.set(0, state.interrupt_enabled && state.changed != 0);
        }
    }

    /// The lines now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().lines
    }

    /// Sets the inputs in `mask`. A change interrupts the guest, if it enabled that.
    pub fn set_inputs(&self, mask: u16, values: u16) {
        let mut state = self.lock();
        let inputs = state.lines.inputs & !mask | values & mask;
        let [low, high] = (state.lines.inputs ^ inputs).to_le_bytes();
        if (low, high) == (0, 0) {
            return;
        }
        state.lines.inputs = inputs;
        state.changed |= u8::from(low != 0) | u8::from(high != 0) << 1;
        self.drive(&state);
        drop(state);
        self.moved.notify_all();
    }

    /// Waits until the lines differ from `seen`, or the time is up; the lines then.
    pub fn wait_for_change(&self, seen: Snapshot, timeout: Duration) -> Snapshot {
        let state = self.lock();
        let waited = self.moved.wait_timeout_while(state, timeout, |state| state.lines == seen);
        waited.unwrap_or_else(PoisonError::into_inner).0.lines
    }

    pub(super) fn set_outputs(&self, mask: u16, values: u16) {
        let mut state = self.lock();
        state.lines.outputs = state.lines.outputs & !mask | values & mask;
        drop(state);
        self.moved.notify_all();
    }

    pub(super) fn enable_interrupt(&self, enabled: bool) {
        let mut state = self.lock();
        state.interrupt_enabled = enabled;
        self.drive(&state);
    }

    pub(super) fn set_filter(&self, filter: bool) {
        // Inputs here do not bounce: kept, without effect.
        self.lock().filter = filter;
    }

    pub(super) fn acknowledge(&self) {
        let mut state = self.lock();
        state.changed = 0;
        self.drive(&state);
    }

    pub(super) fn interrupt_status(&self) -> u8 {
        let state = self.lock();
        let asserted = state.interrupt_enabled && state.changed != 0;
        state.changed | u8::from(asserted) << 2
    }

    pub(super) fn reset(&self) {
        let mut state = self.lock();
        let inputs = state.lines.inputs;
        *state = State {
            lines: Snapshot { outputs: 0, inputs },
            changed: 0,
            interrupt_enabled: false,
            filter: false,
        };
        self.drive(&state);
        drop(state);
        self.moved.notify_all();
    }
}
