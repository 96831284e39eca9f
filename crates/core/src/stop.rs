//! Stopping a device: calls wait, the device is asked to quiesce, and the core waits for its tasks
//! and its accesses to guest memory, with no lock held.
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
//! One thread stops a device at a time; others wait for it, for a limited time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contain::contain;
use crate::device::{Quiesce, ResetCause, Why};
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file_state::FileShared;
use crate::held::{self, Held};
use crate::registered::{BY_FUNCTION, Registered, STOPPED};
use crate::sync::atomic::Ordering;
use crate::timeout::Timeout;
use crate::work::{Close, Rings};

/// How long a stop waits in all: for another stop, for a call that is inside, and for the device
/// to quiesce. A request of a client has four seconds, and no single wait more than two of them.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// A device that is stopped: calls of clients wait. They run again when this is dropped.
pub(crate) struct Stop {
    device: Arc<Registered>,
    /// What happens to rings of doorbells when this is dropped; `None`: the gate is left as it is.
    resume: Option<Rings>,
    /// When the device was asked to quiesce, until it has.
    asked: Option<Instant>,
    /// The thread that has stopped the device; `None`: a task has.
    held: Option<Held>,
}

impl Stop {
    /// Stops a device: makes calls wait, and waits until none is running.
    ///
    /// # Errors
    /// `EBUSY`: another stop, or a call, does not end within `timeout`.
    pub(crate) fn begin(device: &Arc<Registered>, timeout: &mut Timeout) -> Result<Self> {
        let stop = Self::claim(device, timeout)?;
        stop.await_calls(timeout)?;
        Ok(stop)
    }

    /// Makes calls wait. Some may still be running: [`Stop::await_calls`]. The stop ends in the
    /// calling thread.
    pub(crate) fn claim(device: &Arc<Registered>, timeout: &mut Timeout) -> Result<Self> {
        let claim = || device.try_stop().then_some(());
        if device.await_end_of_stop(timeout, claim).is_none() {
            let what = format!("{} is being reset or closed", device.name());
            return Err(Error::new(Errno::BUSY, what));
        }
        let held = Some(Held::new(&**device));
        Ok(Self { device: device.clone(), resume: None, asked: None, held })
    }

    /// The stop of a device that [`Registered::try_stop`] has stopped.
    pub(crate) fn claimed(device: Arc<Registered>) -> Self {
        Self { device, resume: None, asked: None, held: None }
    }

    /// Waits until no call is running. `EBUSY`: that takes longer than `timeout`.
    pub(crate) fn await_calls(&self, timeout: &mut Timeout) -> Result<()> {
        let mut left = Some(Duration::ZERO);
        while self.device.model.try_lock_for(left.unwrap_or_default()).is_none() {
            left = timeout.left();
            if left.is_none() {
                let what = format!("a call of {} is still running", self.device.name());
                return Err(Error::new(Errno::BUSY, what));
            }
        }
        // Their interrupts are sent after they have dropped the lock.
        self.device.await_interrupts();
        Ok(())
    }

    /// Asks the device to quiesce, and closes its gate; [`Stop::await_idle`] waits for the rest.
    /// Takes the device lock.
    ///
    /// # Errors
    /// `EIO`: the device panicked, or returned [`Quiesce::Done`] while a task of it ran. It is in
    /// the error state, and its tasks are cancelled.
    pub(crate) fn ask(&mut self, why: Why) -> Result<()> {
        self.asked = Some(Instant::now());
        self.resume = Some(if why.ends() { Rings::Forget } else { Rings::Repeat });
        let model = self.device.model.lock();
        let work = self.device.context.work();
        // The gate is closed with the lock held, which a step takes.
        let asked = self.device.end_with_interrupts(model, |device| {
            let Some(worker) = device.as_worker() else {
                work.close(Close::Cancel);
                return None;
            };
            let wrong = match contain(|| worker.quiesce(why)) {
                Ok(Quiesce::Cancel) => {
                    work.close(Close::Cancel);
                    return None;
                }
                Ok(Quiesce::Finish) => {
                    work.close(Close::Finish);
                    return None;
                }
                Ok(Quiesce::Done) => {
                    let running = work.list().first().map(|task| task.name.clone());
                    work.close(Close::Cancel);
                    let task = running?;
                    format!("said that it had quiesced while task {task} was running")
                }
                Err(panic) => {
                    work.close(Close::Cancel);
                    format!("quiesce failed: {panic}")
                }
            };
            self.device.fail(&wrong);
            Some(wrong)
        });
        let wrong = match asked {
            Err(_) | Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(wrong))) => wrong,
            Ok(Err(panic)) => {
                work.close(Close::Cancel);
                panic.to_string()
            }
        };
        tracing::error!(
            device = self.device.name(),
            error = wrong,
            "the device is in the error state"
        );
        self.device.emit(Event::Failed);
        Err(Error::new(Errno::IO, format!("{} {wrong}", self.device.name())))
    }

    /// Whether the device is idle: no task, no data-path call, no access to guest memory in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.device.context.is_idle()
    }

    /// Waits until the device is idle. The thread runs tasks meanwhile if the runtime has no workers.
    /// It must hold no lock.
    ///
    /// # Errors
    /// `EBUSY`: the device is not idle at `deadline`.
    pub(crate) fn await_idle(&mut self, deadline: Instant) -> Result<()> {
        if self.is_idle() || self.device.context.wait_idle(deadline) {
            self.has_quiesced();
            return Ok(());
        }
        Err(Error::new(Errno::BUSY, self.device.describe_work()))
    }

    /// Counts how long the device took to quiesce. A device without work takes no time, and is not
    /// counted.
    fn has_quiesced(&mut self) {
        if let Some(asked) = self.asked.take()
            && self.device.works()
        {
            self.device.context.quiesces().count(asked.elapsed());
        }
    }

    /// Stops a device, asks it to quiesce for something that can be abandoned, and waits.
    ///
    /// # Errors
    /// `EBUSY`: it takes longer than [`LIMIT`]; the device resumes. `EIO` as [`Stop::ask`].
    pub(crate) fn quiesced(device: &Arc<Registered>, why: Why) -> Result<Self> {
        let deadline = device.environment.runtime.now() + LIMIT;
        let mut stop = Self::begin(device, &mut Timeout::new(LIMIT))?;
        stop.ask(why)?;
        stop.await_idle(deadline)?;
        Ok(stop)
    }

    /// Discards rings of doorbells when this is dropped.
    pub(crate) fn forget_rings(&mut self) {
        self.resume = Some(Rings::Forget);
    }

    /// Leaves the device closed: its gate stays closed until the next first open.
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
        // Calls run again, so that what was deferred can make one.
        drop(self.held.take());
    }
}

