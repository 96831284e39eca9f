//! The lines of the card, shared by the guest's side and the outside world.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use vfiod_core::{Errno, Error, InputLog, InputPlace, InputSource, Result};
use vfiod_pci::Interrupts;
use vfiod_sync::{Condvar, Mutex, MutexGuard, wait_while};

use super::registers::{ASSERTED, CHANGED_HIGH, CHANGED_LOW};

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
    /// CHANGED_LOW, CHANGED_HIGH: since the last acknowledgement.
    changed: u8,
    interrupt_enabled: bool,
    /// Inputs here do not bounce: kept, without effect.
    filter: bool,
}

impl State {
    fn new(inputs: u16) -> Self {
        Self {
            lines: Snapshot { outputs: 0, inputs },
            changed: 0,
            interrupt_enabled: false,
            filter: false,
        }
    }

    fn asserted(&self) -> bool {
        self.interrupt_enabled && self.changed != 0
    }
}

vfiod_pci::image! {
    /// The saved state of the card. Flags are 0 or 1.
    #[derive(Copy)]
    pub struct LinesImage {
        outputs: u16,
        /// As the guest saw them last. The outside may set them anew.
        inputs: u16,
        changed: u8,
        interrupt_enabled: u8,
        filter: u8,
        #[serde(skip)]
        padding: u8,
    }
}

type Observer = Arc<dyn Fn(Snapshot) + Send + Sync>;

/// The observers of changes.
#[derive(Default)]
struct Observers {
    list: Vec<(u64, Observer)>,
    next: u64,
    /// A thread is notifying them.
    notifying: bool,
    /// That thread has to notify them once more.
    again: bool,
}

/// The lines. Usable from any thread.
pub struct Lines {
    state: Mutex<State>,
    moved: Condvar,
    interrupts: OnceLock<Interrupts>,
    input_log: OnceLock<InputLog>,
    observers: Mutex<Observers>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Lines {
    pub(super) fn new(inputs: u16) -> Self {
        Self {
            state: Mutex::new(State::new(inputs)),
            moved: Condvar::new(),
            interrupts: OnceLock::new(),
            input_log: OnceLock::new(),
            observers: Mutex::default(),
        }
    }

    pub(super) fn connect(&self, interrupts: Interrupts, input_log: InputLog) {
        // A card is registered once, so they are not set yet.
        let _ = self.interrupts.set(interrupts);
        let _ = self.input_log.set(input_log);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        vfiod_sync::lock(&self.state)
    }

    /// Locks the state for a call of the guest.
    fn lock_for_guest(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        // Counted under the lock, as inputs are recorded under it.
        drop(self.input_log.get().and_then(InputLog::call));
        state
    }

    fn lock_observers(&self) -> MutexGuard<'_, Observers> {
        vfiod_sync::lock(&self.observers)
    }

    /// Makes the interrupt line follow the state. Called with the state locked, so that two
    /// changes cannot overtake each other.
    fn drive(&self, state: &State) {
        if let Some(interrupts) = self.interrupts.get() {
            interrupts.set(0, state.asserted());
        }
    }

