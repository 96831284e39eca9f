//! DMA by message: memory of the client that it gave no descriptor for.
//!
//! A request goes out on the connection's own socket, or on the second one where the client
//! offered it. No thread waits for the reply: whoever reads the socket completes the request. Each
//! has a deadline, kept by a timer.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vfiod_core::dma::{Completion, DmaPeer};
use vfiod_core::{Error, Link, Result};
use vfiod_protocol::{
    Completed, DmaFailure, DmaReply, DmaRequests, End, Ended, Time, TransferId, Twin,
};
use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::{Mutex, lock};
use vfiod_wire::Command;

use crate::clients::Counters;
use crate::clock::now;
use crate::descriptor::{Descriptor, Output};
use crate::held_memory::HeldMemory;
use crate::limits::Clipped;
use crate::message_log::Message;
use crate::outgoing::Outgoing;
use crate::pool::{Interest, Pool, Source, Watch, Worker};
use crate::transport::{Lent, Received, Wait};

/// How long a client may take for a request. QEMU gives up on its own commands after five
/// seconds, and one of them may be waiting for this.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How much is received at once on the second socket: most replies are a page.
const CHUNK: usize = 16 << 10;

/// The connection whose socket DMA messages share, for when its client does not take them.
pub(crate) trait Blocked: Send + Sync {
    /// What was sent waits for room: someone must flush it once there is.
    fn blocked(&self);
}

/// The way to a client's memory by messages.
pub(crate) struct DmaChannel {
    device: String,
    /// The connection's number.
    number: u64,
    outgoing: Arc<Outgoing>,
    twin: Option<Arc<TwinSocket>>,
    connection: Weak<dyn Blocked>,
    pool: Pool,
    state: Mutex<State>,
    used: AtomicBool,
    counters: Arc<Counters>,
    payer: Payer,
    timer: OnceLock<Option<(Arc<Timer>, Watch)>>,
}

struct State {
    requests: DmaRequests,
    /// With what the client is charged for the data, which is kept until the end.
    waiting: HashMap<TransferId, (Waiting, Charge)>,
    /// When the timer goes off.
    armed: Option<Time>,
    ended: bool,
}

/// Who waits for a transfer.
enum Waiting {
    Read(Completion<Vec<u8>>, Message),
    Write(Completion<()>, Message),
}

impl Waiting {
    fn complete(self, outcome: Result<Vec<u8>>) {
        match self {
            Self::Read(completion, message) => {
                message.end_transfer(&outcome);
                completion.complete(outcome);
            }
            Self::Write(completion, message) => {
                message.end_transfer(&outcome);
                completion.complete(outcome.map(drop));
            }
        }
    }
}

/// The second socket.
pub(crate) struct TwinSocket {
    outgoing: Arc<Outgoing>,
    incoming: Mutex<Twin<Descriptor>>,
    /// What the client is charged for what waits in both directions.
    held: HeldMemory,
    channel: OnceLock<Weak<DmaChannel>>,
    watch: OnceLock<Watch>,
}

/// Goes off at the earliest deadline.
struct Timer {
    fd: OwnedFd,
    channel: Weak<DmaChannel>,
    _charge: Charge,
}

fn error_of(failure: DmaFailure) -> Error {
    let errno = match failure {
        DmaFailure::Refused(errno) => {
            let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
            errno.map_or(Errno::IO, Errno::from_raw_os_error)
        }
        DmaFailure::WrongAccess | DmaFailure::WrongLength => Errno::IO,
        DmaFailure::TimedOut => Errno::TIMEDOUT,
        DmaFailure::TooMany => return Error::short(Errno::BUSY, failure.to_string()),
        DmaFailure::NoMemory => return Error::short(Errno::NOMEM, failure.to_string()),
        DmaFailure::Closed => Errno::NOTCONN,
    };
    Error::new(errno, failure.to_string())
}

