//! Posts what commands resulted in, at once or, while the host lets the device reach no memory, later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfiod_pci::Task;
use vfiod_tasks::race;

use super::completion::Written;
use super::controller::{Controller, fail};
use super::execute::{Command, Ended};
use super::{Host, Queues, SubmissionQueue};
use crate::counters::{Counters, QueueCounters};
use vfiod_nvme_spec::{Completion, Status};

/// Counts commands that have ended. Returns the time.
pub(super) fn count(
    task: &Task<impl Controller>,
    (of_all, counters): (&Counters, &QueueCounters),
    ended: &[(Instant, Command)],
) -> Instant {
    let now = task.task().runtime().now();
    for (began, command) in ended {
        counters.count(command.opcode, now.saturating_duration_since(*began));
        if let Ended::With(outcome) = command.ended {
            of_all.count_failed(outcome);
        }
    }
    now
}

/// Posts what commands resulted in. Returns how long their interrupt waits for others, if it does.
pub(super) async fn post(
    task: &Task<impl Controller>,
    queues: &Arc<Queues>,
    queue: &SubmissionQueue,
    ended: &mut Vec<(Instant, Command)>,
    completions: &mut Vec<Completion>,
) -> Option<Duration> {
    let mut held = None;
    let count = ended.len() as u32;
    let completion = |(_, Command { id, ended, .. }): (Instant, Command)| match ended {
        Ended::Silently => None,
        Ended::With(outcome) => Some(Completion {
            result: outcome.unwrap_or(0),
            head: queue.head() as u16,
            queue: queue.id,
            id,
            status: outcome.err().unwrap_or(Status::SUCCESS),
        }),
    };
    completions.clear();
    completions.extend(ended.drain(..).filter_map(completion));
    let silent = count - completions.len() as u32;
    if silent > 0 && queue.completions.release(silent) {
        queues.ring_all();
    }
    let host = Host { coalesces: queue.id != 0, ..queues.host(task.dma()) };
    if !queues.is_stopped() && !completions.is_empty() {
        let posted = race(queue.completions.post(host, completions), async {
            queues.stop_requested().await;
            Ok(Written::default())
        });
        match posted.await {
            Ok(written) => {
                wake(queues, written);
                held = written.held;
            }
            Err(error) => {
                let error = error.to_string();
                fail(task, queues, queue.id, "cannot write completions", &error).await;
            }
        }
    } else if queues.defers() {
        queue.completions.defer(host, completions);
    }
    queues.end(count);
    held
}

/// Writes completions that were deferred: those of the queue, and where it is the admin queue of all, as those of a
/// queue that was deleted are nobody's. Returns whether some still wait.
pub(super) async fn catch_up(
    task: &Task<impl Controller>,
    queues: &Arc<Queues>,
    queue: &SubmissionQueue,
) -> bool {
    let before = queues.deferred();
    if before == 0 || queues.is_stopped() {
        return false;
    }
    let mut is_behind = false;
    let all = (queue.id == 0).then(|| queues.all_completions().map(|(_, queue)| queue));
    let own = Some(queue.completions.clone()).filter(|_| queue.id != 0);
    for completions in all.into_iter().flatten().chain(own) {
        let written = race(completions.write_deferred(queues.host(task.dma())), async {
            queues.stop_requested().await;
            Ok(Written::default())
        });
        match written.await {
            Ok(written) => wake(queues, written),
            Err(error) => {
                fail(task, queues, queue.id, "cannot write completions", &error.to_string()).await;
                return false;
            }
        }
        is_behind |= completions.is_behind();
    }
    if queues.deferred() < before {
        // Those who wait for a place among the commands look again.
        queues.ring_others(queue);
    }
    is_behind
}

/// Lets those look again who wait for places of a completion queue, if there are new ones, and the admin queue if the
/// host has moved the queue's doorbell to a value that is none.
pub(crate) fn wake(queues: &Queues, written: Written) {
    if written.wakes {
        queues.ring_all();
    }
    if written.invalid {
        queues.notice_invalid_value();
    }
}