    /// The lines now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().lines
    }

    /// Sets the inputs in `mask`, from outside. A change interrupts the guest, if it has
    /// enabled that.
    pub fn set_inputs(&self, mask: u16, values: u16) {
        let mut state = self.lock();
        let inputs = state.lines.inputs & !mask | values & mask;
        let [low, high] = (state.lines.inputs ^ inputs).to_le_bytes();
        if (low, high) == (0, 0) {
            return;
        }
        state.lines.inputs = inputs;
        if let Some(log) = self.input_log.get() {
            log.arrived(&inputs.to_le_bytes());
        }
        state.changed |= if low != 0 { CHANGED_LOW } else { 0 };
        state.changed |= if high != 0 { CHANGED_HIGH } else { 0 };
        self.drive(&state);
        drop(state);
        self.notify();
    }

    /// Waits until the lines differ from `seen`, or the time is up; the lines then.
    pub fn wait_for_change(&self, seen: Snapshot, timeout: Duration) -> Snapshot {
        let state = self.lock();
        wait_while(&self.moved, &self.state, state, timeout, |state| state.lines == seen).lines
    }

    /// Calls `observer` after every change, until the subscription is dropped (a call that is
    /// running at that moment ends later).
    ///
    /// It is called with no lock held, one call at a time, by the thread that made a change: a
    /// vCPU perhaps, so it must not block. It gets the lines as they are then; of changes that
    /// come while it runs it sees the last. It may set inputs, also in response to outputs. An
    /// observer that panics is not called again.
    pub fn on_change(
        self: &Arc<Self>,
        observer: impl Fn(Snapshot) + Send + Sync + 'static,
    ) -> Subscription {
        let mut observers = self.lock_observers();
        let id = observers.next;
        observers.next += 1;
        observers.list.push((id, Arc::new(observer)));
        Subscription { lines: Arc::downgrade(self), id }
    }

    fn forget_observer(&self, id: u64) {
        let observer = {
            let mut observers = self.lock_observers();
            let at = observers.list.iter().position(|(known, _)| *known == id);
            at.map(|at| observers.list.remove(at))
        };
        // Drop it without the lock: what it owns may call these methods.
        drop(observer);
    }

    /// Notifies all observers of a change. Called with no lock held.
    fn notify(&self) {
        self.moved.notify_all();
        let mut observers = self.lock_observers();
        observers.again = true;
        if observers.notifying {
            return; // whoever is at it goes round once more
        }
        observers.notifying = true;
        while std::mem::take(&mut observers.again) {
            let list = observers.list.clone();
            drop(observers);
            for (id, observer) in list {
                let now = self.snapshot();
                if catch_unwind(AssertUnwindSafe(|| observer(now))).is_err() {
                    tracing::error!("an observer of gpio lines panicked; it is not called again");
                    self.forget_observer(id);
                }
            }
            observers = self.lock_observers();
        }
        observers.notifying = false;
    }

    /// The lines now, for the guest.
    pub(super) fn read(&self) -> Snapshot {
        self.lock_for_guest().lines
    }

    pub(super) fn set_outputs(&self, mask: u16, values: u16) {
        let mut state = self.lock_for_guest();
        let outputs = state.lines.outputs & !mask | values & mask;
        if std::mem::replace(&mut state.lines.outputs, outputs) != outputs {
            drop(state);
            self.notify();
        }
    }

    pub(super) fn enable_interrupt(&self, enabled: bool) {
        let mut state = self.lock_for_guest();
        state.interrupt_enabled = enabled;
        self.drive(&state);
    }

    pub(super) fn set_filter(&self, filter: bool) {
        self.lock_for_guest().filter = filter;
    }

    pub(super) fn acknowledge(&self) {
        let mut state = self.lock_for_guest();
        state.changed = 0;
        self.drive(&state);
    }

    pub(super) fn status(&self) -> u8 {
        let state = self.lock_for_guest();
        state.changed | if state.asserted() { ASSERTED } else { 0 }
    }

    pub(super) fn save(&self) -> LinesImage {
        let State { lines: Snapshot { outputs, inputs }, changed, interrupt_enabled, filter } =
            *self.lock();
        LinesImage {
            outputs,
            inputs,
            changed,
            interrupt_enabled: interrupt_enabled.into(),
            filter: filter.into(),
            padding: 0,
        }
    }

    /// Restores a saved state. `EINVAL`: no such state exists; nothing is changed.
    pub(super) fn restore(&self, image: LinesImage) -> Result<()> {
        let LinesImage { outputs, inputs, changed, interrupt_enabled, filter, padding: _ } = image;
        if changed & !(CHANGED_LOW | CHANGED_HIGH) != 0 || interrupt_enabled > 1 || filter > 1 {
            return Err(Error::new(Errno::INVAL, "gpio: a flag that the card does not have"));
        }
        let mut state = self.lock();
        let before = state.lines;
        *state = State {
            lines: Snapshot { outputs, inputs },
            changed,
            interrupt_enabled: interrupt_enabled == 1,
            filter: filter == 1,
        };
        let moved = state.lines != before;
        drop(state);
        if moved {
            self.notify();
        }
        Ok(())
    }

    /// The inputs are the outside's, and stay.
    pub(super) fn reset(&self) {
        let mut state = self.lock_for_guest();
        let before = state.lines;
        *state = State::new(before.inputs);
        self.drive(&state);
        let moved = state.lines != before;
        drop(state);
        if moved {
            self.notify();
        }
    }
}

impl InputSource for Lines {
    fn current(&self) -> Option<Vec<u8>> {
        Some(self.snapshot().inputs.to_le_bytes().to_vec())
    }

    fn replay(&self, input: &[u8], place: InputPlace) {
        match (place, input.try_into()) {
            // Never recorded: inputs are set between calls, and the state is locked now.
            (InputPlace::Within(_), _) | (_, Err(_)) => {}
            (_, Ok(inputs)) => self.set_inputs(u16::MAX, u16::from_le_bytes(inputs)),
        }
    }
}

/// An observer is called while this lives; see [`Lines::on_change`].
#[derive(Debug)]
#[must_use = "dropping it ends the subscription"]
pub struct Subscription {
    lines: Weak<Lines>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(lines) = self.lines.upgrade() {
            lines.forget_observer(self.id);
        }
    }
}