impl DmaChannel {
    /// For a client that takes `client_limit` bytes of data in a message, and pays for what is kept for
    /// it: the name of its device, and the number of its connection. `outgoing` is the connection's own
    /// socket, `twin` the second one.
    pub(crate) fn new(
        (device, number, payer): (&str, u64, &Payer),
        outgoing: &Arc<Outgoing>,
        twin: Option<crate::transport::Socket>,
        connection: Weak<dyn Blocked>,
        client_limit: u64,
        pool: &Pool,
        counters: &Arc<Counters>,
    ) -> Arc<Self> {
        let twin = twin.map(|socket| {
            Arc::new(TwinSocket {
                outgoing: Arc::new(Outgoing::new(socket)),
                incoming: Mutex::default(),
                held: HeldMemory::new(payer.clone()),
                channel: OnceLock::new(),
                watch: OnceLock::new(),
            })
        });
        let requests = DmaRequests::new(client_limit);
        let state = State { requests, waiting: HashMap::new(), armed: None, ended: false };
        let channel = Arc::new(Self {
            device: device.to_owned(),
            number,
            outgoing: twin.as_ref().map_or(outgoing, |twin| &twin.outgoing).clone(),
            twin,
            connection,
            pool: pool.clone(),
            state: Mutex::new(state),
            used: AtomicBool::new(false),
            counters: counters.clone(),
            payer: payer.clone(),
            timer: OnceLock::new(),
        });
        if let Some(twin) = &channel.twin {
            let _ = twin.channel.set(Arc::downgrade(&channel));
        }
        channel
    }

    /// Whether messages travel on the connection's own socket.
    pub(crate) fn shares_socket(&self) -> bool {
        self.twin.is_none() && self.used.load(Ordering::Relaxed)
    }

    /// Has the second socket served from now on. Also where no message is ever sent on it: what a
    /// client puts into it, its own end of the connection perhaps, must not stay there.
    ///
    /// # Errors
    /// What `epoll` says.
    pub(crate) fn watch_twin(&self) -> Result<(), Errno> {
        let Some(twin) = &self.twin else { return Ok(()) };
        let watch = self.pool.reserve();
        let source: Arc<dyn Source> = twin.clone();
        let _ = twin.watch.set(watch.clone());
        watch.arm(&source, Interest::Read)
    }

    /// From now on mappings depend on it.
    ///
    /// # Errors
    /// What `epoll` or `timerfd_create` says; `EMFILE`: the client's user has as many descriptors as it
    /// may have.
    pub(crate) fn set_used(self: &Arc<Self>) -> Result<()> {
        if self.used.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed = |errno| Error::new(errno, "cannot prepare for DMA by message");
        if self.timer.get().is_none() {
            let charge = self.payer.charge(Resource::Descriptors, 1)?;
            let timer = self.start_timer(charge).map_err(failed)?;
            let _ = self.timer.set(Some(timer));
        }
        self.used.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn start_timer(self: &Arc<Self>, charge: Charge) -> Result<(Arc<Timer>, Watch), Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let timer = Arc::new(Timer { fd, channel: Arc::downgrade(self), _charge: charge });
        let watch = self.pool.reserve();
        let source: Arc<dyn Source> = timer.clone();
        watch.arm(&source, Interest::Read)?;
        Ok((timer, watch))
    }

    /// Nobody is to wait for this client any more: every request fails with `ENOTCONN`.
    pub(crate) fn end(&self) {
        if let Some(twin) = &self.twin {
            twin.outgoing.end();
        }
        let mut state = lock(&self.state);
        state.ended = true;
        let ended = state.requests.close();
        let waiting = take(&mut state, ended);
        drop(state);
        deliver(waiting);
        self.forget();
        if let Some(twin) = &self.twin {
            twin.drain(self);
        }
    }

    /// Has the second socket and the timer served no more.
    fn forget(&self) {
        if let Some(watch) = self.twin.as_ref().and_then(|twin| twin.watch.get()) {
            watch.forget();
        }
        if let Some(Some((_, watch))) = self.timer.get() {
            watch.forget();
        }
    }

