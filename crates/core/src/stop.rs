//! Stopping a device: calls are kept out, the device is asked to quiesce, and what it does beside
//! its calls is waited for, with no lock held.
//!
//! ```text
//!             stop()                 quiesce(why)                  idle
//!   running ─────────► calls wait ────────────────► quiescing ────────────► quiesced
//!      ▲                   │                            │                      │
//!      │                   │   over the bound: what can │ be abandoned         │ reset, save, …
//!      └───────────────────┴────────────────────────────┴──────────────────────┘
//!                   reopen the gate, resume(), let calls in: `Stop` is dropped
//! ```
//!
//! One thread stops a device at a time: others wait for it, bounded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contain::contain;
use crate::device::{Quiesce, ResetCause, Why};
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file::FileShared;
use crate::registered::{BY_FUNCTION, Registered, STOPPED};
use crate::sync::atomic::Ordering;
use crate::sync::{self, lock, try_lock};
use crate::timeout::Timeout;
use crate::work::{Close, Rings};

/// How long a stop waits in all: for another stop, for a call that is inside, and for the device
/// to quiesce. A request of a client has four seconds, and no single wait more than two of them.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// How long one attempt to get the device lock of a device that is being stopped is apart from
/// the next.
const PAUSE: Duration = Duration::from_millis(1);

/// A device that is stopped: no call of a client is inside or comes in. Calls come in again when
/// this is dropped.
pub(crate) struct Stop {
    device: Arc<Registered>,
    /// What happens to the device's doorbells then; `None` if it was never quiesced.
    resume: Option<Rings>,
}

impl Stop {
    /// Stops a device: keeps calls out, and waits until none is inside.
    ///
    /// # Errors
    /// `EBUSY`: another stop, or a call, takes longer than until `deadline`.
    pub(crate) fn begin(device: &Arc<Registered>, timeout: &mut Timeout) -> Result<Self> {
        let stop = Self::claim(device, timeout)?;
        stop.await_calls(timeout)?;
        Ok(stop)
    }

    /// Keeps calls out. Some may still be inside: [`Stop::await_calls`].
    pub(crate) fn claim(device: &Arc<Registered>, timeout: &mut Timeout) -> Result<Self> {
        let mut entrance = lock(&device.entrance);
        while !device.try_stop() {
            let Some(time) = timeout.left() else {
                let what = format!("{} is being reset or closed", device.name());
                return Err(Error::new(Errno::BUSY, what));
            };
            entrance = sync::wait(&device.resumed, &device.entrance, entrance, time);
        }
        drop(entrance);
        Ok(Self { device: device.clone(), resume: None })
    }

    /// The stop of a device that [`Registered::try_stop`] has stopped.
    pub(crate) fn claimed(device: Arc<Registered>) -> Self {
        Self { device, resume: None }
    }

    /// Waits until no call is inside.
    pub(crate) fn await_calls(&self, timeout: &mut Timeout) -> Result<()> {
        while try_lock(&self.device.model).is_none() {
            if timeout.left().is_none() {
                let what = format!("a call of {} is still running", self.device.name());
                return Err(Error::new(Errno::BUSY, what));
            }
            pause();
        }
        Ok(())
    }

    /// Asks the device to quiesce; [`Stop::is_idle`] and [`Stop::await_idle`] tell when it has.
    /// Takes the device lock.
    ///
    /// # Errors
    /// `EIO`: the device panicked, or said that it had quiesced while a task of it ran. It is in
    /// the error state, and its tasks are cancelled.
    pub(crate) fn ask(&mut self, why: Why) -> Result<()> {
        self.resume = Some(if why.ends() { Rings::Forget } else { Rings::Repeat });
        let mut model = lock(&self.device.model);
        let Some(device) = model.as_deref_mut() else { return Ok(()) };
        let work = self.device.context.work();
        let Some(worker) = device.as_worker() else {
            work.close(Close::Cancel);
            return Ok(());
        };
        let wrong = match contain(|| worker.quiesce(why)) {
            Ok(Quiesce::Cancel) => {
                work.close(Close::Cancel);
                return Ok(());
            }
            Ok(Quiesce::Finish) => {
                work.close(Close::Finish);
                return Ok(());
            }
            Ok(Quiesce::Done) => {
                let running = work.list().first().map(|task| task.name.clone());
                work.close(Close::Cancel);
                let Some(task) = running else { return Ok(()) };
                format!("said that it had quiesced while task {task} was running")
            }
            Err(panic) => {
                work.close(Close::Cancel);
                format!("quiesce failed: {panic}")
            }
        };
        self.device.fail(&wrong);
        drop(model);
        tracing::error!(device = self.device.name(), "the device is in the error state: {wrong}");
        self.device.emit(Event::Failed);
        Err(Error::new(Errno::IO, format!("{} {wrong}", self.device.name())))
    }

