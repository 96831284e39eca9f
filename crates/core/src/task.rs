//! A device's tasks, typed by their device.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

use vfiod_tasks::Ring;

use crate::context::Context;
use crate::device::{Device, Worker};
use crate::dma::Attachment;
use crate::error::{Errno, Error, Result};
use crate::irq::IrqSet;
use crate::work::{Task, TaskHandle};

/// A task of a device of type `D`. Cheap to clone.
pub struct DeviceTask<D> {
    task: Task,
    context: Context,
    device: PhantomData<fn() -> D>,
}

impl<D> Clone for DeviceTask<D> {
    fn clone(&self) -> Self {
        Self { task: self.task.clone(), context: self.context.clone(), device: PhantomData }
    }
}

impl<D> fmt::Debug for DeviceTask<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.task.fmt(f)
    }
}

impl<D: Device + Worker> DeviceTask<D> {
    /// Starts a task of the device, which is of type `D`.
    ///
    /// # Errors
    /// `EAGAIN`: it has its largest number of tasks; `EBUSY`: it is being stopped, or is not open;
    /// `EINVAL`: it was registered without the power [`Worker`].
    pub fn spawn<F>(
        context: &Context,
        name: &str,
        make: impl FnOnce(Self) -> F,
    ) -> Result<TaskHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if !context.works() {
            let what = format!("{} cannot start a task: it is no Worker", context.name());
            return Err(Error::new(Errno::INVAL, what));
        }
        let own = context.clone();
        context
            .work()
            .spawn(name, move |task| make(Self { task, context: own, device: PhantomData }))
    }

    /// Calls `step` with the device, under its lock: a task has no other access to the device's state.
    /// Never returns in a task that has been cancelled.
    ///
    /// # Panics
    /// If `step` panics: the task ends, and the device is in the error state.
    pub async fn step<R>(&self, step: impl FnOnce(&mut D) -> R) -> R {
        let mut step = Some(step);
        let mut result = None;
        if let Some(home) = self.context.home() {
            home.step(&self.task, &mut |device: &mut dyn Any| {
                if let (Some(device), Some(step)) = (device.downcast_mut::<D>(), step.take()) {
                    result = Some(step(device));
                }
            });
            if self.context.reset_requested() {
                home.reset_if_requested();
            }
        }
        match result {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }

    /// Guest memory.
    pub fn dma(&self) -> &Attachment {
        self.context.attachment()
    }

    /// Waits for a ring of a doorbell.
    pub async fn bell(&self, bell: usize) -> Ring {
        self.task.bell(bell).await
    }

    /// The task: waits for time and other tasks.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The device's interrupts.
    pub fn irqs(&self) -> &IrqSet {
        self.context.irqs()
    }

    /// The device's context; [`DeviceTask::spawn`] starts another task with it.
    pub fn context(&self) -> &Context {
        &self.context
    }
}