    /// A reply came. `false` if nobody asked for it.
    ///
    /// # Errors
    /// [`End::StrayReplies`].
    pub(crate) fn complete(&self, reply: &DmaReply<'_>) -> Result<bool, End> {
        let mut output = Output::default();
        let mut state = lock(&self.state);
        let completed = state.requests.complete(reply, &mut output)?;
        let (ended, expected) = match completed {
            Completed::Ended(ended) => (vec![ended], true),
            Completed::Part => (Vec::new(), true),
            Completed::Stray => (Vec::new(), false),
        };
        let waiting = take(&mut state, ended);
        drop(state);
        deliver(waiting);
        self.send(output);
        Ok(expected)
    }

    /// Ends the requests whose deadline has passed.
    fn expire(&self) {
        let mut output = Output::default();
        let mut state = lock(&self.state);
        let ended = state.requests.expire(now(), &mut output);
        let waiting = take(&mut state, ended);
        state.armed = None;
        self.arm_timer(&mut state);
        drop(state);
        deliver(waiting);
        self.send(output);
    }

    /// Sets the timer, unless it goes off early enough.
    fn arm_timer(&self, state: &mut State) {
        let Some(next) = state.requests.next_deadline() else { return };
        if state.armed.is_some_and(|armed| armed <= next) {
            return;
        }
        let Some(Some((timer, _))) = self.timer.get() else { return };
        // The clock that says what time it is may be behind by a tick.
        let at = next.after(Duration::from_millis(10));
        let it_value = Timespec {
            tv_sec: (at.0 / 1_000_000_000) as i64,
            tv_nsec: (at.0 % 1_000_000_000) as i64,
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = Itimerspec { it_interval, it_value };
        if timerfd_settime(&timer.fd, TimerfdTimerFlags::ABSTIME, &time).is_ok() {
            state.armed = Some(next);
        }
    }

    fn send(&self, mut output: Output) {
        if output.is_empty() {
            return;
        }
        match self.outgoing.send(&mut output, Wait::No) {
            Ok(false) => {}
            Ok(true) => match &self.twin {
                Some(twin) => twin.wait_for_room(),
                None => {
                    if let Some(connection) = self.connection.upgrade() {
                        connection.blocked();
                    }
                }
            },
            // Whoever reads the socket finds its end, and fails the requests.
            Err(error) => {
                let (device, connection) = (&*self.device, self.number);
                tracing::debug!(device, connection, %error, "cannot send a DMA message");
            }
        }
    }

    fn start(
        &self,
        waiting: Waiting,
        len: usize,
        start: impl FnOnce(&mut DmaRequests, &mut Output) -> Result<TransferId, DmaFailure>,
    ) {
        let charge = match self.payer.charge(Resource::Memory, len as u64) {
            Ok(charge) => charge,
            Err(exceeded) => return waiting.complete(Err(exceeded.into())),
        };
        let mut output = Output::default();
        let mut state = lock(&self.state);
        let started = if state.ended {
            Err(DmaFailure::Closed)
        } else if state.requests.is_unresponsive() && self.outgoing.is_blocked() {
            // What has timed out is still queued for the client, and more would be queued behind it
            // for as long as the client takes nothing.
            Err(DmaFailure::TimedOut)
        } else {
            start(&mut state.requests, &mut output)
        };
        match started {
            Ok(id) => {
                state.waiting.insert(id, (waiting, charge));
                self.arm_timer(&mut state);
                drop(state);
                self.send(output);
            }
            Err(failure) => {
                drop(state);
                waiting.complete(Err(error_of(failure)));
            }
        }
    }
}

impl DmaChannel {
    fn message(&self, command: Command, iova: u64, len: usize, data: &[u8]) -> Message {
        Message::begin_transfer(&self.device, self.number, command, iova, len, data)
    }
}

type Outcome = ((Waiting, Charge), Result<Vec<u8>>);

fn take(state: &mut State, ended: Vec<Ended>) -> Vec<Outcome> {
    let take = |Ended { id, outcome }: Ended| {
        Some((state.waiting.remove(&id)?, outcome.map_err(error_of)))
    };
    ended.into_iter().filter_map(take).collect()
}

/// Without a lock held: what is woken may start the next request at once.
fn deliver(outcomes: Vec<Outcome>) {
    for ((waiting, _charge), outcome) in outcomes {
        waiting.complete(outcome);
    }
}

impl Drop for DmaChannel {
    fn drop(&mut self) {
        self.forget();
    }
}

impl DmaPeer for DmaChannel {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.counters.dma_read.fetch_add(len as u64, Ordering::Relaxed);
        let message = self.message(Command::DmaRead, iova, len, &[]);
        self.start(Waiting::Read(completion, message), len, |requests, output| {
            requests.read(iova, len, now(), TIMEOUT, output)
        });
    }

    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>) {
        self.counters.dma_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        let message = self.message(Command::DmaWrite, iova, data.len(), &data);
        self.start(Waiting::Write(completion, message), data.len(), |requests, output| {
            requests.write(iova, data, now(), TIMEOUT, output)
        });
    }
}

