//! What the task of a queue does when it has read what there was: asks to be told of more, and waits.

use std::time::Duration;

use vfiod_core::Result;
use vfiod_pci::Task;
use vfiod_tasks::race;

use super::controller::Controller;
use super::execute::Execute;
use super::{Queues, SubmissionQueue};

/// How often a queue that has nothing to do looks at its shadow doorbell before it asks to be told: some ten
/// microseconds.
const LOOKS: u32 = 200;
/// How long a queue waits before it looks whether it can reach its memory again.
pub(super) const FORBIDDEN: Duration = Duration::from_millis(10);

/// What a task does when it has read what there was.
pub(super) enum Next {
    /// It reads again.
    Read,
    /// It waits for the bell.
    Wait,
    /// It reads again after this time, or when the bell rings.
    Poll(Duration),
    /// It reads when others have read: the bell rings then.
    Turn,
    /// It reads when there is room for what is under way already.
    Hold,
}

/// Waits for what comes next. A ring is left for the task to take.
pub(super) async fn wait(
    task: &Task<impl Controller>,
    queue: &SubmissionQueue,
    execute: &impl Execute,
    next: Next,
) {
    let rung = queue.bell.wait_for(|| queue.bell.is_rung().then_some(()));
    match next {
        Next::Read => {}
        Next::Wait | Next::Turn => rung.await,
        Next::Poll(time) => race(task.task().sleep(time), rung).await,
        Next::Hold => race(execute.ready(), rung).await,
    }
}

/// Gets ready to wait when all was read. A queue with a shadow doorbell asks the host to ring; one that has
/// nothing to do looks for a while before.
pub(super) fn prepare(
    task: &Task<impl Controller>,
    queues: &Queues,
    queue: &SubmissionQueue,
    is_idle: bool,
) -> Result<Next> {
    if !queue.is_shadowed() {
        let is_heard = is_idle && queues.linger(task.dma(), queue);
        return Ok(if is_heard { Next::Read } else { Next::Wait });
    }
    for _ in 0..if is_idle { LOOKS } else { 0 } {
        if queue.look(task.dma())? || queue.bell.is_rung() {
            return Ok(Next::Read);
        }
        std::hint::spin_loop();
    }
    let is_new = queue.ask(task.dma())?;
    if queue.take_invalid() {
        queues.notice_invalid_value();
    }
    Ok(if is_new { Next::Read } else { Next::Wait })
}
