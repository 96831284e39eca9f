//! One client's connection, from accept to release.
//!
//! ```text
//!            VERSION, open succeeds              end of stream, stream without meaning,
//! Negotiating ─────────────────────► Ready ───────────────────────────────────────► Ended
//!      └── anything else, open fails: answered with an errno ─────────────────────►
//! ```
//!
//! A connection is served by one thread at a time. What it leaves when it parks stays in its
//! [`Link`]; the file is released when the last thread lets go of the connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustix::io::Errno;
use vfiod_core::{File, Owner};
use vfiod_wire::{Command, Header, Kind};

use crate::dialect::Dialect;
use crate::dma_channel::DmaChannel;
use crate::eventfds::EventFds;
use crate::inbox::{BadSize, CHUNK, Deferred, Inbox};
use crate::limits::{
    BUSY_STREAK, MAX_FIRST_MESSAGE, MAX_MESSAGE, MAX_SET_ASIDE, MAX_STRAY_REPLIES, Quiet,
    REPLY_BATCH,
};
use crate::link::Link;
use crate::outbox::Replies;
use crate::pool::{Interest, Pool, Residence, Source, Watch, Worker};
use crate::server::{Counted, Shared};
use crate::sync::lock;
use crate::transport::{Descriptors, Received, Socket, Wait};

/// What negotiation settled.
pub(crate) struct Session {
    pub(crate) file: File,
    pub(crate) dialect: Dialect,
    /// Descriptors in one message that the client takes.
    pub(crate) client_fds: usize,
    pub(crate) dma: Arc<DmaChannel>,
    pub(crate) eventfds: EventFds,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client closed it")]
    Closed,
    #[error("the client closed it in the middle of a message")]
    CutShort,
    #[error("the stream has no meaning any more: {0}")]
    Stream(#[from] BadSize),
    #[error("negotiation failed: {0}")]
    Refused(String),
    #[error("the socket failed")]
    Socket(#[from] Errno),
    #[error("it answers commands that were never sent")]
    StrayReplies,
    #[error("the device was taken away")]
    Revoked,
    #[error("the server stops serving it")]
    Stopped,
}

/// What a connection's thread made of what had arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handled {
    /// There was no whole message.
    Nothing,
    /// Every message.
    All,
    /// There are more: the client does not take replies, or the way of handling changes.
    Part,
}

/// Counters of a connection. All but `errors` are written by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    messages: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    errors: AtomicU64,
    stray_replies: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.store(counter.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
}

/// One connection as it is at a moment, for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Who is at the other end, as the kernel says.
    pub owner: Owner,
    /// Whose habits it has; `None` before negotiation.
    pub dialect: Option<Dialect>,
    /// Messages received.
    pub messages: u64,
    /// Bytes received in whole or partial messages.
    pub bytes_received: u64,
    /// Bytes of replies.
    pub bytes_sent: u64,
    /// Commands refused.
    pub errors: u64,
}

pub(crate) struct Connection {
    /// Never used twice by one process.
    number: u64,
    link: Arc<Link>,
    shared: Arc<Shared>,
    owner: Owner,
    session: OnceLock<Session>,
    counters: Counters,
    pub(crate) quiet: Quiet,
    /// Last, so that the connection counts until its file is released.
    _counted: Counted,
}

