//! The task of a submission queue: reads commands, lets each run by itself, and posts what it results in.
//!
//! A task that is to pause reads no more commands, finishes those that it has, and ends; what is saved
//! then is where the queue's head and tail are. A task that is to stop does the same and posts nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use vfiod_core::{Errno, Result};
use vfiod_pci::Task;
use vfiod_tasks::{race, yield_now};

use super::{Host, Queues, SubmissionQueue};
use crate::controller::Nvme;
use crate::counters::{Counters, Depth, QueueCounters};
use crate::rate::{Allowed, Place, RateLimit};
use vfiod_nvme_spec::{Completion, Outcome, Submission};

/// The most commands that are read at once.
const BATCH: u32 = 32;
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

/// A command that is under way.
pub(crate) type Running = Pin<Box<dyn Future<Output = Command> + Send>>;

/// A command that is under way, and since when.
struct Timed {
    began: Instant,
    running: Running,
}

impl Future for Timed {
    type Output = (Instant, Command);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let began = self.began;
        self.running.as_mut().poll(context).map(|command| (began, command))
    }
}

/// What is done with the commands of a queue.
pub(crate) trait Execute: Send + Sync + 'static {
    /// Begins a command.
    fn execute(&self, command: Submission) -> Running;

    /// Begins several commands.
    fn execute_all(&self, commands: Vec<Submission>, running: &mut dyn FnMut(Running)) {
        commands.into_iter().for_each(|command| running(self.execute(command)));
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
    let mut running = FuturesUnordered::<Timed>::new();
    let (of_all, counters) = execute.counters();
    let mut depth = Depth::new(execute.counters());
    let mut held = Held::default();
    let mut turn = Turn::default();
    let mut read_since = 0;
    loop {
        if read_since >= BATCH {
            // Others have their turn, also where the disk and the host never let this one wait.
            read_since = 0;
            yield_now().await;
        }
        // What is rung from here on rings again.
        queue.bell.take();
        let ends = queues.is_stopped() || queue.is_deleted();
        if (ends && running.is_empty()) || held.is_over(&task) {
            held.flush(&queues, &queue);
        }
        if ends && running.is_empty() {
            return;
        }
        let mut next = Next::Wait;
        let reads = !ends && queues.is_reading();
        if !reads || !execute.is_ready() {
            turn = Turn::default();
            if reads {
                next = Next::Hold;
            }
        } else {
            execute.events().await;
            let read = read(&task, &queues, &queue, &execute, &mut turn).await;
            let read = read.and_then(|(commands, next)| {
                read_since += commands.len() as u32;
                if !commands.is_empty() {
                    let began = task.task().runtime().now();
                    let begin = |running: Running| Timed { began, running };
                    execute.execute_all(commands, &mut |command| running.push(begin(command)));
                    depth.set(running.len(), began);
                }
                let Next::Wait = next else { return Ok(next) };
                match prepare(&task, &queues, &queue, running.is_empty()) {
                    Err(error) if error.errno() == Errno::PERM => Ok(Next::Poll(FORBIDDEN)),
                    next => next,
                }
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
            held.or(&task, wait(&task, &queue, &execute, next)).await;
            continue;
        }
        let woken = async {
            held.or(&task, wait(&task, &queue, &execute, next)).await;
            None
        };
        if let Some(first) = race(running.next(), woken).await {
            let mut ended = vec![first];
            while let Some(Some(next)) = running.next().now_or_never() {
                ended.push(next);
            }
            let now = task.task().runtime().now();
            for (began, command) in &ended {
                counters.count(command.opcode, now.saturating_duration_since(*began));
                if let Ended::With(outcome) = command.ended {
                    of_all.count_failed(outcome);
                }
            }
            depth.set(running.len(), now);
            if let Some(time) = post(&task, &queues, &queue, ended).await {
                held.until(task.task().runtime().now() + time);
            }
        }
    }
}

/// An interrupt that waits for others, and until when.
#[derive(Default)]
struct Held(Option<Instant>);

impl Held {
    fn until(&mut self, time: Instant) {
        self.0 = Some(self.0.map_or(time, |before| before.min(time)));
    }

    fn is_over(&self, task: &Task<Nvme>) -> bool {
        self.0.is_some_and(|time| task.task().runtime().now() >= time)
    }

    /// It waits no longer.
    fn flush(&mut self, queues: &Queues, queue: &SubmissionQueue) {
        if let (Some(_), Some(vector)) = (self.0.take(), queue.completions.layout.vector) {
            queues.vectors.flush(&queues.interrupts, vector);
        }
    }

    /// Waits for `wait`, but not longer than the interrupt waits.
    async fn or(&self, task: &Task<Nvme>, wait: impl Future<Output = ()>) {
        match self.0 {
            Some(time) => race(wait, task.task().runtime().sleep_until(time)).await,
            None => wait.await,
        }
    }
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
        return Ok(Next::Wait);
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
) -> Result<(Vec<Submission>, Next)> {
    let nothing = |next| Ok((Vec::new(), next));
    match queue.look(task.dma()) {
        Ok(_) => {}
        Err(error) if error.errno() == Errno::PERM => return nothing(Next::Poll(FORBIDDEN)),
        Err(error) => return Err(error),
    }
    let waiting = queue.waiting();
    let mut most = waiting.min(BATCH);
    let Turn { place, least } = std::mem::take(turn);
    if most == 0 {
        return nothing(Next::Wait);
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
                return nothing(Next::Poll(time));
            }
            Allowed::InTurn => {
                *turn = Turn { place, least };
                return nothing(Next::Turn);
            }
        }
    }
    let count = queues.begin(most);
    let reserved = queue.completions.reserve(queues.host(task.dma()), count);
    let places = reserved.as_ref().map_or(0, |reserved| reserved.count);
    queues.end(count - places);
    if reserved?.wakes {
        queues.ring_all();
    }
    if queue.completions.take_invalid() {
        queues.notice_invalid_value();
    }
    if places == 0 {
        return nothing(Next::Wait);
    }
    // Where there is never place for two, they are read one by one, and are no pair.
    let pairs = queue.completions.layout.entries > 2 && queues.max_commands > 1;
    let commands = race(async { Some(queue.read(task.dma(), places, pairs).await) }, async {
        queues.stop_requested().await;
        None
    });
    let result = match commands.await {
        Some(Ok(commands)) => {
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
                return Ok((commands, next));
            }
            let reads_on = waiting > most && places == most;
            return Ok((commands, if reads_on { Next::Read } else { Next::Wait }));
        }
        // The host lets the device reach no memory for now.
        Some(Err(error)) if error.errno() == Errno::PERM => nothing(Next::Poll(FORBIDDEN)),
        Some(Err(error)) => Err(error),
        None => nothing(Next::Wait),
    };
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
        let others = queues.all_submissions().filter(|other| other.id != queue.id);
        others.for_each(|other| other.bell.ring(None));
    }
}

/// Waits until it is time to look whether the host lets the device reach memory again.
pub(crate) async fn wait_for_memory(task: &Task<Nvme>) {
    task.task().sleep(FORBIDDEN).await;
}

/// Posts what commands resulted in. Returns how long their interrupt waits for others, if it does.
async fn post(
    task: &Task<Nvme>,
    queues: &Arc<Queues>,
    queue: &SubmissionQueue,
    ended: Vec<(Instant, Command)>,
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
    let completions: Vec<Completion> = ended.into_iter().filter_map(completion).collect();
    let silent = count - completions.len() as u32;
    if queue.completions.release(silent) {
        queues.ring_all();
    }
    if !queues.is_stopped() && !completions.is_empty() {
        let host = Host { coalesces: queue.id != 0, ..queues.host(task.dma()) };
        let wait = || wait_for_memory(task);
        let posted =
            race(async { queue.completions.post(host, &completions, wait).await }, async {
                queues.stop_requested().await;
                Ok(None)
            });
        match posted.await {
            Ok(time) => held = time,
            Err(error) => {
                let error = error.to_string();
                fail(task, queues, queue.id, "cannot write completions", &error).await;
            }
        }
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
