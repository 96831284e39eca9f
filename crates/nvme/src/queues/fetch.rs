//! Reads commands: as many as may be under way, as have a place for their completion, and as the limits allow.

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::Result;
use vfiod_pci::Task;
use vfiod_tasks::race;

use super::controller::Controller;
use super::execute::Execute;
use super::for_now::is_for_now;
use super::wait::{FORBIDDEN, Next};
use super::{Queues, SubmissionQueue};
use crate::rate::{Allowed, Place};
use vfiod_nvme_spec::Submission;

/// The most commands that are read at once.
pub(super) const BATCH: u32 = 32;
/// How long a queue waits that has one place for two commands of a fused operation.
const HALF: Duration = Duration::from_millis(1);

/// How far a queue has come among those whose commands are limited.
pub(super) struct Turn {
    place: Option<Place>,
    /// How many commands it needs to read at once.
    least: u32,
}

impl Default for Turn {
    fn default() -> Self {
        Self { place: None, least: 1 }
    }
}

/// Reads the next commands, as many as have a place for their completions, and says what comes then.
pub(super) async fn read(
    task: &Task<impl Controller>,
    queues: &Queues,
    queue: &Arc<SubmissionQueue>,
    execute: &impl Execute,
    turn: &mut Turn,
    commands: &mut Vec<Submission>,
) -> Result<Next> {
    commands.clear();
    let waiting = match queue.news(task.dma()) {
        Ok((waiting, is_invalid)) => {
            if is_invalid {
                queues.notice_invalid_value();
            }
            waiting
        }
        Err(error) if is_for_now(&error) => return Ok(Next::Poll(FORBIDDEN)),
        Err(error) => return Err(error),
    };
    let mut most = waiting.min(BATCH);
    let Turn { place, least } = std::mem::take(turn);
    if most == 0 {
        return Ok(Next::Wait);
    }
    // Dropped where nothing is read: others have their turn.
    let mut limited = None;
    if let Some(rate) = execute.rate() {
        let mut place = place;
        let now = task.task().runtime().now();
        match rate.ask(&mut place, queue, now, (least, most)) {
            Allowed::Commands(allowed) => (most, limited) = (allowed, place),
            Allowed::After(time) => {
                *turn = Turn { place, least };
                return Ok(Next::Poll(time));
            }
            Allowed::InTurn => {
                *turn = Turn { place, least };
                return Ok(Next::Turn);
            }
        }
    }
    let count = queues.begin(most);
    let reserved = queue.completions.reserve(queues.host(task.dma()), count);
    let places = reserved.as_ref().map_or(0, |reserved| reserved.count);
    queues.end(count - places);
    let reserved = reserved?;
    if reserved.wakes {
        queues.ring_all();
    }
    if reserved.invalid {
        queues.notice_invalid_value();
    }
    if places == 0 {
        return Ok(Next::Wait);
    }
    // Where there is never place for two, they are read one by one, and are no pair.
    let pairs = queue.completions.layout.entries > 2 && queues.max_commands > 1;
    let read = race(async { Some(queue.read(task.dma(), places, pairs, commands).await) }, async {
        queues.stop_requested().await;
        None
    });
    let result = match read.await {
        Some(Ok(())) => {
            if let Some(place) = limited {
                let bytes = commands.iter().map(|command| execute.bytes(command)).sum();
                place.spend(commands.len() as u64, bytes);
                if commands.is_empty() && most == 1 {
                    // The first one of two that belong together: next time both.
                    turn.least = 2;
                }
            }
            let left = places - commands.len() as u32;
            if left > 0 {
                leave(queues, queue, left);
                // There is no place for the second of two that belong together; others may take this one.
                let waits = commands.is_empty() && turn.least == 1;
                let next = if waits { Next::Poll(HALF) } else { Next::Read };
                return Ok(next);
            }
            let reads_on = waiting > most && places == most;
            return Ok(if reads_on { Next::Read } else { Next::Wait });
        }
        // Queues that woke each other then would do nothing else.
        Some(Err(error)) if is_for_now(&error) => {
            commands.clear();
            queues.end(places);
            queue.completions.give_back(places);
            return Ok(Next::Poll(FORBIDDEN));
        }
        Some(Err(error)) => Err(error),
        None => Ok(Next::Wait),
    };
    commands.clear();
    queues.end(places);
    if queue.completions.release(places) {
        queues.ring_all();
    }
    result
}

/// Gives back places for commands that were not read, and lets other queues look again.
fn leave(queues: &Queues, queue: &SubmissionQueue, count: u32) {
    let wait = queues.count_ended(count);
    if queue.completions.release(count) || wait {
        queues.ring_others(queue);
    }
}
