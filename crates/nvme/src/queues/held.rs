//! An interrupt that is held back for others (5.27.1.6).

use std::time::Instant;

use vfiod_pci::Task;
use vfiod_tasks::race;

use super::controller::Controller;
use super::{Queues, SubmissionQueue};

/// An interrupt that waits for others, and until when.
#[derive(Default)]
pub(super) struct Held(Option<Instant>);

impl Held {
    pub(super) fn until(&mut self, time: Instant) {
        self.0 = Some(self.0.map_or(time, |before| before.min(time)));
    }

    pub(super) fn is_over(&self, task: &Task<impl Controller>) -> bool {
        self.0.is_some_and(|time| task.task().runtime().now() >= time)
    }

    /// It waits no longer.
    pub(super) fn flush(&mut self, queues: &Queues, queue: &SubmissionQueue) {
        if let (Some(_), Some(vector)) = (self.0.take(), queue.completions.layout.vector) {
            queues.vectors.flush(&queues.interrupts, vector);
        }
    }

    /// Waits for `wait`, but not longer than the interrupt waits.
    pub(super) async fn or(&self, task: &Task<impl Controller>, wait: impl Future<Output = ()>) {
        match self.0 {
            Some(time) => race(wait, task.task().runtime().sleep_until(time)).await,
            None => wait.await,
        }
    }
}