impl Registered {
    /// DEVICE_RESET: stops the device, resets it, and resumes it.
    pub(crate) fn stop_and_reset(self: &Arc<Self>, file: &FileShared) -> Result<()> {
        let deadline = self.environment.runtime.now() + LIMIT;
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

    /// Stops the device before its last close. If it does not quiesce in time it becomes stuck: the
    /// memory that it still uses is kept until its work ends.
    pub(crate) fn stop_for_close(self: &Arc<Self>) -> Option<Stop> {
        if !self.works() {
            return None;
        }
        // However long another stop or a call takes: `close_device` must not meet work of the device.
        let mut stop = loop {
            match Stop::begin(self, &mut Timeout::new(LIMIT)) {
                Ok(stop) => break stop,
                Err(_) if self.is_stopped_here() => return None,
                Err(_) => {}
            }
        };
        let deadline = self.environment.runtime.now() + LIMIT;
        // On an error, which `ask` has logged, its tasks are cancelled all the same.
        let _ = stop.ask(Why::Close);
        match stop.await_idle(deadline) {
            Ok(()) => Some(stop),
            Err(_) => {
                self.become_stuck(stop);
                None
            }
        }
    }

    /// Whether the calling thread has stopped the device: then it must not wait for the end of that.
    pub(crate) fn is_stopped_here(&self) -> bool {
        held::is_held(self)
    }

    /// Whether the device has the power [`crate::Worker`].
    pub(crate) fn works(&self) -> bool {
        self.context.works()
    }

    /// Makes calls wait. Returns `false` if the device is stopped already.
    pub(crate) fn try_stop(&self) -> bool {
        self.barred.fetch_or(STOPPED, Ordering::AcqRel) & STOPPED == 0
    }

    /// Opens the gate of a device, and lets the device start the work that its state describes.
    pub(crate) fn start_work(&self, rings: Rings) {
        if !self.works() {
            return;
        }
        let model = self.model.lock();
        if model.is_none() || self.is_stuck() {
            return;
        }
        // With the lock held, so that no stop closes the gate before it is open.
        let resumed = self.end_with_interrupts(model, |device| {
            self.context.work().reopen_after(rings, || {
                let worker = device.as_worker();
                worker.map_or(Ok(()), |worker| contain(|| worker.resume()))
            })
        });
        if let Ok(Ok(Err(panic)) | Err(panic)) = resumed {
            tracing::error!(device = self.name(), error = %panic, "resume failed");
            self.fail("a panic in resume");
        }
        self.deliver_pending_rings();
    }

    /// Lets calls run again, and carries out a reset that was asked for meanwhile.
    pub(crate) fn let_calls_in(self: &Arc<Self>) {
        self.context.attachment().resume();
        // Publishes what resets stored into memory that is read without the device lock.
        self.barred.fetch_and(!(STOPPED | BY_FUNCTION), Ordering::Release);
        self.resumed.wake_all();
        self.function_reset_if_requested();
    }

    /// What of the device is not idle, for a message.
    pub(crate) fn describe_work(&self) -> String {
        let tasks = self.context.work().list();
        let holds = self.context.dma_in_flight();
        match tasks.first() {
            Some(task) => format!("task {} of {} is still running", task.name, self.name()),
            None => format!("{} has {holds} accesses to guest memory in flight", self.name()),
        }
    }

    /// After a call: carries out the reset that the device has asked for in it. Called without the
    /// device lock.
    ///
    /// An idle device is reset before this returns. Otherwise this returns at once, so that the write
    /// that asked gets its reply, and a task resets the device when it has quiesced.
    pub(crate) fn function_reset_if_requested(self: &Arc<Self>) {
        if !self.context.reset_requested() || !self.try_stop() {
            // The thread that has stopped the device checks again when it lets calls run.
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
        let (runtime, context) = (self.environment.runtime.clone(), self.context.clone());
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

    /// Marks a device as stuck: it had to quiesce and did not. It is in the error state, and cannot
    /// be opened or reset before its work has ended.
    pub(crate) fn become_stuck(&self, mut stop: Stop) {
        let what = self.describe_work();
        tracing::error!(device = self.name(), work = what, "stuck");
        self.context.work().close(Close::Cancel);
        self.fail(&format!("stuck: {what}"));
        stop.resume = None;
    }

    /// Whether the device is stuck: in the error state, its gate closed, and not idle.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_in_error_state()
            && self.works()
            && !self.context.is_idle()
            && self.context.work().state() != crate::work::GateState::Open
    }
}

fn finish_function_reset(mut stop: Stop) {
    stop.has_quiesced();
    let device = stop.device().clone();
    let reset = device.reset(ResetCause::Function, None);
    if let Err(error) = reset {
        tracing::debug!(device = device.name(), %error, "function-level reset failed");
    }
    stop.forget_rings();
}
