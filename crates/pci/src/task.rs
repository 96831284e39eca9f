//! Tasks of a model: how it starts them, and what they reach.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use vfiod_core::work::{Queue, Rings, TaskHandle};
use vfiod_core::{DataPath, DeviceTask, Errno, MemoryCharge, Result};

use crate::cx::Cx;
use crate::function::Function;
use crate::model::Model;
use crate::worker::Worker;

impl<M: Worker> Cx<M> {
    /// Starts a task.
    ///
    /// # Errors
    /// `EAGAIN`: the device has its largest number of tasks; `EBUSY`: it is being stopped, or is not
    /// open.
    pub fn spawn<F>(&self, name: &str, make: impl FnOnce(Task<M>) -> F) -> Result<TaskHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        DeviceTask::spawn(self.context(), name, |task| make(Task { task }))
    }

    /// Starts a task, unless one of this name runs. Nothing is started while the device is being
    /// stopped, or is not open: [`Worker::resume`] starts it later. That the device has its largest
    /// number of tasks is logged.
    ///
    /// A task is found for a moment after a [`Task::step`] that was its last. A task whose work may be
    /// followed by the next therefore ends with [`Task::last_step`].
    pub fn ensure_task<F>(&self, name: &str, make: impl FnOnce(Task<M>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.find_task(name).is_some() {
            return;
        }
        match self.spawn(name, make) {
            Ok(_) => {}
            Err(error) if error.errno() == Errno::BUSY => {}
            Err(error) => tracing::error!(device = self.name(), task = name, %error, "no task"),
        }
    }

    /// Sets the model's data path, once, in [`Model::init`]: from then on doorbells are delivered to
    /// it, without the device's lock, instead of to [`Task::bell`]. It may keep a clone of this [`Cx`].
    pub fn set_data_path(&self, path: Arc<dyn DataPath>) {
        self.context().set_data_path(path);
    }

    /// A part of the model's work that can be quiesced and resumed by itself, such as a queue: these
    /// doorbells, counted BAR by BAR, and these tasks. The model quiesces it in a callback or step,
    /// and awaits [`Queue::idle`] in another task.
    pub fn queue(
        &self,
        bells: impl IntoIterator<Item = usize>,
        tasks: impl IntoIterator<Item = TaskHandle>,
    ) -> Queue {
        self.context().queue(bells, tasks)
    }

    /// Resumes a queue ([`Queue::resume`]), and delivers the rings that came meanwhile to the data
    /// path.
    pub fn resume_queue(&self, queue: &Queue, rings: Rings) {
        self.context().resume_queue(queue, rings);
    }

    /// Finds a task by its name, for [`Worker::resume`]. Cancelled tasks are not found. A task is
    /// found for a moment after its last step: what starts new work must not look.
    pub fn find_task(&self, name: &str) -> Option<TaskHandle> {
        self.context().find_task(name)
    }
}

/// A task of a model. Cheap to clone.
pub struct Task<M: Model> {
    task: DeviceTask<Function<M>>,
}

impl<M: Model> Clone for Task<M> {
    fn clone(&self) -> Self {
        Self { task: self.task.clone() }
    }
}

impl<M: Model> fmt::Debug for Task<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.task.fmt(f)
    }
}

impl<M: Worker> Task<M> {
    /// Calls `step` with the model, under the device's lock. Never returns in a task that has been
    /// cancelled.
    ///
    /// # Panics
    /// If `step` panics: the task ends, and the device is in the error state.
    pub async fn step<R>(&self, step: impl FnOnce(&mut M, &Cx<M>) -> R) -> R {
        let step = |function: &mut Function<M>| {
            let (model, cx) = function.parts().ok()?;
            Some(step(model, cx))
        };
        match self.task.step(step).await {
            Some(result) => result,
            // A function that is not registered has no tasks.
            None => std::future::pending().await,
        }
    }

    /// Calls `step` as [`Task::step`] does, and ends the task. [`Cx::find_task`] and
    /// [`Cx::ensure_task`] do not find it any more from the call on: what `step` says to the guest can
    /// be answered by the next work.
    ///
    /// # Panics
    /// As [`Task::step`].
    pub async fn last_step(self, step: impl FnOnce(&mut M, &Cx<M>)) {
        self.step(|model, cx| {
            self.task.task().cancel();
            step(model, cx);
        })
        .await;
    }

    /// Guest memory. Fails with `EPERM` while the guest has not enabled bus mastering.
    pub fn dma(&self) -> &vfiod_core::dma::Attachment {
        self.task.dma()
    }

    /// Charges the user who has the device open for memory that the model keeps for it
    /// ([`vfiod_core::Context::charge_memory`]).
    ///
    /// # Errors
    /// `ENOMEM`: more than the user may have.
    pub fn charge_memory(&self, bytes: u64) -> Result<MemoryCharge> {
        self.task.context().charge_memory(bytes)
    }

    /// Waits for a ring of a doorbell, of a model without a data path. Returns the newest value,
    /// where it is known: an ioeventfd carries none.
    pub async fn bell(&self, bell: usize) -> Option<u64> {
        self.task.bell(bell).await.value
    }

    /// The task: waits for time and other tasks.
    pub fn task(&self) -> &vfiod_core::work::Task {
        self.task.task()
    }
}
