//! Models with tasks or a data path: tasks, doorbells, quiesce and resume.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use vfiod_core::work::TaskHandle;
use vfiod_core::{DataPath, DeviceTask, Quiesce, Result, Why};

use crate::function::Function;
use crate::model::{Cx, Model};
use crate::state::{StateOf, Works};

/// A model with tasks or a data path ([`Model::State`] = [`Works`]). Neither method has a default.
///
/// A task is a plain future. It reaches the model by [`Task::step`] only, and guest memory by
/// [`Task::dma`]; a register access cannot reach guest memory. A future is never saved: the model's
/// state says what is under way, and [`Worker::resume`] starts it again.
pub trait Worker: Model<State = Works<<Self as Worker>::Saves>> {
    /// Whether and how the model is saved: [`Stateless`](crate::Stateless),
    /// [`HasState`](crate::HasState) or [`CannotSave`](crate::CannotSave).
    type Saves: StateOf<Self>;

    /// Stops the work; see [`vfiod_core::Worker::quiesce`].
    fn quiesce(&mut self, cx: &Cx<Self>, why: Why) -> Quiesce;

    /// Starts the work that the state describes: after the first open, a reset, a save, a restore, and
    /// an abandoned hot reset. Tasks that did not end meanwhile still run ([`Cx::find_task`]).
    fn resume(&mut self, cx: &Cx<Self>);
}

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

    /// Sets the model's data path, once, in [`Model::init`]: from then on doorbells are delivered to
    /// it, without the device's lock, instead of to [`Task::bell`].
    pub fn set_data_path(&self, path: Arc<dyn DataPath>) {
        self.context().set_data_path(path);
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

    /// Guest memory. Fails with `EPERM` while the guest has not enabled bus mastering.
    pub fn dma(&self) -> &vfiod_core::dma::Attachment {
        self.task.dma()
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
