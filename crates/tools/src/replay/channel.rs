//! DMA messages of the device that is played to.
//!
//! A device that is rebuilt amid its work starts each task again from the task's last step, and sends
//! the messages since then once more. The capture has them once. So the channel remembers, for each
//! task, the exchanges since its last step: a message of the rebuilt task that repeats one of them
//! gets the reply that the first had, or the one that is still to come. What came before that step is
//! forgotten, so that a message that only looks the same is taken for a new one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use vfiod_core::dma::{Completion, DmaPeer};
use vfiod_core::work::{TaskInfo, TaskProgress};
use vfiod_core::{Errno, Error, Result};
use vfiod_protocol::{Completed, DmaFailure, DmaReply, DmaRequests, Ended, Output, TransferId};
use vfiod_server::now;
use vfiod_sync::{Mutex, lock};
use vfiod_wire::{HEADER_LEN, Header};

/// How long the device waits for a reply. The capture has it, or it never comes.
const TIMEOUT: Duration = Duration::from_secs(60);

enum Waiting {
    Read(Completion<Vec<u8>>),
    Write(Completion<()>),
}

/// A request that has ended, and its outcome.
type Finished = (Waiting, Result<Vec<u8>, DmaFailure>);

/// The task that has asked for DMA, and how many steps it had made.
#[derive(Clone)]
struct Origin {
    task: TaskProgress,
    steps: u64,
}

impl Origin {
    /// Of what the calling thread asks for.
    fn current() -> Option<Self> {
        let task = TaskProgress::current()?;
        let steps = task.steps();
        Some(Self { task, steps })
    }

    /// Whether the task has not made a step since then.
    fn is_of_last_step(&self) -> bool {
        self.task.steps() == self.steps
    }
}

/// A DMA message of the device that was not compared with the capture yet.
struct Sent {
    header: Header,
    payload: Vec<u8>,
    origin: Option<Origin>,
    /// The client has sent something since then.
    is_followed: bool,
}

impl Sent {
    fn task(&self) -> Option<&str> {
        self.origin.as_ref().map(|origin| origin.task.name())
    }
}

/// A DMA message of the device that the capture has, too.
struct Exchange {
    /// The id of the message in the capture.
    captured: u16,
    command: u16,
    payload: Vec<u8>,
    /// The name of the task.
    task: Option<String>,
    /// The message of the device; `None` if the device was rebuilt and has not repeated it.
    sent: Option<(u16, Option<Origin>)>,
    reply: Option<(Header, Vec<u8>)>,
}

impl Exchange {
    /// Whether its task, if it is to start again, repeats it.
    fn may_be_repeated(&self) -> bool {
        match &self.sent {
            Some((_, Some(origin))) => origin.is_of_last_step(),
            Some((_, None)) => false,
            None => true,
        }
    }

    fn has_live_task(&self) -> bool {
        match &self.sent {
            Some((_, Some(origin))) => !origin.task.has_ended(),
            Some((_, None)) => false,
            None => true,
        }
    }
}

struct State {
    requests: DmaRequests,
    waiting: HashMap<TransferId, (Waiting, Option<Origin>)>,
    output: Output<u32>,
    /// Messages that were not compared with the capture yet.
    sent: VecDeque<Sent>,
    exchanges: Vec<Exchange>,
}

/// The way to the memory of the client that was captured.
pub(super) struct Channel {
    state: Mutex<State>,
}

impl State {
    fn new(requests: DmaRequests, exchanges: Vec<Exchange>) -> Self {
        Self {
            requests,
            waiting: HashMap::new(),
            output: Output::default(),
            sent: VecDeque::new(),
            exchanges,
        }
    }

    /// Takes the messages out of the output. Those that repeat an exchange with a reply are answered.
    fn take_messages(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        while let Some(chunk) = self.output.chunk()
            && let Some(header) = Header::parse(chunk.bytes)
        {
            let size = header.size as usize;
            let payload = chunk.bytes[HEADER_LEN..size].to_vec();
            self.output.sent(size);
            let transfer = self.requests.transfer_of(header.id);
            let waiting = transfer.and_then(|transfer| self.waiting.get(&transfer));
            let origin = waiting.and_then(|(_, origin)| origin.clone());
            let message = Sent { header, payload, origin, is_followed: false };
            let repeats = |exchange: &&mut Exchange| {
                exchange.sent.is_none()
                    && exchange.command == header.command
                    && exchange.task.as_deref() == message.task()
                    && exchange.payload == message.payload
            };
            let Some(exchange) = self.exchanges.iter_mut().find(repeats) else {
                self.sent.push_back(message);
                continue;
            };
            exchange.sent = Some((header.id, message.origin));
            if let Some((reply, payload)) = exchange.reply.clone() {
                let header = Header { id: header.id, ..reply };
                finished.extend(self.complete(&DmaReply {
                    header,
                    payload: &payload,
                    position: 0,
                }));
            }
        }
        finished
    }

    fn complete(&mut self, reply: &DmaReply<'_>) -> Option<Finished> {
        let completed = self.requests.complete(reply, &mut self.output);
        let Ok(Completed::Ended(Ended { id, outcome })) = completed else { return None };
        let (waiting, _) = self.waiting.remove(&id)?;
        Some((waiting, outcome))
    }
}

/// Completes requests. Called without the channel's lock: the device may start others.
fn finish(finished: impl IntoIterator<Item = Finished>) {
    for (waiting, outcome) in finished {
        let outcome = outcome.map_err(error_of);
        match waiting {
            Waiting::Read(completion) => completion.complete(outcome),
            Waiting::Write(completion) => completion.complete(outcome.map(drop)),
        }
    }
}

