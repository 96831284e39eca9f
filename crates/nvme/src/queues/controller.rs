//! What the tasks of queues ask of their controller.

use std::sync::Arc;

use vfiod_pci::{Task, Worker};

use super::Queues;

/// A controller, as the tasks of its queues know it.
pub(crate) trait Controller: Worker {
    /// It cannot go on: it shows fatal status until it is disabled (9.5). What fails when the work is to end is not
    /// looked at.
    fn fail(&mut self, queues: &Arc<Queues>);
}

/// The controller cannot go on: fatal status (9.5).
pub(super) async fn fail(
    task: &Task<impl Controller>,
    queues: &Arc<Queues>,
    queue: u16,
    what: &str,
    error: &str,
) {
    task.step(|controller, cx| {
        controller.fail(queues);
        if let Some(suppressed) = cx.may_log() {
            tracing::warn!(
                device = cx.name(),
                queue,
                error,
                suppressed,
                "{what}; the controller shows fatal status"
            );
        }
    })
    .await;
}