impl Connection {
    pub(crate) fn new(socket: Socket, shared: Arc<Shared>) -> Result<Self, Errno> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let owner = socket.owner(vfiod_core::ConnectionId(number))?;
        Ok(Self {
            number,
            _counted: Counted::new(&shared),
            link: Arc::new(Link::new(socket)),
            shared,
            owner,
            session: OnceLock::new(),
            counters: Counters::default(),
            quiet: Quiet::default(),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.get()
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ConnectionInfo {
            owner: self.owner.clone(),
            dialect: self.session().map(|session| session.dialect),
            messages: read(&self.counters.messages),
            bytes_received: read(&self.counters.received),
            bytes_sent: read(&self.counters.sent),
            errors: read(&self.counters.errors),
        }
    }

    /// Whether the client has hung up, though what it sent before may not be handled yet.
    pub(crate) fn is_departing(&self) -> bool {
        self.link.is_ended() || self.link.socket().peer_has_closed()
    }

    /// Ends the connection from outside: its thread sees it, and lets go of it.
    pub(crate) fn end(&self) {
        self.link.end();
        if let Some(session) = self.session() {
            session.dma.end();
        }
    }

    /// Negotiation succeeded.
    pub(crate) fn begin(&self, session: Session) -> Result<(), End> {
        self.session
            .set(session)
            .map_err(|_| End::Refused("VERSION was negotiated before".to_owned()))
    }

    fn limit(&self) -> usize {
        if self.session.get().is_some() { MAX_MESSAGE } else { MAX_FIRST_MESSAGE }
    }

    fn run(self: &Arc<Self>, watch: &Watch, worker: &mut Worker) -> Result<Interest, End> {
        worker.replies.lend_to(self.number);
        worker.inbox.append(&mut lock(self.link.incoming()).rest);
        let mut residence = None;
        let outcome = self.run_until_idle(watch, worker, &mut residence);
        if outcome.is_ok() && residence.is_some() {
            self.link.socket().bound_receive(true)?;
        }
        drop(residence);
        lock(self.link.incoming()).rest = worker.inbox.take_rest();
        worker.replies.clear();
        outcome
    }

    fn run_until_idle<'a>(
        self: &Arc<Self>,
        watch: &'a Watch,
        worker: &mut Worker,
        residence: &mut Option<Residence<'a>>,
    ) -> Result<Interest, End> {
        let pool = watch.pool();
        let mut streak = 0;
        loop {
            if pool.is_stopping() || self.link.is_ended() {
                return Err(End::Stopped);
            }
            let pressed = pool.is_pressed() || self.shared.gate.is_crowded();
            let wait = if pressed { Wait::No } else { Wait::Linger };
            if self.link.is_blocked() && self.link.flush(wait)? {
                return Ok(Interest::Write);
            }
            let handled = self.handle_arrived(pool, worker, wait)?;
            // Only once the client was told so in an answer.
            let revoked = |session: &Session| session.file.is_revoked();
            if handled != Handled::Nothing && self.session.get().is_some_and(revoked) {
                return Err(End::Revoked);
            }
            match handled {
                Handled::Part => continue,
                // Others wait for a thread: they shall have their turn.
                Handled::All if pressed => return Ok(Interest::Read),
                Handled::All | Handled::Nothing => {}
            }
            if streak == BUSY_STREAK && residence.is_none() && self.shared.gate.has_room() {
                *residence = watch.settle(self.clone());
                if residence.is_some() {
                    // Saves the kernel a timer for each round trip.
                    self.link.socket().bound_receive(false)?;
                }
            }
            match self.receive(&mut worker.inbox, wait)? {
                Received::Bytes(bytes) => {
                    count(&self.counters.received, bytes);
                    streak += 1;
                }
                Received::Nothing => return Ok(Interest::Read),
                Received::Eof => {
                    self.link.closed_by_peer();
                    let cut_short = !worker.inbox.is_empty();
                    return Err(if cut_short { End::CutShort } else { End::Closed });
                }
            }
        }
    }

    /// Receives: polls for a while if so configured, then sleeps for as long as `wait` allows.
    fn receive(&self, inbox: &mut Inbox, wait: Wait) -> Result<Received, Errno> {
        let poll = self.shared.poll;
        if !poll.is_zero() {
            let start = Instant::now();
            while start.elapsed() < poll {
                match inbox.fill(self.link.socket(), CHUNK, Wait::No)? {
                    Received::Nothing => std::hint::spin_loop(),
                    received => return Ok(received),
                }
            }
        }
        inbox.fill(self.link.socket(), CHUNK, wait)
    }

    /// Handles every whole message that has arrived, and sends the replies.
    fn handle_arrived(
        self: &Arc<Self>,
        pool: &Pool,
        worker: &mut Worker,
        wait: Wait,
    ) -> Result<Handled, End> {
        if self.shares_socket() {
            return self.handle_sharing(pool, worker, wait);
        }
        let Worker { inbox, replies } = worker;
        let mut handled = Handled::Nothing;
        let outcome = loop {
            let mut message = match inbox.next(self.limit()) {
                Ok(Some(message)) => message,
                Ok(None) => break Ok(()),
                Err(bad) => break Err(bad.into()),
            };
            handled = Handled::All;
            let descriptors = std::mem::take(&mut message.descriptors);
            let payload = inbox.payload(&message);
            if let Err(end) = self.handle(pool, &message.header, payload, descriptors, replies) {
                break Err(end);
            }
            if self.must_stop(replies, wait)? || self.shares_socket() {
                handled = Handled::Part;
                break Ok(());
            }
        };
        self.send(replies, wait)?;
        outcome.map(|()| handled)
    }