    /// Whether nothing of the device works any more.
    pub(crate) fn is_idle(&self) -> bool {
        self.device.context.is_idle()
    }

    /// Waits until nothing of the device works any more. The thread runs tasks meanwhile if the
    /// runtime has no workers. It must hold no lock.
    ///
    /// # Errors
    /// `EBUSY`: that takes longer than until `deadline`.
    pub(crate) fn await_idle(&self, deadline: Instant) -> Result<()> {
        if self.is_idle() || self.device.context.wait_idle(&self.device.registry.runtime, deadline)
        {
            return Ok(());
        }
        Err(Error::new(Errno::BUSY, self.device.describe_work()))
    }

    /// Stops a device, asks it to quiesce for something that can be abandoned, and waits.
    ///
    /// # Errors
    /// `EBUSY`: it takes longer than [`LIMIT`], and goes on; `EIO` as [`Stop::ask`].
    pub(crate) fn quiesced(device: &Arc<Registered>, why: Why) -> Result<Self> {
        let deadline = device.registry.runtime.now() + LIMIT;
        let mut stop = Self::begin(device, &mut Timeout::new(LIMIT))?;
        stop.ask(why)?;
        stop.await_idle(deadline)?;
        Ok(stop)
    }

    /// What happens to doorbells that were rung before this ends.
    pub(crate) fn forget_rings(&mut self) {
        self.resume = Some(Rings::Forget);
    }

    /// Leaves the device closed: its gate stays shut until the next first open.
    pub(crate) fn leave_closed(mut self) {
        self.resume = None;
    }

    pub(crate) fn device(&self) -> &Arc<Registered> {
        &self.device
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        if let Some(rings) = self.resume.take() {
            self.device.start_work(rings);
        }
        self.device.let_calls_in();
    }
}

impl Registered {
    /// DEVICE_RESET: stops the device, resets it, and lets it go on.
    pub(crate) fn stop_and_reset(self: &Arc<Self>, file: &FileShared) -> Result<()> {
        let deadline = self.registry.runtime.now() + LIMIT;
        let mut stop = Stop::begin(self, &mut Timeout::new(LIMIT))?;
        if !file.is_open() {
            return Err(self.is_gone());
        }
        stop.ask(Why::Reset)?;
        if let Err(error) = stop.await_idle(deadline) {
            self.become_stuck(stop);
            return Err(Error::new(Errno::IO, format!("the reset is stuck: {error}")));
        }
        self.reset(ResetCause::Client, None)
    }

    /// Stops the device before its last close: it has no files, so that no call is inside. Of one
    /// that does not quiesce in time, what it still uses is kept until that ends.
    pub(crate) fn stop_for_close(self: &Arc<Self>) -> Option<Stop> {
        if !self.works() {
            return None;
        }
        let deadline = self.registry.runtime.now() + LIMIT;
        let mut stop = Stop::begin(self, &mut Timeout::new(LIMIT)).ok()?;
        // What it did wrong has been logged; its tasks are cancelled all the same.
        let _ = stop.ask(Why::Close);
        match stop.await_idle(deadline) {
            Ok(()) => Some(stop),
            Err(_) => {
                self.become_stuck(stop);
                None
            }
        }
    }

