//! What the core keeps of a registered device, and how it calls the device.

use std::sync::Arc;
use std::time::Duration;

use crate::contain::contain;
use crate::device::{Context, Description, Device, ResetCause, Token};
use crate::error::{Errno, Error, Result};
use crate::event::{Event, Subject};
use crate::file::FileShared;
use crate::ids::DeviceId;
use crate::registry::{OpenPolicy, RegistryInner, StatePolicy};
use crate::set::{Set, Transition};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{self, Condvar, Mutex, MutexGuard, lock};
use crate::timeout::Timeout;

/// The error state.
const FAILED: u8 = 1;
/// The set is being reset.
const STOPPED: u8 = 2;

/// How long an access waits while its set is being reset: clients give up after five seconds,
/// and take an error for good.
const ACCESS_WAIT: Duration = Duration::from_secs(1);

/// The device behind its lock; `None` once it has been unregistered.
pub(crate) type Model = Option<Box<dyn Device>>;

/// A device that is, or was, registered.
pub(crate) struct Registered {
    pub(crate) registry: Arc<RegistryInner>,
    pub(crate) context: Context,
    pub(crate) description: Description,
    pub(crate) open_policy: OpenPolicy,
    pub(crate) state_policy: StatePolicy,
    pub(crate) location: Option<String>,
    pub(crate) token: Option<Token>,
    pub(crate) set: Arc<Set>,
    /// The member's place in its set.
    pub(crate) slot: usize,
    /// What keeps accesses away: [`FAILED`], [`STOPPED`]. Looked at with the device lock held, so
    /// that whoever has set it and had that lock since knows that no access is inside.
    pub(crate) barred: AtomicU8,
    pub(crate) model: Mutex<Model>,
    /// For those who wait for the end of the set's reset without the device lock, which that
    /// itself needs. Held for no more than a look at [`STOPPED`].
    pub(crate) entrance: Mutex<()>,
    /// Signalled when the set's reset is over; goes with `entrance`.
    pub(crate) resumed: Condvar,
    /// Signalled when the last file of a leaving device is gone; goes with the set lock.
    pub(crate) drained: Condvar,
}

impl Registered {
    pub(crate) fn id(&self) -> DeviceId {
        self.context.id()
    }

    pub(crate) fn name(&self) -> &str {
        self.context.name()
    }

    pub(crate) fn set_name(&self) -> &str {
        self.set.name(self.name())
    }

    /// Tells the observer, if there is one.
    pub(crate) fn emit<'a>(&'a self, event: impl FnOnce(Subject<'a>) -> Event<'a>) {
        let Some(observer) = &self.registry.observer else { return };
        let subject = Subject { device: self.id(), name: self.name(), set: self.set_name() };
        let event = event(subject);
        if let Err(panic) = contain(|| observer.event(&event)) {
            tracing::error!(device = self.name(), error = %panic, "the observer failed");
        }
    }

    /// Calls the device with its lock held, in the error state as well. While the set is being
    /// reset it waits for the end of that, however long it takes.
    pub(crate) fn call<R>(&self, call: impl FnOnce(&mut dyn Device) -> Result<R>) -> Result<R> {
        loop {
            let mut entrance = lock(&self.entrance);
            while self.is_stopped() {
                entrance = sync::wait(&self.resumed, &self.entrance, entrance, Duration::MAX);
            }
            drop(entrance);
            let model = lock(&self.model);
            if !self.is_stopped() {
                return self.call_locked(model, call);
            }
        }
    }