impl Link for DmaChannel {
    /// The connection itself stays, so that its next command gets `ENODEV`.
    fn end(&self) {
        Self::end(self);
    }
}

impl TwinSocket {
    fn interest(&self) -> Interest {
        if self.outgoing.is_blocked() { Interest::Both } else { Interest::Read }
    }

    fn wait_for_room(&self) {
        if let Some(watch) = self.watch.get() {
            // Fails only when the connection has ended, which forgets it.
            let _ = watch.rearm(self, Interest::Both);
        }
    }

    fn read(&self, channel: &DmaChannel) -> bool {
        let mut incoming = lock(&self.incoming);
        let mut lent = Lent::default();
        let Ok(room) = incoming.room(CHUNK / 2, CHUNK) else { return false };
        let received = self.outgoing.socket().receive(room, &mut lent, Wait::No);
        // No reply has descriptors.
        if !self.outgoing.socket().closer().close_all(lent.fds, &channel.payer) {
            return false;
        }
        match received {
            Ok(Received::Bytes(bytes)) => incoming.received(bytes, now()),
            Ok(Received::Nothing) => {}
            Ok(Received::Eof) | Err(_) => return false,
        }
        let close = |reason: &dyn std::fmt::Display| {
            let (device, connection) = (&*channel.device, channel.number);
            if let Some(suppressed) = channel.payer.lines().pass(0) {
                // It may have some of the client's text.
                let reason = Clipped(reason);
                tracing::warn!(device, connection, %reason, suppressed, "second socket closed");
            }
            false
        };
        loop {
            match incoming.next_reply() {
                Ok(None) => break,
                Ok(Some(reply)) => match channel.complete(&reply) {
                    Ok(_) => {}
                    Err(end) => return close(&end),
                },
                Err(end) => return close(&end),
            }
        }
        incoming.trim();
        match self.held.charge(incoming.memory() + self.outgoing.held()) {
            Ok(()) => true,
            Err(exceeded) => close(&exceeded),
        }
    }
}

impl TwinSocket {
    /// Takes what had arrived before the socket was shut down: the client's own end of the connection may
    /// be among it, which has no end as long as that lies there.
    fn drain(&self, channel: &DmaChannel) {
        let socket = self.outgoing.socket();
        let mut bytes = [0; 4096];
        loop {
            let mut lent = Lent::default();
            let received = socket.receive(&mut bytes, &mut lent, Wait::No);
            // Too many that do not close end the connection elsewhere.
            let _ = socket.closer().close_all(lent.fds, &channel.payer);
            if !matches!(received, Ok(Received::Bytes(_))) {
                return;
            }
        }
    }
}

impl Source for TwinSocket {
    fn fd(&self) -> BorrowedFd<'_> {
        self.outgoing.socket().as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        let Some(channel) = self.channel.get().and_then(Weak::upgrade) else { return };
        let flushed = self.outgoing.flush(Wait::No);
        if flushed.is_err() || !self.read(&channel) {
            channel.end();
            return;
        }
        let _ = watch.rearm(&*self, self.interest());
    }
}

impl Source for Timer {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        let Some(channel) = self.channel.upgrade() else { return };
        // Non-blocking: it may have been set again since it went off.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        channel.expire();
        let _ = watch.rearm(&*self, Interest::Read);
    }
}
