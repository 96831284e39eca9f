//! DMA messages of the device that is played to.
//!
//! A device that is rebuilt amid a transfer starts it again from its saved state, and sends the
//! messages of that transfer once more. The capture has them once. So the channel remembers the
//! exchanges since the device was last idle: a message that repeats one of them gets the reply that
//! the first had, or the one that is still to come.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use vfiod_core::dma::{Completion, DmaPeer};
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

/// A DMA message of the device that the capture has, too.
struct Exchange {
    /// The id of the message in the capture.
    captured: u16,
    command: u16,
    payload: Vec<u8>,
    /// The id of the message of the device; `None` if the device was rebuilt and has not repeated it.
    id: Option<u16>,
    reply: Option<(Header, Vec<u8>)>,
}

struct State {
    requests: DmaRequests,
    waiting: HashMap<TransferId, Waiting>,
    output: Output<u32>,
    /// Messages that were not compared with the capture yet.
    sent: VecDeque<(Header, Vec<u8>)>,
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
            let repeats = |exchange: &&mut Exchange| {
                exchange.id.is_none()
                    && exchange.command == header.command
                    && exchange.payload == payload
            };
            let Some(exchange) = self.exchanges.iter_mut().find(repeats) else {
                self.sent.push_back((header, payload));
                continue;
            };
            exchange.id = Some(header.id);
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
        Some((self.waiting.remove(&id)?, outcome))
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

    /// Saves the state, and makes a channel with it. Called when the device has been saved: nobody
    /// waits for replies any more. The restored device will repeat the messages of the transfers that
    /// were under way.
    pub(super) fn rebuilt(&self) -> serde_json::Result<Arc<Self>> {
        let mut state = lock(&self.state);
        let text = serde_json::to_string(&state.requests)?;
        let mut requests: DmaRequests = serde_json::from_str(&text)?;
        let mut abandoned = Output::<u32>::default();
        state.waiting.keys().for_each(|id| requests.cancel(*id, &mut abandoned));
        let mut exchanges = std::mem::take(&mut state.exchanges);
        exchanges.iter_mut().for_each(|exchange| exchange.id = None);
        Ok(Self::with(State::new(requests, exchanges)))
    }

    /// The device has no work under way: it will repeat no message.
    pub(super) fn forget_exchanges(&self) {
        lock(&self.state).exchanges.clear();
    }

    /// The device's next DMA message that repeats none: its header, and what is behind it. `captured`
    /// is the id of this message in the capture.
    pub(super) fn next_message(&self, captured: u16) -> Option<(Header, Vec<u8>)> {
        let mut state = lock(&self.state);
        let (header, payload) = state.sent.pop_front()?;
        state.exchanges.push(Exchange {
            captured,
            command: header.command,
            payload: payload.clone(),
            id: Some(header.id),
            reply: None,
        });
        Some((header, payload))
    }

    /// How many messages the device has sent that the capture does not have.
    pub(super) fn left_over(&self) -> usize {
        lock(&self.state).sent.len()
    }

    /// The client's reply to a message. Returns the header of the reply to the device's message;
    /// `None` if there is no such message, or if the device was rebuilt and has not repeated it.
    pub(super) fn reply(&self, header: Header, payload: &[u8]) -> Option<Header> {
        let mut state = lock(&self.state);
        let open =
            |exchange: &&mut Exchange| exchange.captured == header.id && exchange.reply.is_none();
        let exchange = state.exchanges.iter_mut().find(open)?;
        let id = exchange.id?;
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
            state.waiting.insert(id, waiting);
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