    /// Whether DMA messages travel on the same socket. Then, while a command is handled, whoever
    /// waits for the answer to one may read that socket; see [`crate::dma_channel`].
    fn shares_socket(&self) -> bool {
        self.session.get().is_some_and(|session| session.dma.shares_socket())
    }

    /// As [`Connection::handle_arrived`], where others may read the socket meanwhile: what is not
    /// a whole message yet is left to them, and what they find is handled afterwards.
    fn handle_sharing(
        self: &Arc<Self>,
        pool: &Pool,
        worker: &mut Worker,
        wait: Wait,
    ) -> Result<Handled, End> {
        let Worker { inbox, replies } = worker;
        let limit = self.limit();
        inbox.check(limit)?;
        {
            let mut incoming = lock(self.link.incoming());
            if incoming.deferred.is_empty() && !inbox.has_message(limit) {
                return Ok(Handled::Nothing);
            }
            inbox.move_tail(limit, &mut incoming.rest);
            incoming.set_busy();
        }
        let outcome = self.handle_batch(pool, inbox, replies, wait);
        let sent = self.link.flush(wait);
        let mut incoming = lock(self.link.incoming());
        incoming.set_reading();
        // What did not get its turn goes first next time.
        let mut left = Vec::new();
        while let Ok(Some(message)) = inbox.next(MAX_MESSAGE) {
            left.push(message.defer(inbox));
        }
        incoming.defer_first(left);
        inbox.append(&mut incoming.rest);
        let handled = if incoming.deferred.is_empty() { Handled::All } else { Handled::Part };
        drop(incoming);
        outcome?;
        gone_is_no_error(sent.map(|_| ()))?;
        Ok(handled)
    }

