//! A registered device: what the core knows of it, and how the core calls it.

use std::any::{Any, TypeId};
use std::sync::Arc;
use std::time::Duration;

use vfiod_quota::Lines;
use vfiod_tasks::Waiters;

use crate::contain::{Panicked, contain};
use crate::context::{Context, DataPath, Home};
use crate::device::{Description, Device, ResetCause, Token};
use crate::dma::Attachment;
use crate::environment::Environment;
use crate::error::{Errno, Error, Result};
use crate::event::{Event, Subject};
use crate::file_state::FileShared;
use crate::held;
use crate::ids::{DeviceId, Owner, SetKey};
use crate::irq::IrqBatch;
use crate::opening::Last;
use crate::policy::{OpenPolicy, Retained, StatePolicy};
use crate::report::SharedReport;
use crate::set::{self, SetDevice};
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::sync::{self, Condvar, FairGuard, FairMutex, Mutex, lock};
use crate::timeout::Timeout;
use crate::work::{Rings, Task};

/// The error state.
const FAILED: u8 = 1;
/// The device is stopped: for a reset of its set or of itself, or while it is closed or saved.
pub(crate) const STOPPED: u8 = 2;
/// It is stopped for a reset that it asked for itself; goes with [`STOPPED`].
pub(crate) const BY_FUNCTION: u8 = 4;

/// How long an access waits while its device is stopped: clients give up after five seconds, and
/// do not repeat an access that failed.
const ACCESS_WAIT: Duration = Duration::from_secs(1);
/// How long an access to configuration space waits for a function-level reset.
const FUNCTION_RESET: Duration = Duration::from_millis(100);

/// Why an operation fails at once: it would wait for its own thread.
pub(crate) const BY_THIS_THREAD: &str = " by the calling thread, further down its stack";

/// How often a thread yields to one that sends interrupts before it sleeps.
const SHORT: u32 = 50;

/// The time between two looks at something that takes long.
const PAUSE: Duration = Duration::from_millis(1);

/// The device behind its lock; `None` once it has been unregistered.
pub(crate) type Model = Option<Box<dyn Device>>;

/// The set of a device; [`set`] knows no devices.
pub(crate) type Set = set::Set<Registered>;
pub(crate) type Member = set::Member<Registered>;
pub(crate) type SetGuard<'a> = set::SetGuard<'a, Registered>;
pub(crate) type Transition<'a> = set::Transition<'a, Registered>;

/// A device that is, or was, registered.
pub(crate) struct Registered {
    pub(crate) environment: Arc<Environment>,
    pub(crate) context: Context,
    /// Not in the context, which it can keep.
    pub(crate) data_path: Option<Arc<dyn DataPath>>,
    /// Not in the context, either. `None` once it is unregistered: it may keep what the device has.
    pub(crate) report: Mutex<Option<SharedReport>>,
    pub(crate) description: Description,
    /// The type of the device in `model`.
    pub(crate) device_type: TypeId,
    pub(crate) open_policy: OpenPolicy,
    pub(crate) state_policy: StatePolicy,
    /// Whose state the device has.
    pub(crate) retained: Mutex<Retained>,
    /// Lines of the log about that: users can take turns as fast as they like.
    pub(crate) users: Lines,
    pub(crate) location: Option<String>,
    pub(crate) token: Option<Token>,
    pub(crate) set: Arc<Set>,
    /// The member's place in its set.
    pub(crate) slot: usize,
    /// What accesses must not pass: [`FAILED`], [`STOPPED`], [`BY_FUNCTION`]. Accesses check it with
    /// the device lock held, so a thread that has set it and then held that lock knows that no
    /// access is running.
    pub(crate) barred: AtomicU8,
    pub(crate) model: FairMutex<Model>,
    /// Calls that have ended and whose interrupts are being sent. Counted up with the device lock
    /// held.
    pub(crate) sending: AtomicU32,
    /// Why the device is in the error state, for messages.
    pub(crate) failure: Mutex<Option<String>>,
    /// How often clients have changed what they have set up. A flat image goes with the text that
    /// has the same number.
    pub(crate) setup: AtomicU64,
    /// Those who wait for the end of a stop, without the device lock, which the stop itself needs.
    pub(crate) resumed: Waiters,
    /// Signalled when a device that is being unregistered has released its last file; used with the
    /// set lock.
    pub(crate) drained: Condvar,
}

