//! What is done with the commands of a queue: the queue's task reads them and posts what they come to, and asks for
//! all else by this.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::counters::{Counters, QueueCounters};
use crate::rate::RateLimit;
use vfiod_nvme_spec::{Outcome, Status, Submission};

/// What becomes of a command.
pub(crate) enum Ended {
    /// It completes with this.
    With(Outcome),
    /// It completes later, by another way, or not at all.
    Silently,
}

/// A command that has ended: its identifier and opcode, and what becomes of it.
pub(crate) struct Command {
    pub(super) id: u16,
    pub(super) opcode: u8,
    pub(super) ended: Ended,
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
pub(crate) enum Running<Q> {
    /// The usual one, which [`Execute::poll`] looks after, and how many bytes it moves.
    Quick(Q, u64),
    Other(Pin<Box<dyn Future<Output = Command> + Send>>),
}

impl<Q> Running<Q> {
    pub(crate) fn new(command: impl Future<Output = Command> + Send + 'static) -> Self {
        Self::Other(Box::pin(command))
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

    /// How many commands of this task wait for nothing but a sync.
    fn syncing(&self) -> usize {
        0
    }

    /// Begins what is left of a command that has waited for nothing but a sync.
    fn sync(&self, command: &Submission) -> Running<Self::Quick> {
        let command = Command::with(command, Err(Status::INTERNAL));
        Running::new(std::future::ready(command))
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
