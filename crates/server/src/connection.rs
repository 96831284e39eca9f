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

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustix::io::Errno;
use vfiod_core::{File, Owner};
use vfiod_wire::{Command, Header, Kind};

use crate::dialect::Dialect;
use crate::dma_channel::DmaChannel;
use crate::eventfds::EventFds;
use crate::inbox::{BadSize, Deferred, Inbox};
use crate::limits::{MAX_FIRST_MESSAGE, MAX_MESSAGE, Quiet, REPLY_BATCH};
use crate::link::Link;
use crate::outbox::Replies;
use crate::pool::{Interest, Pool, Source, Watch, Worker};
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
    #[error("the server stops")]
    Stopped,
}

/// What to do with a connection that has nothing more to do now.
enum Park {
    Until(Interest),
    Ended(End),
}

/// Counters of a connection, for people.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU64,
    pub(crate) errors: AtomicU64,
}

pub(crate) struct Connection {
    link: Arc<Link>,
    shared: Arc<Shared>,
    owner: Owner,
    session: OnceLock<Session>,
    pub(crate) counters: Counters,
    pub(crate) quiet: Quiet,
    /// Last, so that the connection counts until its file is released.
    _counted: Counted,
}

impl Connection {
    pub(crate) fn new(socket: Socket, shared: Arc<Shared>) -> Result<Self, Errno> {
        let owner = socket.owner()?;
        Ok(Self {
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

    /// Negotiation succeeded.
    pub(crate) fn begin(&self, session: Session) -> Result<(), End> {
        self.session
            .set(session)
            .map_err(|_| End::Refused("VERSION was negotiated before".to_owned()))
    }

    fn limit(&self) -> usize {
        if self.session.get().is_some() { MAX_MESSAGE } else { MAX_FIRST_MESSAGE }
    }

    fn run(self: &Arc<Self>, pool: &Pool, worker: &mut Worker) -> Park {
        std::mem::swap(&mut worker.inbox, &mut lock(self.link.incoming()).rest);
        match self.run_until_idle(pool, worker) {
            Ok(interest) => {
                let rest = worker.inbox.split_rest();
                lock(self.link.incoming()).rest = rest;
                Park::Until(interest)
            }
            Err(end) => {
                worker.inbox.split_rest();
                Park::Ended(end)
            }
        }
    }

    fn run_until_idle(self: &Arc<Self>, pool: &Pool, worker: &mut Worker) -> Result<Interest, End> {
        loop {
            if pool.is_stopping() || self.link.is_ended() {
                return Err(End::Stopped);
            }
            let wait = if pool.is_pressed() { Wait::No } else { Wait::Linger };
            if self.link.is_blocked() && self.link.flush(wait)? {
                return Ok(Interest::Write);
            }
            if !self.handle_arrived(pool, worker, wait)? {
                continue;
            }
            worker.inbox.check(self.limit())?;
            match self.receive(&mut worker.inbox, wait)? {
                Received::Bytes(_) => {}
                Received::Nothing => return Ok(Interest::Read),
                Received::Eof if worker.inbox.is_empty() => return Err(End::Closed),
                Received::Eof => return Err(End::CutShort),
            }
        }
    }

    /// Receives: polls for a while if so configured, then sleeps for as long as `wait` allows.
    fn receive(&self, inbox: &mut Inbox, wait: Wait) -> Result<Received, Errno> {
        let poll = self.shared.poll;
        if !poll.is_zero() {
            let start = Instant::now();
            while start.elapsed() < poll {
                match inbox.fill(self.link.socket(), Wait::No)? {
                    Received::Nothing => std::hint::spin_loop(),
                    received => return Ok(received),
                }
            }
        }
        inbox.fill(self.link.socket(), wait)
    }

    /// Handles every whole message that has arrived, and sends the replies. `false` if it had to
    /// stop because the client does not take replies.
    fn handle_arrived(
        self: &Arc<Self>,
        pool: &Pool,
        worker: &mut Worker,
        wait: Wait,
    ) -> Result<bool, End> {
        let Worker { inbox, replies } = worker;
        {
            let mut incoming = lock(self.link.incoming());
            incoming.rest = inbox.split_tail(self.limit());
            incoming.set_busy();
        }
        let handled = self.handle_batch(pool, inbox, replies, wait);
        let sent = self.send(replies, wait);
        let mut incoming = lock(self.link.incoming());
        incoming.set_reading();
        // What did not get its turn goes first next time.
        let mut left = Vec::new();
        while let Ok(Some(message)) = inbox.next(MAX_MESSAGE) {
            left.push(message.defer(inbox));
        }
        incoming.defer_first(left);
        std::mem::swap(inbox, &mut incoming.rest);
        handled?;
        sent?;
        Ok(incoming.deferred.is_empty())
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
            if self.must_stop(replies, wait)? {
                return Ok(());
            }
        }
        while let Some(message) = inbox.next(self.limit())? {
            let mut message = message;
            let descriptors = std::mem::take(&mut message.descriptors);
            let payload = inbox.payload(&message);
            self.handle(pool, &message.header, payload, descriptors, replies)?;
            if self.must_stop(replies, wait)? {
                return Ok(());
            }
        }
        // Commands that arrived while one of those waited for DMA messages.
        if !lock(self.link.incoming()).deferred.is_empty() {
            return self.handle_batch(pool, inbox, replies, wait);
        }
        Ok(())
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

    fn deliver(&self, header: &Header, status: Result<(), u32>, payload: &[u8]) {
        let expected =
            self.session.get().is_some_and(|session| session.dma.deliver(header, status, payload));
        if !expected {
            self.quiet.warn(|more| {
                tracing::warn!(device = self.shared.device.name(), more, "reply to no command");
            });
        }
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
        let sent = self.link.send(replies.bytes(), wait);
        replies.clear();
        match sent {
            // The end of the stream tells the rest.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            sent => sent,
        }
    }

    fn handle(
        self: &Arc<Self>,
        pool: &Pool,
        header: &Header,
        payload: &[u8],
        descriptors: Descriptors,
        replies: &mut Replies,
    ) -> Result<(), End> {
        self.counters.messages.fetch_add(1, Ordering::Relaxed);
        let kind = header.kind();
        let posted = match kind {
            Kind::Command => false,
            Kind::Posted => true,
            Kind::Reply(status) => {
                self.deliver(header, status, payload);
                return Ok(());
            }
            Kind::Unknown => {
                self.refuse(header, None, Errno::INVAL, &"unknown message type", replies);
                return Ok(());
            }
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
        if session.dma.is_used() {
            // The client may serve DMA only after it has its replies.
            self.send(replies, Wait::Linger)?;
        }
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
        self.link.end();
        let device = self.shared.device.name();
        match end {
            End::Closed | End::Stopped => tracing::info!(device, "connection ended: {end}"),
            End::CutShort | End::Stream(_) | End::Refused(_) | End::Socket(_) => {
                tracing::warn!(device, "connection ended: {end}");
            }
        }
    }
}

impl Source for Connection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.socket().as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        let parked = match self.run(watch.pool(), worker) {
            Park::Until(interest) => watch.park(&self, interest).map_err(End::Socket),
            Park::Ended(end) => Err(end),
        };
        if let Err(end) = parked {
            self.ended(&end);
            watch.forget();
        }
    }
}