    /// Whether the device works, or may work, beside its calls.
    pub(crate) fn works(&self) -> bool {
        self.context.works()
    }

    /// Keeps calls out, unless somebody else does already.
    pub(crate) fn try_stop(&self) -> bool {
        self.barred.fetch_or(STOPPED, Ordering::AcqRel) & STOPPED == 0
    }

    /// Opens the gate of a device's work, and lets it start what its state says is under way.
    pub(crate) fn start_work(&self, rings: Rings) {
        if !self.works() {
            return;
        }
        let mut model = lock(&self.model);
        let Some(device) = model.as_deref_mut() else { return };
        if self.is_stuck() {
            return;
        }
        self.context.work().reopen(rings);
        if let Some(worker) = device.as_worker()
            && let Err(panic) = contain(|| worker.resume())
        {
            tracing::error!(device = self.name(), error = %panic, "resume failed");
            self.fail("a panic in resume");
        }
        drop(model);
        self.context.deliver_rings();
    }

    /// Lets calls in again. A reset that was asked for meanwhile is done first.
    pub(crate) fn let_calls_in(self: &Arc<Self>) {
        let entrance = lock(&self.entrance);
        self.context.dma().halt(false);
        // Along with what the resets did to memory that is read without the device lock.
        self.barred.fetch_and(!(STOPPED | BY_FUNCTION), Ordering::Release);
        drop(entrance);
        self.resumed.notify_all();
        self.function_reset_if_requested();
    }

    /// What still works, for a message.
    pub(crate) fn describe_work(&self) -> String {
        let tasks = self.context.work().list();
        let holds = self.context.dma_in_flight();
        match tasks.first() {
            Some(task) => format!("task {} of {} is still running", task.name, self.name()),
            None => format!("{} has {holds} accesses to guest memory in flight", self.name()),
        }
    }

    /// After a call: does the reset that the device has asked for in it. Called without the device
    /// lock.
    ///
    /// A device without work is reset right here. Otherwise the write that asked is answered at
    /// once, and the reset happens when the device has quiesced.
    pub(crate) fn function_reset_if_requested(self: &Arc<Self>) {
        if !self.context.reset_requested() || !self.try_stop() {
            // Whoever stops the device looks again when it lets calls in.
            return;
        }
        if !self.context.take_reset_request() {
            return self.let_calls_in();
        }
        self.barred.fetch_or(BY_FUNCTION, Ordering::Relaxed);
        let mut stop = Stop::claimed(self.clone());
        if stop.ask(Why::Reset).is_err() {
            return;
        }
        if stop.is_idle() {
            return finish_function_reset(stop);
        }
        let (runtime, context) = (self.registry.runtime.clone(), self.context.clone());
        let timeout = runtime.clone();
        runtime
            .spawn(async move {
                let idle = timeout.timeout(LIMIT, context.idle()).await;
                match idle {
                    Ok(()) => finish_function_reset(stop),
                    Err(_) => stop.device().clone().become_stuck(stop),
                }
            })
            .detach();
    }

    /// The device did not quiesce in time where it has to: it is in the error state, and cannot be
    /// opened or reset before what it does has ended.
    pub(crate) fn become_stuck(&self, mut stop: Stop) {
        let what = self.describe_work();
        tracing::error!(device = self.name(), "stuck: {what}");
        self.context.work().close(Close::Cancel);
        self.fail(&format!("stuck: {what}"));
        stop.resume = None;
    }

    /// Whether the device was stopped and something of it still works.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_in_error_state()
            && self.works()
            && !self.context.is_idle()
            && self.context.work().state() != crate::work::GateState::Open
    }
}

fn finish_function_reset(mut stop: Stop) {
    let device = stop.device().clone();
    let reset = device.reset(ResetCause::Function, None);
    if let Err(error) = reset {
        tracing::debug!(device = device.name(), %error, "function-level reset failed");
    }
    stop.forget_rings();
}

pub(crate) fn pause() {
    if cfg!(any(loom, shuttle)) {
        sync::thread::yield_now();
    } else {
        std::thread::sleep(PAUSE);
    }
}