    fn handle_batch(
        self: &Arc<Self>,
        pool: &Pool,
        inbox: &mut Inbox,
        replies: &mut Replies,
        wait: Wait,
    ) -> Result<(), End> {
        if self.session.get().is_some_and(|session| session.dma.is_waiting()) {
            self.deliver_replies(inbox);
        }
        loop {
            let next = lock(self.link.incoming()).next_deferred();
            let Some(Deferred { header, payload, descriptors }) = next else { break };
            self.handle(pool, &header, &payload, descriptors, replies)?;
            if self.set_aside(replies, wait)? {
                return Ok(());
            }
        }
        while let Some(mut message) = inbox.next(self.limit())? {
            let descriptors = std::mem::take(&mut message.descriptors);
            let payload = inbox.payload(&message);
            self.handle(pool, &message.header, payload, descriptors, replies)?;
            if self.set_aside(replies, wait)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Puts replies where they go out in front of the next DMA message. `true` if the client does
    /// not take what was sent before.
    fn set_aside(&self, replies: &mut Replies, wait: Wait) -> Result<bool, Errno> {
        if replies.len() > MAX_SET_ASIDE {
            self.send(replies, wait)?;
        } else if !replies.is_empty() {
            count(&self.counters.sent, replies.len());
            let waiting = self.link.queue(replies.bytes());
            replies.clear();
            if waiting > MAX_SET_ASIDE {
                gone_is_no_error(self.link.flush(wait).map(|_| ()))?;
            }
        }
        Ok(self.link.is_blocked())
    }

    /// Another thread waits for a reply that may be behind commands: finds it first.
    fn deliver_replies(&self, inbox: &mut Inbox) {
        let mut commands = Vec::new();
        while let Ok(Some(message)) = inbox.next(self.limit()) {
            if let Kind::Reply(status) = message.header.kind() {
                self.deliver(&message.header, status, inbox.payload(&message));
            } else {
                commands.push(message.defer(inbox));
            }
        }
        let mut incoming = lock(self.link.incoming());
        for command in commands {
            incoming.defer(command);
        }
    }

    /// A reply to one of our commands. `false` if the client makes them up all the time.
    fn deliver(&self, header: &Header, status: Result<(), u32>, payload: &[u8]) -> bool {
        let expected =
            self.session.get().is_some_and(|session| session.dma.deliver(header, status, payload));
        if !expected {
            self.quiet.warn(|more| {
                tracing::warn!(device = self.shared.device.name(), more, "reply to no command");
            });
            count(&self.counters.stray_replies, 1);
        }
        self.counters.stray_replies.load(Ordering::Relaxed) <= MAX_STRAY_REPLIES
    }

    fn must_stop(&self, replies: &mut Replies, wait: Wait) -> Result<bool, Errno> {
        if replies.len() < REPLY_BATCH {
            return Ok(false);
        }
        self.send(replies, wait)?;
        Ok(self.link.is_blocked())
    }

    /// Sends the replies collected.
    pub(crate) fn send(&self, replies: &mut Replies, wait: Wait) -> Result<(), Errno> {
        if replies.is_empty() {
            return Ok(());
        }
        count(&self.counters.sent, replies.len());
        let sent = self.link.send(replies.bytes(), wait);
        replies.clear();
        gone_is_no_error(sent)
    }

    /// Sends a message of its own, with descriptors; `EAGAIN` where the client does not take what
    /// was sent before.
    pub(crate) fn send_with_fds(&self, message: &[u8], fds: &[OwnedFd]) -> Result<(), Errno> {
        count(&self.counters.sent, message.len());
        self.link.send_with_fds(message, fds)
    }

    fn handle(
        self: &Arc<Self>,
        pool: &Pool,
        header: &Header,
        payload: &[u8],
        descriptors: Descriptors,
        replies: &mut Replies,
    ) -> Result<(), End> {
        count(&self.counters.messages, 1);
        let kind = header.kind();
        let posted = match kind {
            Kind::Command => false,
            Kind::Posted => true,
            Kind::Reply(status) => {
                let known = self.deliver(header, status, payload);
                return if known { Ok(()) } else { Err(End::StrayReplies) };
            }
            Kind::Unknown if self.session.get().is_some() => {
                self.refuse(header, None, Errno::INVAL, &"unknown message type", replies);
                return Ok(());
            }
            // Refused below: the first message must be VERSION.
            Kind::Unknown => false,
        };
        let before = replies.len();
        let outcome = self.command(pool, header, payload, descriptors, replies);
        if posted {
            // Answering would destroy the stream, even with an error.
            replies.truncate(before);
        }
        outcome
    }

    fn command(
        self: &Arc<Self>,
        pool: &Pool,
        header: &Header,
        payload: &[u8],
        descriptors: Descriptors,
        replies: &mut Replies,
    ) -> Result<(), End> {
        let command = Command::from_number(header.command);
        let Some(session) = self.session.get() else {
            return crate::negotiate::first_message(self, command, header, payload, replies);
        };
        let Some(command) = command else {
            let what = format!("unknown command {}", header.command);
            self.refuse(header, None, Errno::NOSYS, &what, replies);
            return Ok(());
        };
        session.dma.command_begins();
        crate::dispatch::command(
            self,
            session,
            pool,
            command,
            header,
            payload,
            descriptors,
            replies,
        );
        Ok(())
    }

    /// Answers with an errno, and says so in the log, at most once a second.
    pub(crate) fn refuse(
        &self,
        header: &Header,
        command: Option<Command>,
        errno: Errno,
        what: &dyn std::fmt::Display,
        replies: &mut Replies,
    ) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        let dialect = self.session.get().map_or(Dialect::Standard, |session| session.dialect);
        let padding = command.map_or(0, |command| dialect.error_padding(command));
        replies.error(header, errno.raw_os_error().unsigned_abs(), padding);
        self.quiet.warn(|more| {
            let device = self.shared.device.name();
            let command = command.map_or("message", Command::name);
            tracing::warn!(device, command, %errno, more, "refused: {what}");
        });
    }

    fn ended(&self, end: &End) {
        self.end();
        let device = self.shared.device.name();
        match end {
            End::Closed | End::Stopped | End::Revoked => {
                tracing::info!(device, "connection ended: {end}");
            }
            End::CutShort
            | End::Stream(_)
            | End::StrayReplies
            | End::Refused(_)
            | End::Socket(_) => {
                tracing::warn!(device, "connection ended: {end}");
            }
        }
    }
}

/// The end of the stream tells of a client that has gone; to send to it is no error.
fn gone_is_no_error(sent: Result<(), Errno>) -> Result<(), Errno> {
    match sent {
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        sent => sent,
    }
}

impl Source for Connection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.socket().as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        let source: Arc<dyn Source> = self.clone();
        let shared = self.shared.clone();
        let Some(turn) = shared.gate.enter(watch, source) else { return };
        let parked = self
            .run(watch, worker)
            .and_then(|interest| watch.park(self.clone(), interest).map_err(End::Socket));
        if let Err(end) = parked {
            self.ended(&end);
            watch.forget();
            // Releases the file, as long as the device has this thread.
            drop(self);
        }
        drop(turn);
    }

    fn interrupt(&self) {
        self.end();
    }
}
