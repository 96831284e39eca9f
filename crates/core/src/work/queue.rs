//! A part of a device's work that is stopped and resumed by itself.

use std::sync::Arc;

use vfiod_sync::atomic::Ordering;
use vfiod_sync::lock;

use super::gate::{Close, GateState};
use super::{Doorbell, Rings, Shared, TaskHandle, Work};

/// A part of a device's work, such as one of its queues: doorbells, and the tasks that serve them.
/// The rest of the device goes on while this is stopped. Dropping it changes nothing.
///
/// A device makes one when it is to stop a queue: quiesces it, awaits [`Queue::idle`] in another task,
/// and then deletes the queue or resumes it.
pub struct Queue {
    work: Arc<Shared>,
    /// Places in the work's list.
    bells: Vec<usize>,
    tasks: Vec<TaskHandle>,
}

impl Work {
    /// A part of the work: these doorbells and tasks. Doorbells that the device does not have are left
    /// out.
    pub fn queue(
        &self,
        bells: impl IntoIterator<Item = usize>,
        tasks: impl IntoIterator<Item = TaskHandle>,
    ) -> Queue {
        let work = self.shared.clone();
        let bells = bells.into_iter().filter(|bell| *bell < work.bells.len()).collect();
        Queue { bells, tasks: tasks.into_iter().collect(), work }
    }
}

impl Queue {
    fn doorbells(&self) -> impl Iterator<Item = &Doorbell> {
        self.bells.iter().map(|&bell| &self.work.bells[bell])
    }

    /// Stops the queue: from now on no ring of its doorbells is delivered or taken. Its tasks end at
    /// their next wait for a doorbell ([`Close::Finish`]), or at their next await ([`Close::Cancel`]).
    /// [`Queue::idle`] waits for that. A device with a lock calls this with it held, and then no step
    /// of a task that was cancelled follows.
    pub fn quiesce(&self, how: Close) {
        self.doorbells().for_each(|doorbell| doorbell.gate.close(Close::Cancel));
        match how {
            Close::Cancel => self.tasks.iter().for_each(TaskHandle::cancel),
            Close::Finish => self.set_finishing(true),
        }
        // Tasks that wait for a doorbell end; they look at what was changed here.
        self.work.bells.iter().for_each(|doorbell| doorbell.bell.wake());
    }

    fn set_finishing(&self, finishing: bool) {
        // A task decides under this lock whether it ends.
        let _tasks = lock(&self.work.tasks);
        for handle in &self.tasks {
            handle.task.finishing.store(finishing, Ordering::SeqCst);
        }
    }

    /// Whether the queue is stopped and nothing of it runs: no task, and no call of the data path for
    /// its doorbells.
    pub fn is_idle(&self) -> bool {
        self.doorbells().all(|doorbell| doorbell.gate.state() == GateState::Closed)
            && self.tasks.iter().all(TaskHandle::is_gone)
    }

    /// Waits until [`Queue::is_idle`]. A task of the queue itself must not wait for it.
    pub async fn idle(&self) {
        for doorbell in self.doorbells() {
            let gate = &doorbell.gate;
            let is_closed = || (gate.state() == GateState::Closed).then_some(());
            gate.idle.wait_for(is_closed).await;
        }
        for task in &self.tasks {
            task.gone().await;
        }
    }

    /// Resumes the queue. Tasks that have not ended go on, unless they were cancelled. Its doorbells
    /// that were ever rung are rung again with their newest values, or forget their rings; tasks that
    /// wait for them are woken, and [`Work::deliver_rings`] delivers them to a data path.
    pub fn resume(&self, rings: Rings) {
        for Doorbell { bell, .. } in self.doorbells() {
            match rings {
                Rings::Repeat | Rings::RepeatAll => bell.repeat_silently(),
                Rings::Forget => bell.forget(),
            }
        }
        self.set_finishing(false);
        for doorbell in self.doorbells() {
            doorbell.gate.reopen();
            doorbell.wake_if_rung();
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("bells", &self.bells).field("tasks", &self.tasks).finish()
    }
}
