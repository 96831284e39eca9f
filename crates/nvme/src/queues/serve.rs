//! The task of a submission queue: reads commands, lets each run by itself, and posts what it results in.
//!
//! A task that is to pause reads no more commands, finishes those that it has, and ends; what is saved
//! then is where the queue's head and tail are. A task that is to stop does the same and posts nothing.

use std::sync::Arc;

use vfiod_pci::Task;
use vfiod_tasks::{race, yield_now};

use super::begin::{GROUP, SMALL_GROUP, begin};
use super::controller::{Controller, fail};
use super::execute::Execute;
use super::fetch::{BATCH, Turn, read};
use super::for_now::is_for_now;
use super::held::Held;
use super::post::{catch_up, count, post};
use super::slots::Slots;
use super::wait::{FORBIDDEN, Next, prepare, wait};
use super::{Queues, SubmissionQueue};
use crate::counters::Depth;

/// The name of a queue's task.
pub(crate) fn task_name(id: u16) -> String {
    if id == 0 { "admin".to_owned() } else { format!("queue {id}") }
}

/// Serves a queue until it is deleted, or the controller stops.
pub(crate) async fn serve(
    task: Task<impl Controller>,
    queues: Arc<Queues>,
    queue: Arc<SubmissionQueue>,
    execute: impl Execute,
) {
    let mut running = Slots::new();
    let (mut commands, mut ended, mut completions) = (Vec::new(), Vec::new(), Vec::new());
    let (of_all, counters) = execute.counters();
    let mut depth = Depth::new(execute.counters());
    let mut held = Held::default();
    let mut turn = Turn::default();
    let mut occupied = Occupied::default();
    // A host whose stores are polled, and which polls itself, works on the first ones while others are performed.
    let is_polled = queue.is_mapped() && queue.completions.layout.vector.is_none();
    let group = if is_polled { SMALL_GROUP } else { GROUP };
    let mut has_parked = false;
    go_on_with_parked(&queue, &execute, &mut running);
    loop {
        if occupied.is_over() {
            // Others have their turn, also where the disk and the host never let this one wait.
            yield_now().await;
        }
        // What is rung from here on rings again.
        queue.bell.take();
        let ends = queues.is_stopped() || queue.is_deleted();
        if (ends && running.is_empty()) || held.is_over(&task) {
            held.flush(&queues, &queue);
        }
        if ends && running.is_empty() {
            // It may have given places back without a word.
            queues.ring_others(&queue);
            return;
        }
        let mut next = Next::Wait;
        let is_behind = catch_up(&task, &queues, &queue).await;
        let reads = !ends && !is_behind && queues.is_reading();
        if is_behind {
            next = Next::Poll(FORBIDDEN);
        }
        if !reads || !execute.is_ready() {
            turn = Turn::default();
            if reads {
                next = Next::Hold;
            }
        } else {
            execute.events().await;
            let read = read(&task, &queues, &queue, &execute, &mut turn, &mut commands).await;
            occupied.round(commands.len() as u32);
            let mut rest = commands.as_slice();
            while !rest.is_empty() {
                let began = task.task().runtime().now();
                rest = begin(&execute, rest, (&mut running, began), group, &mut ended);
                depth.set(running.len() + ended.len(), began);
                if !ended.is_empty() {
                    let now = count(&task, (of_all, counters), &ended);
                    depth.set(running.len(), now);
                    let posted = post(&task, &queues, &queue, &mut ended, &mut completions);
                    if let Some(time) = posted.await {
                        held.until(now + time);
                    }
                }
            }
            // Others may have come meanwhile.
            let is_late = !commands.is_empty();
            let read = read.and_then(|next| match next {
                Next::Wait if is_late && running.is_empty() => Ok(Next::Read),
                Next::Wait => match prepare(&task, &queues, &queue, running.is_empty()) {
                    Err(error) if is_for_now(&error) => Ok(Next::Poll(FORBIDDEN)),
                    next => next,
                },
                next => Ok(next),
            });
            next = match read {
                Ok(next) => next,
                Err(error) => {
                    let (queue, error) = (queue.id, error.to_string());
                    fail(&task, &queues, queue, "cannot read commands", &error).await;
                    continue;
                }
            };
        }
        // What it has parked before still counts: then its own are not known any more.
        let parks = queues.parks() && !has_parked && !running.is_empty();
        if parks && running.len() == execute.syncing() {
            queue.park(running.give_up());
            has_parked = true;
        }
        if running.is_empty() {
            if queues.is_paused() {
                held.flush(&queues, &queue);
                pause(&task).await;
                // The work goes on before this task has ended.
                if go_on_with_parked(&queue, &execute, &mut running) {
                    continue;
                }
            }
            running.shrink();
            if !matches!(next, Next::Read) {
                depth.rest();
            }
            held.or(&task, wait(&task, &queue, &execute, next)).await;
            continue;
        }
        let woken = held.or(&task, wait(&task, &queue, &execute, next));
        race(running.ended(&execute, &mut ended), woken).await;
        if !ended.is_empty() {
            let now = count(&task, (of_all, counters), &ended);
            depth.set(running.len(), now);
            let posted = post(&task, &queues, &queue, &mut ended, &mut completions);
            if let Some(time) = posted.await {
                held.until(now + time);
            }
        }
    }
}

/// Begins what is left of commands that were parked. Returns whether there were any.
fn go_on_with_parked<E: Execute>(
    queue: &SubmissionQueue,
    execute: &E,
    running: &mut Slots<E>,
) -> bool {
    let parked = queue.take_parked();
    for (began, command) in &parked {
        let place = running.add(*command, execute.sync(command), *began);
        running.wake(place);
    }
    !parked.is_empty()
}

/// How long a queue has occupied its thread: commands that it has read, and rounds in which there was none. A host
/// can make those for ever, by a doorbell that it moves to values of no queue.
#[derive(Default)]
struct Occupied(u32);

impl Occupied {
    fn round(&mut self, commands: u32) {
        self.0 += commands.max(1);
    }

    /// Whether others are to have their turn; it begins anew then.
    fn is_over(&mut self) -> bool {
        let is_over = self.0 >= BATCH;
        if is_over {
            self.0 = 0;
        }
        is_over
    }
}

/// Ends the task if the device is to quiesce; it has nothing under way.
async fn pause(task: &Task<impl Controller>) {
    // A step comes after the call that asked for the pause, when the gate has been closed.
    task.step(|_, _| ()).await;
    task.task().pause_point().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_without_commands_end_a_turn_as_well() {
        let mut occupied = Occupied::default();
        occupied.round(BATCH);
        assert_eq!([occupied.is_over(), occupied.is_over()], [true, false]);
        (1..BATCH).for_each(|_| occupied.round(0));
        assert!(!occupied.is_over());
        occupied.round(0);
        assert!(occupied.is_over());
    }
}