impl Registered {
    pub(crate) fn id(&self) -> DeviceId {
        self.context.id()
    }

    pub(crate) fn name(&self) -> &str {
        self.context.name()
    }

    pub(crate) fn set_key(&self) -> SetKey {
        self.set.number().map_or(SetKey::Own(self.id()), SetKey::Shared)
    }

    /// Counts a change of what clients have set up: files, eventfds, mappings, the attachment.
    pub(crate) fn set_up(&self) {
        self.setup.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_name(&self) -> &str {
        self.set.name(self.name())
    }

    /// Emits an event to the observer, if there is one.
    pub(crate) fn emit<'a>(&'a self, event: impl FnOnce(Subject<'a>) -> Event<'a>) {
        self.emit_numbered(self.environment.next_event(), event);
    }

    /// Emits an event whose number was taken before, to stand before events that can be caused by what
    /// has been done since. The observer waits for it: nothing that can block may be between.
    pub(crate) fn emit_numbered<'a>(
        &'a self,
        number: u64,
        event: impl FnOnce(Subject<'a>) -> Event<'a>,
    ) {
        let Some(observer) = &self.environment.observer else { return };
        let (device, name, set) = (self.id(), self.name(), self.set_name());
        let subject = Subject { number, device, name, set };
        let event = event(subject);
        if let Err(panic) = contain(|| observer.event(&event)) {
            tracing::error!(device = self.name(), error = %panic, "the observer failed");
        }
    }

    /// Calls the device with its lock held, also in the error state. While the device is stopped it
    /// waits, without limit. `EBUSY`: the calling thread itself has stopped it, or holds something else
    /// and would wait for longer than [`set::WAIT`].
    pub(crate) fn call<R>(&self, call: impl FnOnce(&mut dyn Device) -> Result<R>) -> Result<R> {
        loop {
            if self.is_stopped() {
                if self.is_stopped_here() {
                    return Err(self.is_being_reset());
                }
                let resumed = || (!self.is_stopped()).then_some(());
                if !held::holds_any() {
                    self.context.runtime().wait_until(None, &self.resumed, resumed);
                } else if self.await_end_of_stop(&mut Timeout::new(set::WAIT), resumed).is_none() {
                    return Err(self.is_being_reset());
                }
            }
            let model = self.model.lock();
            if !self.is_stopped() {
                return self.call_locked(model, call);
            }
        }
    }

    /// Calls the device as [`Registered::call`] does, but waits no longer than `timeout` until it is not
    /// stopped and no other call is running; `None` if that takes longer.
    pub(crate) fn call_within<R>(
        &self,
        timeout: &mut Timeout,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Option<Result<R>> {
        // In a model no time passes, and only a deadlock is too long.
        if cfg!(any(loom, shuttle)) {
            return Some(self.call(call));
        }
        if self.is_stopped_here() {
            return Some(Err(self.is_being_reset()));
        }
        loop {
            self.await_end_of_stop(timeout, || (!self.is_stopped()).then_some(()))?;
            let left = timeout.left();
            match self.model.try_lock_for(left.unwrap_or_default()) {
                Some(model) if !self.is_stopped() => return Some(self.call_locked(model, call)),
                _ => left?,
            };
        }
    }

    /// Calls the device, which the caller has stopped.
    pub(crate) fn call_stopped<R>(
        &self,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        self.call_locked(self.model.lock(), call)
    }

    /// Calls the device, whatever its state.
    fn call_locked<R>(
        &self,
        model: FairGuard<'_, Model>,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        let outcome = self.end_with_interrupts(model, |device| call(device))?;
        outcome.unwrap_or_else(|panic| Err(self.has_panicked(panic)))
    }

    /// Calls the device for a file. While the device is stopped it waits, at most [`ACCESS_WAIT`].
    ///
    /// # Errors
    /// `ENODEV`: the file was revoked; `EIO`: the device is in the error state, or panicked;
    /// `EBUSY`: it is stopped for too long; what `call` returns.
    #[inline]
    pub(crate) fn access<R>(
        self: &Arc<Self>,
        file: &FileShared,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        // With the lock held: a revoke calls `release` under this lock afterwards, so no access can
        // follow a release.
        let model = self.enter(file)?;
        self.access_locked(model, file, call)
    }

    /// As [`Registered::access`], for a region. While a reset runs that the device itself asked for,
    /// it waits [`FUNCTION_RESET`] if `waits`, else not at all, and then returns `None`.
    #[inline]
    pub(crate) fn access_region<R>(
        self: &Arc<Self>,
        file: &FileShared,
        waits: bool,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<Option<R>> {
        let model = loop {
            if self.is_stopped() {
                if self.is_resetting_itself() {
                    if !self.await_function_reset(file, waits)? {
                        return Ok(None);
                    }
                } else {
                    self.await_resume(file)?;
                }
            }
            let model = self.model.lock();
            if !self.is_stopped() {
                break model;
            }
        };
        self.access_locked(model, file, call).map(Some)
    }

    #[inline]
    fn access_locked<R>(
        self: &Arc<Self>,
        model: FairGuard<'_, Model>,
        file: &FileShared,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        self.may_access(file)?;
        let outcome = self.end_with_interrupts(model, |device| call(device))?;
        if self.context.reset_requested() {
            self.function_reset_if_requested();
        }
        match outcome {
            Ok(result) => result,
            Err(panic) => Err(self.has_panicked(panic)),
        }
    }

    /// Calls the device, whose lock is held, and ends the call: a panic puts the device into the
    /// error state, the lock is dropped, and the interrupts that the call has raised are sent, in
    /// their order. What a call that panics has raised stays pending.
    ///
    /// # Errors
    /// `ENODEV`: the device has been unregistered.
    #[inline]
    pub(crate) fn end_with_interrupts<R>(
        &self,
        mut model: FairGuard<'_, Model>,
        call: impl FnOnce(&mut dyn Device) -> R,
    ) -> Result<std::result::Result<R, Panicked>> {
        let Some(device) = model.as_deref_mut() else { return Err(self.is_gone()) };
        let (outcome, mut raised) = IrqBatch::collect(|| contain(|| call(device)));
        if let Err(panic) = &outcome {
            // Before the lock is dropped, so that no call sees what this one left behind.
            self.fail(&panic.to_string());
            raised.discard();
        }
        // The call has ended: this is the place to commit what it changed.
        if raised.is_empty() {
            return Ok(outcome);
        }
        self.sending.fetch_add(1, Ordering::Relaxed);
        drop(model);
        raised.send();
        // Whoever sees this sees the signals.
        self.sending.fetch_sub(1, Ordering::Release);
        Ok(outcome)
    }

    /// Waits until the interrupts of calls that have ended are sent: a few milliseconds, if a client
    /// blocks a signal. With the device lock held no other call ends meanwhile.
    pub(crate) fn await_interrupts(&self) {
        let mut waited = 0;
        while self.sending.load(Ordering::Acquire) > 0 {
            waited += 1;
            if waited < SHORT { sync::thread::yield_now() } else { pause() }
        }
    }

    /// Takes the device lock for a file, when the device is not stopped.
    #[inline]
    fn enter(&self, file: &FileShared) -> Result<FairGuard<'_, Model>> {
        loop {
            if self.is_stopped() {
                self.await_resume(file)?;
            }
            let model = self.model.lock();
            if !self.is_stopped() {
                return Ok(model);
            }
        }
    }

    /// Waits for the end of a reset that the device itself asked for; returns `false` if it takes
    /// longer than allowed.
    /// PCI Express 6.6.2: a function may need 100 ms for a function-level reset.
    #[cold]
    fn await_function_reset(&self, file: &FileShared, waits: bool) -> Result<bool> {
        let mut timeout = Timeout::new(if waits { FUNCTION_RESET } else { Duration::ZERO });
        let over = || (!self.is_resetting_itself() || !file.is_open()).then_some(());
        let is_over = self.await_end_of_stop(&mut timeout, over).is_some();
        if file.is_open() { Ok(is_over) } else { Err(self.is_gone()) }
    }

    /// Waits until the device is not stopped any more. `EBUSY`: that takes longer than
    /// [`ACCESS_WAIT`]; `ENODEV`: the file was revoked.
    #[cold]
    fn await_resume(&self, file: &FileShared) -> Result<()> {
        let over = || (!self.is_stopped() || !file.is_open()).then_some(());
        if self.await_end_of_stop(&mut Timeout::new(ACCESS_WAIT), over).is_none() {
            return Err(self.is_being_reset());
        }
        if file.is_open() { Ok(()) } else { Err(self.is_gone()) }
    }

    /// Blocks until `condition` returns something, which is asked again when a stop of the device
    /// ends; `None` when the time is up. If the runtime has no workers the thread runs tasks
    /// meanwhile, because a task may be what has stopped the device. The thread holds no lock. `None`
    /// at once if the thread itself has stopped the device.
    pub(crate) fn await_end_of_stop<T>(
        &self,
        timeout: &mut Timeout,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(done) = condition() {
            return Some(done);
        }
        if self.is_stopped_here() {
            return None;
        }
        #[cfg(not(any(loom, shuttle)))]
        return self.context.runtime().wait_until_system_time(
            timeout.deadline(),
            &self.resumed,
            condition,
        );
        // In a model no time passes.
        #[cfg(any(loom, shuttle))]
        loop {
            timeout.left()?;
            sync::thread::yield_now();
            if let Some(done) = condition() {
                return Some(done);
            }
        }
    }

    /// Checks whether a file may use the device, for an access that does not call it. Waits and
    /// fails as [`Registered::access`] does.
    #[inline]
    pub(crate) fn admit(&self, file: &FileShared) -> Result<()> {
        if self.is_stopped() {
            self.await_resume(file)?;
        }
        self.may_access(file)
    }

    /// Checks that a file is open (`ENODEV`) and its device not in the error state (`EIO`).
    #[inline]
    pub(crate) fn may_access(&self, file: &FileShared) -> Result<()> {
        if !file.is_open() {
            return Err(self.is_gone());
        }
        if self.is_in_error_state() { Err(self.has_failed()) } else { Ok(()) }
    }

    /// Resets the device: for a file, waiting while the device is stopped, unless the file was
    /// revoked; without a file the caller has stopped the device or marked its set. A failure puts
    /// the device into the error state, success takes it out.
    pub(crate) fn reset(&self, cause: ResetCause, file: Option<&FileShared>) -> Result<()> {
        self.reset_quietly(cause, file)?;
        tracing::debug!(device = self.name(), cause = cause.name(), "reset");
        self.emit(|subject| Event::Reset { subject, cause });
        Ok(())
    }

    /// Resets the device as [`Registered::reset`], but emits an event only if it fails.
    pub(crate) fn reset_quietly(&self, cause: ResetCause, file: Option<&FileShared>) -> Result<()> {
        let model = match file {
            Some(file) => self.enter(file)?,
            None => self.model.lock(),
        };
        if file.is_some_and(|file| !file.is_open()) {
            return Err(self.is_gone());
        }
        self.await_interrupts();
        // The outer result reports a panic, which `call_locked` has handled.
        let outcome = self.call_locked(model, |device| {
            self.context.irqs().reset();
            let result = self.context.openings().clear().and_then(|()| device.reset(cause));
            let failed_before = self.is_in_error_state();
            if result.is_ok() {
                self.barred.fetch_and(!FAILED, Ordering::Relaxed);
                lock(&self.failure).take();
                self.forget_restored_state();
            } else if let Err(error) = &result {
                self.fail(&format!("its reset failed: {error}"));
            }
            Ok(result.map_err(|error| (error, failed_before)))
        })?;
        outcome.map_err(|(error, failed_before)| {
            tracing::debug!(device = self.name(), cause = cause.name(), %error, "reset failed");
            if !failed_before {
                self.emit(Event::Failed);
            }
            error
        })
    }

    /// First open: begins an opening, resets the device unless its state is retained for this user,
    /// calls `open_device`, and starts its work.
    pub(crate) fn first_open(
        self: &Arc<Self>,
        opening: &Transition<'_>,
        user: &Owner,
    ) -> Result<()> {
        if self.is_stuck() {
            return Err(Error::new(Errno::BUSY, format!("stuck: {}", self.describe_work())));
        }
        self.context.openings().begin(user, self.last_memory());
        let opened = self.open_with_memory(user);
        if opened.is_err() {
            self.context.openings().end(self.last_memory());
        }
        opened?;
        opening.lock().device_opened();
        tracing::debug!(device = self.name(), "first open");
        self.emit(Event::DeviceOpened);
        Ok(())
    }

    fn open_with_memory(self: &Arc<Self>, user: &Owner) -> Result<()> {
        let retains = self.state_policy == StatePolicy::Retain;
        let restored = self.has_restored_state();
        let is_own = restored || retains && lock(&self.retained).is_for(user);
        if retains
            && !is_own
            && let Some(suppressed) = self.users.pass(0)
        {
            tracing::info!(
                device = self.name(), %user, suppressed,
                "the retained state is another user's: device reset"
            );
        }
        // Reset a failed device even if its state is retained: that state cannot be trusted.
        let rings = if !is_own || self.is_in_error_state() {
            self.reset(ResetCause::Open, None)?;
            Rings::Forget
        } else {
            Rings::RepeatAll
        };
        let is_users = || *lock(&self.retained) = Retained::User(user.clone());
        if retains && !restored {
            is_users();
        }
        self.call(|device| device.open_device())?;
        if restored {
            is_users();
        }
        self.start_work(rings);
        Ok(())
    }

    /// After a reset: the next user finds the device as the first one did.
    fn forget_restored_state(&self) {
        let mut retained = lock(&self.retained);
        if matches!(*retained, Retained::Next) {
            *retained = Retained::PowerOn;
        }
    }

    /// Whether the next first open is to find a state that was restored for it.
    pub(crate) fn has_restored_state(&self) -> bool {
        matches!(*lock(&self.retained), Retained::Next)
    }

    /// What happens to the memory that the device shares when it is closed.
    pub(crate) fn last_memory(&self) -> Last {
        match self.state_policy {
            StatePolicy::Reset if self.has_restored_state() => Last::Kept,
            StatePolicy::Reset => Last::Forgotten,
            StatePolicy::Retain => Last::Kept,
        }
    }

    /// Last close: the device quiesces; `close_device`; then the reset of the set's failed members
    /// if none is open.
    pub(crate) fn last_close(self: &Arc<Self>, closing: &Transition<'_>) {
        let stop = self.stop_for_close();
        let closed = self.call_stopped(|device| {
            device.close_device();
            Ok(())
        });
        if let Err(error) = closed {
            tracing::debug!(device = self.name(), %error, "close_device failed");
        }
        if let Some(stop) = stop {
            stop.leave_closed();
        }
        self.context.openings().end(self.last_memory());
        self.context.input_log().stop_recording();
        self.context.renew_own_space();
        self.context.set_payer(None);
        let failed = {
            let mut guard = closing.lock();
            guard.device_closed();
            tracing::debug!(device = self.name(), "last close");
            self.emit(Event::DeviceClosed);
            if self.is_in_error_state() {
                guard.needs_reset(self);
            }
            guard.take_resets()
        };
        for member in failed {
            if member.is_stuck() {
                closing.lock().needs_reset(&member);
                continue;
            }
            // If this fails, the member stays in the error state. Its next first open tries again,
            // and so does the next last close in the set.
            if member.reset(ResetCause::Set, None).is_err() {
                closing.lock().needs_reset(&member);
            }
        }
    }

    pub(crate) fn is_in_error_state(&self) -> bool {
        self.barred.load(Ordering::Relaxed) & FAILED != 0
    }

    /// Puts the device into the error state. `why` is for messages.
    pub(crate) fn fail(&self, why: &str) {
        if self.barred.fetch_or(FAILED, Ordering::Relaxed) & FAILED == 0 {
            *lock(&self.failure) = Some(why.to_owned());
        }
    }

    fn is_resetting_itself(&self) -> bool {
        self.barred.load(Ordering::Acquire) & BY_FUNCTION != 0
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.barred.load(Ordering::Acquire) & STOPPED != 0
    }

    /// Whether clients can map parts of the device.
    pub(crate) fn shares_memory(&self) -> bool {
        self.description.regions.iter().any(|region| !region.shared.is_empty())
    }

    #[cold]
    pub(crate) fn is_being_reset(&self) -> Error {
        let by = if self.is_stopped_here() { BY_THIS_THREAD } else { "" };
        Error::new(Errno::BUSY, format!("{} is being reset{by}", self.name()))
    }

    #[cold]
    fn has_panicked(&self, panic: Panicked) -> Error {
        tracing::error!(device = self.name(), error = %panic, "the device is in the error state");
        self.emit(Event::Failed);
        Error::new(Errno::IO, format!("{} failed and is in the error state", self.name()))
            .because(panic)
    }

    #[cold]
    pub(crate) fn has_failed(&self) -> Error {
        Error::new(Errno::IO, format!("{} is in the error state until it is reset", self.name()))
    }

    #[cold]
    pub(crate) fn is_gone(&self) -> Error {
        Error::new(Errno::NODEV, format!("{}: this file was revoked or closed", self.name()))
    }
}

impl SetDevice for Registered {
    fn set(&self) -> &Set {
        &self.set
    }

    fn slot(&self) -> usize {
        self.slot
    }

    fn needs_reset(&self) -> bool {
        self.is_in_error_state()
    }
}

impl Home for Registered {
    fn step(&self, task: &Task, step: &mut dyn FnMut(&mut dyn Any)) -> bool {
        let model = self.model.lock();
        // With the lock held: a thread that closes the gate by cancelling holds it, too.
        if !task.may_step() {
            return false;
        }
        match self.end_with_interrupts(model, |device| step(device)) {
            Err(_) => false,
            Ok(Ok(())) => {
                task.count_step();
                true
            }
            // Ends the task; the runtime then calls `task_panicked`.
            Ok(Err(panic)) => std::panic::resume_unwind(Box::new(panic.to_string())),
        }
    }

    fn task_panicked(&self, task: &str, panic: Panicked) {
        self.fail(&format!("task {task}: {panic}"));
        tracing::error!(
            device = self.name(), task, error = %panic, "the device is in the error state"
        );
        self.emit(Event::Failed);
    }

    fn reset_if_requested(self: Arc<Self>) {
        self.function_reset_if_requested();
    }

    fn deliver_rings(self: Arc<Self>) {
        self.deliver_pending_rings();
    }

    fn look_at_doorbells(self: Arc<Self>, look: &dyn Fn(&Attachment)) {
        self.look(look);
    }
}

pub(crate) fn pause() {
    if cfg!(any(loom, shuttle)) {
        sync::thread::yield_now();
    } else {
        std::thread::sleep(PAUSE);
    }
}
