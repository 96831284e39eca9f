//! The task of a submission queue: reads commands, lets each run by itself, and posts what it results in.
//!
//! A task that is to pause reads no more commands, finishes those that it has, and ends; what is saved
//! then is where the queue's head and tail are. A task that is to stop does the same and posts nothing.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use vfiod_core::{Errno, Result};
use vfiod_pci::Task;
use vfiod_tasks::{race, yield_now};

use super::completion::Written;
use super::held::Held;
use super::slots::{Running, Slots};
use super::{Host, Queues, SubmissionQueue};
use crate::controller::Nvme;
use crate::counters::{Counters, Depth, QueueCounters};
use crate::rate::{Allowed, Place, RateLimit};
use vfiod_nvme_spec::{Completion, Outcome, Submission};

/// The most commands that are read at once.
const BATCH: u32 = 32;
/// Bytes that commands move which are begun together. What they come to is posted before the next ones are
/// begun: where the disk is memory, the host works on these while others are copied. Smaller ones cost a host that
/// rings by messages more of these.
const GROUP: u64 = 1 << 20;
/// The same of a host that neither rings by messages nor waits for interrupts.
const SMALL_GROUP: u64 = 16 << 10;
/// How often a queue that has nothing to do looks at its shadow doorbell before it asks to be told: some ten
/// microseconds.
const LOOKS: u32 = 200;
/// How long a queue waits before it looks whether the host lets the device reach memory again.
const FORBIDDEN: Duration = Duration::from_millis(10);
/// How long a queue waits that has one place for two commands of a fused operation.
const HALF: Duration = Duration::from_millis(1);

/// What becomes of a command.
pub(crate) enum Ended {
    /// It completes with this.
    With(Outcome),
    /// It completes later, by another way, or not at all.
    Silently,
}

/// A command that has ended: its identifier and opcode, and what becomes of it.
pub(crate) struct Command {
    id: u16,
    opcode: u8,
    ended: Ended,
}

impl Command {
    pub(crate) fn of(command: &Submission, ended: Ended) -> Self {
        Self { id: command.id(), opcode: command.opcode(), ended }
    }

    /// A command that completes with this.
    pub(crate) fn with(command: &Submission, outcome: Outcome) -> Self {
        Self::of(command, Ended::With(outcome))
    }
}