    /// Calls the device, whatever its state.
    fn call_locked<R>(
        &self,
        mut model: MutexGuard<'_, Model>,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        let outcome = {
            let Some(device) = model.as_deref_mut() else { return Err(self.is_gone()) };
            let outcome = contain(|| call(device));
            if outcome.is_err() {
                self.fail();
            }
            drop(model);
            outcome
        };
        outcome.unwrap_or_else(|panic| Err(self.has_panicked(panic)))
    }

    /// Calls the device for a file: not if the file was taken away, not in the error state. While
    /// the set is being reset it waits for the end of that, for a time.
    #[inline]
    pub(crate) fn access<R>(
        &self,
        file: &FileShared,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        let outcome = {
            // With the lock held: whoever takes the file away calls `release` under this lock
            // afterwards, so no access can follow a release.
            let mut model = self.enter(file)?;
            self.may_access(file)?;
            let Some(device) = model.as_deref_mut() else { return Err(self.is_gone()) };
            let outcome = contain(|| call(device));
            if outcome.is_err() {
                self.fail();
            }
            outcome
        };
        match outcome {
            Ok(result) => result,
            Err(panic) => Err(self.has_panicked(panic)),
        }
    }

    /// Takes the device lock for a file, when the set is not being reset.
    #[inline]
    fn enter(&self, file: &FileShared) -> Result<MutexGuard<'_, Model>> {
        loop {
            if self.is_stopped() {
                self.await_resume(file)?;
            }
            let model = lock(&self.model);
            if !self.is_stopped() {
                return Ok(model);
            }
        }
    }

    /// Waits for the end of the set's reset, for a time: `EBUSY` then; `ENODEV`.
    #[cold]
    fn await_resume(&self, file: &FileShared) -> Result<()> {
        let mut timeout = Timeout::new(ACCESS_WAIT);
        let mut entrance = lock(&self.entrance);
        while self.is_stopped() && file.is_open() {
            let Some(time) = timeout.left() else { return Err(self.is_being_reset()) };
            entrance = sync::wait(&self.resumed, &self.entrance, entrance, time);
        }
        if file.is_open() { Ok(()) } else { Err(self.is_gone()) }
    }

    /// Whether an access for a file may go on, without the device: waits as
    /// [`Registered::access`] does.
    #[inline]
    pub(crate) fn admit(&self, file: &FileShared) -> Result<()> {
        if self.is_stopped() {
            self.await_resume(file)?;
        }
        self.may_access(file)
    }

    /// Whether an access for a file that does not have to wait may go on: `ENODEV`, `EIO`.
    #[inline]
    pub(crate) fn may_access(&self, file: &FileShared) -> Result<()> {
        if !file.is_open() {
            return Err(self.is_gone());
        }
        if self.is_in_error_state() { Err(self.has_failed()) } else { Ok(()) }
    }

    /// Resets the device: for a file, unless that was taken away, and not before the set's own
    /// reset is over; or with the set marked. In the error state after a failure, out of it
    /// after success.
    pub(crate) fn reset(&self, cause: ResetCause, file: Option<&FileShared>) -> Result<()> {
        self.reset_quietly(cause, file)?;
        tracing::debug!(device = self.name(), ?cause, "reset");
        self.emit(|subject| Event::Reset { subject, cause });
        Ok(())
    }

    /// Likewise, and tells nobody unless it fails.
    pub(crate) fn reset_quietly(&self, cause: ResetCause, file: Option<&FileShared>) -> Result<()> {
        let model = match file {
            Some(file) => self.enter(file)?,
            None => lock(&self.model),
        };
        if file.is_some_and(|file| !file.is_open()) {
            return Err(self.is_gone());
        }
        // The outer result tells of a panic, which has been dealt with.
        let outcome = self.call_locked(model, |device| {
            self.context.irqs().reset();
            let result = device.reset(cause);
            let failed_before = self.is_in_error_state();
            if result.is_ok() {
                self.barred.fetch_and(!FAILED, Ordering::Relaxed);
            } else {
                self.fail();
            }
            Ok(result.map_err(|error| (error, failed_before)))
        })?;
        outcome.map_err(|(error, failed_before)| {
            tracing::debug!(device = self.name(), ?cause, %error, "reset failed");
            if !failed_before {
                self.emit(Event::Failed);
            }
            error
        })
    }

    /// First open: reset where the state is not kept, then `open_device`.
    pub(crate) fn first_open(&self, opening: &Transition<'_>) -> Result<()> {
        // Reset a failed device even if its state is retained: that state cannot be trusted.
        if self.state_policy == StatePolicy::Reset || self.is_in_error_state() {
            self.reset(ResetCause::Open, None)?;
        }
        self.call(|device| device.open_device())?;
        opening.lock().device_opened();
        tracing::debug!(device = self.name(), "first open");
        self.emit(Event::DeviceOpened);
        Ok(())
    }

    /// Last close: `close_device`, then the reset of the set's failed members if none is open.
    pub(crate) fn last_close(&self, closing: &Transition<'_>) {
        let closed = self.call(|device| {
            device.close_device();
            Ok(())
        });
        if let Err(error) = closed {
            tracing::debug!(device = self.name(), %error, "close_device failed");
        }
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
            // It stays in the error state if this fails; its next first open tries again, and so
            // does the next time that the set falls idle.
            if member.reset(ResetCause::Set, None).is_err() {
                closing.lock().needs_reset(&member);
            }
        }
    }

    pub(crate) fn is_in_error_state(&self) -> bool {
        self.barred.load(Ordering::Relaxed) & FAILED != 0
    }

    pub(crate) fn fail(&self) {
        self.barred.fetch_or(FAILED, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.barred.load(Ordering::Acquire) & STOPPED != 0
    }

    /// Keeps every call away but the set's reset, until [`Registered::resume`]. A call that came in before goes on: it holds the device lock.
    pub(crate) fn stop(&self) {
        self.barred.fetch_or(STOPPED, Ordering::Relaxed);
    }

    /// Lets calls in again.
    pub(crate) fn resume(&self) {
        let entrance = lock(&self.entrance);
        self.context.dma().halt(false);
        // Along with what the resets did to memory that is read without the device lock.
        self.barred.fetch_and(!STOPPED, Ordering::Release);
        drop(entrance);
        self.resumed.notify_all();
    }

    /// Whether clients can map parts of the device.
    pub(crate) fn shares_memory(&self) -> bool {
        self.description.regions.iter().any(|region| region.shared.is_some())
    }

    #[cold]
    fn is_being_reset(&self) -> Error {
        Error::new(Errno::BUSY, format!("the set of {} is being reset", self.name()))
    }

    #[cold]
    fn has_panicked(&self, panic: crate::contain::Panicked) -> Error {
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
        Error::new(Errno::NODEV, format!("{} is no longer there for this file", self.name()))
    }
}
