//! DMA messages of the device that is played to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfiod_core::dma::{Completion, DmaPeer};
use vfiod_core::{Errno, Error, Result};
use vfiod_protocol::{Completed, DmaFailure, DmaReply, DmaRequests, Output, TransferId};
use vfiod_server::now;
use vfiod_sync::{Condvar, Mutex, lock, wait_until};
use vfiod_wire::Header;

/// How long the device waits for a reply. The capture has it, or it never comes.
const TIMEOUT: Duration = Duration::from_secs(60);

enum Waiting {
    Read(Completion<Vec<u8>>),
    Write(Completion<()>),
}

struct State {
    requests: DmaRequests,
    waiting: HashMap<TransferId, Waiting>,
    output: Output<u32>,
}

/// The way to the memory of the client that was captured.
pub(super) struct Channel {
    state: Mutex<State>,
    sent: Condvar,
}

impl Channel {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let requests = DmaRequests::new(limit);
        let state = State { requests, waiting: HashMap::new(), output: Output::default() };
        Arc::new(Self { state: Mutex::new(state), sent: Condvar::new() })
    }

    /// Whether no DMA message waits for its reply or to be looked at.
    pub(super) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.requests.is_idle() && state.output.is_empty()
    }

    /// Saves the state, and makes a channel with it. Only while it is idle.
    pub(super) fn rebuilt(&self) -> serde_json::Result<Arc<Self>> {
        let text = serde_json::to_string(&lock(&self.state).requests)?;
        let requests = serde_json::from_str(&text)?;
        let state = State { requests, waiting: HashMap::new(), output: Output::default() };
        Ok(Arc::new(Self { state: Mutex::new(state), sent: Condvar::new() }))
    }

    /// The device's next DMA message: its header, and what is behind it. Waits for it until the
    /// deadline.
    pub(super) fn next_message(&self, deadline: Instant) -> Option<(Header, Vec<u8>)> {
        let mut state = lock(&self.state);
        loop {
            if let Some(chunk) = state.output.chunk()
                && let Some(header) = Header::parse(chunk.bytes)
            {
                let size = header.size as usize;
                let payload = chunk.bytes[vfiod_wire::HEADER_LEN..size].to_vec();
                state.output.sent(size);
                return Some((header, payload));
            }
            state = wait_until(&self.sent, &self.state, state, deadline)?;
        }
    }

    /// The client's reply to one.
    pub(super) fn complete(&self, reply: &DmaReply<'_>) {
        let mut guard = lock(&self.state);
        let State { requests, waiting, output } = &mut *guard;
        let Ok(Completed::Ended(ended)) = requests.complete(reply, output) else { return };
        let Some(waiting) = waiting.remove(&ended.id) else { return };
        drop(guard);
        let outcome = ended.outcome.map_err(error_of);
        match waiting {
            Waiting::Read(completion) => completion.complete(outcome),
            Waiting::Write(completion) => completion.complete(outcome.map(drop)),
        }
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
        drop(guard);
        self.sent.notify_all();
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