/// What is done with the commands of a queue.
pub(crate) trait Execute: Sized + Send + Sync + 'static {
    /// A command that has begun and needs no memory of its own.
    type Quick: Send;

    /// Begins a command, the first one of these, which are those that were read together; or the first two, if
    /// they belong together. Returns how many it was.
    fn begin(&self, commands: &[Submission], begun: &mut dyn FnMut(Running<Self::Quick>)) -> usize;

    /// Performs commands that wait for nothing, the first ones of these, until they have moved `most` bytes. Returns
    /// how many it was.
    fn at_once(
        &self,
        _commands: &[Submission],
        _most: u64,
        _ended: &mut dyn FnMut(Command),
    ) -> usize {
        0
    }

    /// Looks whether a command has ended.
    fn poll(&self, quick: &mut Self::Quick, cx: &mut Context<'_>) -> Poll<Command>;

    /// Calls `begin`, which begins several commands: what they ask of the disk may be handed over together.
    fn gather(&self, begin: &mut dyn FnMut()) {
        begin();
    }

    /// The counters of the controller, and those of the queue.
    fn counters(&self) -> (&Counters, &QueueCounters);

    /// Whether more commands may be read.
    fn is_ready(&self) -> bool {
        true
    }

    /// Waits until more commands may be read.
    fn ready(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// What limits how many commands are read per second, if anything does.
    fn rate(&self) -> Option<&Arc<RateLimit>> {
        None
    }

    /// How many bytes of that a command takes when it is read.
    fn bytes(&self, _command: &Submission) -> u64 {
        0
    }

    /// Called each time before the task waits: events that are to be posted, as completions of commands
    /// that ended silently.
    fn events(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// The name of a queue's task.
pub(crate) fn task_name(id: u16) -> String {
    if id == 0 { "admin".to_owned() } else { format!("queue {id}") }
}

/// Serves a queue until it is deleted, or the controller stops.
pub(crate) async fn serve(
    task: Task<Nvme>,
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
                    Err(error) if error.errno() == Errno::PERM => Ok(Next::Poll(FORBIDDEN)),
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
        if running.is_empty() {
            if queues.is_paused() {
                held.flush(&queues, &queue);
                pause(&task).await;
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

/// Begins commands until they move [`GROUP`] bytes, or those that wait for nothing `group` bytes, and returns those
/// that are left. Those that have ended already are added to `ended`.
fn begin<'a, E: Execute>(
    execute: &E,
    commands: &'a [Submission],
    (running, began): (&mut Slots<E>, Instant),
    group: u64,
    ended: &mut Vec<(Instant, Command)>,
) -> &'a [Submission] {
    let at_once = execute.at_once(commands, group, &mut |command| ended.push((began, command)));
    if at_once > 0 {
        return &commands[at_once..];
    }
    let (mut quick, mut others) = (Places::default(), Places::default());
    let (mut done, mut bytes) = (0, 0);
    let mut begin = || {
        while done < commands.len() && bytes < GROUP {
            done += execute.begin(&commands[done..], &mut |command| {
                let places = match command {
                    Running::Quick(_, moves) => {
                        bytes += moves;
                        &mut quick
                    }
                    Running::Other(_) => &mut others,
                };
                places.add(running.add(command, began));
            });
        }
        // Those that were read together are under way together.
        others.all().iter().for_each(|place| running.poll(execute, *place, ended));
    };
    if commands.len() > 1 {
        execute.gather(&mut begin)
    } else {
        begin()
    }
    // What was handed over together has ended by now where the disk is memory.
    quick.all().iter().for_each(|place| running.poll(execute, *place, ended));
    &commands[done..]
}

/// Places of commands that were read together.
#[derive(Default)]
struct Places {
    places: [usize; BATCH as usize],
    count: usize,
}

impl Places {
    fn add(&mut self, place: usize) {
        self.places[self.count] = place;
        self.count += 1;
    }

    fn all(&self) -> &[usize] {
        &self.places[..self.count]
    }
}

/// Counts commands that have ended. Returns the time.
fn count(
    task: &Task<Nvme>,
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

/// How far a queue has come among those whose commands are limited.
struct Turn {
    place: Option<Place>,
    /// How many commands it needs to read at once.
    least: u32,
}

impl Default for Turn {
    fn default() -> Self {
        Self { place: None, least: 1 }
    }
}

/// What a task does when it has read what there was.
enum Next {
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
async fn wait(task: &Task<Nvme>, queue: &SubmissionQueue, execute: &impl Execute, next: Next) {
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
fn prepare(
    task: &Task<Nvme>,
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

/// Ends the task if the device is to quiesce; it has nothing under way.
async fn pause(task: &Task<Nvme>) {
    // A step comes after the call that asked for the pause, when the gate has been closed.
    task.step(|_, _| ()).await;
    task.task().pause_point().await;
}

/// Reads the next commands, as many as have a place for their completions, and says what comes then.
async fn read(
    task: &Task<Nvme>,
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
        Err(error) if error.errno() == Errno::PERM => return Ok(Next::Poll(FORBIDDEN)),
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
        // The host lets the device reach no memory for now. Queues that woke each other then would do nothing else.
        Some(Err(error)) if error.errno() == Errno::PERM => {
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

/// Writes completions that were deferred: those of the queue, and where it is the admin queue of all, as those of a
/// queue that was deleted are nobody's. Returns whether some still wait.
async fn catch_up(task: &Task<Nvme>, queues: &Arc<Queues>, queue: &SubmissionQueue) -> bool {
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

/// Posts what commands resulted in. Returns how long their interrupt waits for others, if it does.
async fn post(
    task: &Task<Nvme>,
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
            status: outcome.err().unwrap_or(vfiod_nvme_spec::Status::SUCCESS),
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

/// The controller cannot go on: fatal status (9.5).
async fn fail(task: &Task<Nvme>, queues: &Arc<Queues>, queue: u16, what: &str, error: &str) {
    task.step(|nvme, cx| {
        nvme.fail(queues);
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