impl Channel {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Self::with(State::new(DmaRequests::new(limit), Vec::new()))
    }

    fn with(state: State) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Forgets the exchanges of tasks that have ended: nothing repeats them. Called before the device is
    /// saved, which ends the others.
    pub(super) fn forget_ended(&self) {
        lock(&self.state).exchanges.retain(Exchange::has_live_task);
    }

    /// Saves the state, and makes a channel with it. Called when the device has been saved: nobody
    /// waits for replies any more. The restored device will repeat the messages since the last step of
    /// each task.
    pub(super) fn rebuilt(&self) -> serde_json::Result<Arc<Self>> {
        let mut state = lock(&self.state);
        let text = serde_json::to_string(&state.requests)?;
        let mut requests: DmaRequests = serde_json::from_str(&text)?;
        let mut abandoned = Output::<u32>::default();
        state.waiting.keys().for_each(|id| requests.cancel(*id, &mut abandoned));
        let mut exchanges = std::mem::take(&mut state.exchanges);
        exchanges.retain(Exchange::may_be_repeated);
        exchanges.iter_mut().for_each(|exchange| exchange.sent = None);
        Ok(Self::with(State::new(requests, exchanges)))
    }

    /// The device was restored, and has these tasks: no others repeat their messages.
    pub(super) fn forget_all_but(&self, tasks: &[TaskInfo]) {
        let is_there = |name: &String| tasks.iter().any(|task| task.name == *name);
        let mut state = lock(&self.state);
        state.exchanges.retain(|exchange| exchange.task.as_ref().is_some_and(is_there));
    }

    /// Takes a DMA message that the capture has, with its header there and what is behind it, from
    /// those that the device has sent and that repeat none. Messages of one task come in their order.
    pub(super) fn take_message(&self, captured: &Header, payload: &[u8]) -> Option<()> {
        let mut state = lock(&self.state);
        let mut tasks = HashSet::new();
        let at = state.sent.iter().position(|sent| {
            let is_first = tasks.insert(sent.task());
            is_first && sent.header.command == captured.command && sent.payload == payload
        })?;
        drop(tasks);
        let Sent { header, payload, origin, .. } = state.sent.remove(at)?;
        state.exchanges.push(Exchange {
            captured: captured.id,
            command: header.command,
            payload,
            task: origin.as_ref().map(|origin| origin.task.name().to_owned()),
            sent: Some((header.id, origin)),
            reply: None,
        });
        Some(())
    }

    /// Drops the oldest message that the device has sent and the capture does not have. `None`: there is
    /// none.
    pub(super) fn drop_message(&self) -> Option<()> {
        lock(&self.state).sent.pop_front().map(drop)
    }

    /// The capture goes on with a message of the client.
    pub(super) fn client_speaks(&self) {
        lock(&self.state).sent.iter_mut().for_each(|sent| sent.is_followed = true);
    }

    /// How many messages the device has sent that the capture does not have. What it sends after the client's
    /// last message may be missing there: the client had left, perhaps, before it was sent.
    pub(super) fn left_over(&self) -> usize {
        lock(&self.state).sent.iter().filter(|sent| sent.is_followed).count()
    }

    /// The client's reply to a message. Returns the header of the reply to the device's message;
    /// `None` if there is no such message, or if the device was rebuilt and has not repeated it.
    pub(super) fn reply(&self, header: Header, payload: &[u8]) -> Option<Header> {
        let mut state = lock(&self.state);
        let open =
            |exchange: &&mut Exchange| exchange.captured == header.id && exchange.reply.is_none();
        let exchange = state.exchanges.iter_mut().find(open)?;
        let id = exchange.sent.as_ref()?.0;
        exchange.reply = Some((header, payload.to_vec()));
        Some(Header { id, ..header })
    }

    /// Whether the device waits for a reply.
    pub(super) fn awaits_replies(&self) -> bool {
        !lock(&self.state).waiting.is_empty()
    }

    /// Whether a message of this id in the capture has no reply.
    pub(super) fn awaits_reply(&self, captured: u16) -> bool {
        let state = lock(&self.state);
        let mut exchanges = state.exchanges.iter();
        exchanges.any(|exchange| exchange.captured == captured && exchange.reply.is_none())
    }

    /// Gives the device the reply to one of its messages.
    pub(super) fn complete(&self, reply: &DmaReply<'_>) {
        let mut state = lock(&self.state);
        let mut finished: Vec<_> = state.complete(reply).into_iter().collect();
        finished.extend(state.take_messages());
        drop(state);
        finish(finished);
    }

    fn start(
        &self,
        waiting: Waiting,
        start: impl FnOnce(&mut DmaRequests, &mut Output<u32>) -> Result<TransferId, DmaFailure>,
    ) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        // Dropped, the completion fails the request.
        if let Ok(id) = start(&mut state.requests, &mut state.output) {
            state.waiting.insert(id, (waiting, Origin::current()));
        }
        let finished = state.take_messages();
        drop(guard);
        finish(finished);
    }
}

fn error_of(failure: DmaFailure) -> Error {
    let errno = match failure {
        DmaFailure::Refused(errno) => {
            let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
            errno.map_or(Errno::IO, Errno::from_raw_os_error)
        }
        _ => Errno::IO,
    };
    Error::new(errno, failure.to_string())
}

impl DmaPeer for Channel {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.start(Waiting::Read(completion), |requests, output| {
            requests.read(iova, len, now(), TIMEOUT, output)
        });
    }

    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>) {
        self.start(Waiting::Write(completion), |requests, output| {
            requests.write(iova, data, now(), TIMEOUT, output)
        });
    }
}
