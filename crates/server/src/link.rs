//! One socket and what is under way on it, shared by the thread that serves it and those that
//! wait for DMA messages.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use rustix::io::Errno;
use vfiod_wire::Kind;

use crate::dma_channel::DmaChannel;
use crate::inbox::{Deferred, Inbox, SMALL_CHUNK};
use crate::limits::{MAX_DEFERRED, MAX_DEFERRED_FDS, MAX_MESSAGE};
use crate::outbox::Outbox;
use crate::sync::lock;
use crate::transport::{Received, Socket, Wait};

/// A socket with its two directions.
pub(crate) struct Link {
    socket: Socket,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outbox>,
    ended: AtomicBool,
}

/// What has arrived and is not handled.
#[derive(Default)]
pub(crate) struct Incoming {
    /// Commands to be handled before anything in `rest`.
    pub(crate) deferred: VecDeque<Deferred>,
    deferred_bytes: usize,
    deferred_fds: usize,
    /// The start of a message, or all that was left when the connection was parked.
    pub(crate) rest: Inbox,
    reader: Reader,
}

/// The thread whose task it is to read a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reader(Option<ThreadId>);

impl Reader {
    /// Whether it is handling commands, so that others may read in its place.
    pub(crate) fn is_busy(self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn is_this_thread(self) -> bool {
        self.0 == Some(std::thread::current().id())
    }
}

impl Incoming {
    pub(crate) fn set_busy(&mut self) {
        self.reader = Reader(Some(std::thread::current().id()));
    }

    pub(crate) fn set_reading(&mut self) {
        self.reader = Reader(None);
    }

    pub(crate) fn defer(&mut self, message: Deferred) {
        self.deferred_bytes += message.payload.len();
        self.deferred_fds += message.descriptors.fds.len();
        self.deferred.push_back(message);
    }

    pub(crate) fn next_deferred(&mut self) -> Option<Deferred> {
        let message = self.deferred.pop_front()?;
        self.deferred_bytes -= message.payload.len();
        self.deferred_fds -= message.descriptors.fds.len();
        Some(message)
    }

    /// Puts commands in front of those deferred.
    pub(crate) fn defer_first(&mut self, messages: Vec<Deferred>) {
        for message in messages.into_iter().rev() {
            self.deferred_bytes += message.payload.len();
            self.deferred_fds += message.descriptors.fds.len();
            self.deferred.push_front(message);
        }
    }

    fn is_full(&self) -> bool {
        self.deferred_bytes > MAX_DEFERRED
            || self.deferred.len() > 65536
            || self.deferred_fds > MAX_DEFERRED_FDS
    }
}

impl Link {
    pub(crate) fn new(socket: Socket) -> Self {
        Self {
            socket,
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn incoming(&self) -> &Mutex<Incoming> {
        &self.incoming
    }

    pub(crate) fn reader(&self) -> Reader {
        lock(&self.incoming).reader
    }

    /// Sends a whole message, or keeps what the peer does not take in time.
    pub(crate) fn send(&self, message: &[u8], wait: Wait) -> Result<(), Errno> {
        lock(&self.outgoing).send(&self.socket, message, wait)
    }

    /// Keeps a whole message to be sent in front of the next, at the latest by a flush.
    /// How many bytes are kept.
    pub(crate) fn queue(&self, message: &[u8]) -> usize {
        let mut outgoing = lock(&self.outgoing);
        outgoing.queue(message);
        outgoing.len()
    }

    /// Sends a whole message with descriptors.
    pub(crate) fn send_with_fds(&self, message: &[u8], fds: &[OwnedFd]) -> Result<(), Errno> {
        lock(&self.outgoing).send_with_fds(&self.socket, message, fds, Wait::Linger)
    }

    /// Tries to send what the peer did not take; `true` if it still does not.
    pub(crate) fn flush(&self, wait: Wait) -> Result<bool, Errno> {
        let mut outgoing = lock(&self.outgoing);
        outgoing.flush(&self.socket, wait)?;
        Ok(outgoing.is_blocked())
    }

    pub(crate) fn is_blocked(&self) -> bool {
        lock(&self.outgoing).is_blocked()
    }

    /// Marks the end: nobody is to wait for this peer any more, and the peer is told.
    pub(crate) fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.socket.shutdown();
        }
    }

    /// Marks the end where the peer itself has closed the connection.
    pub(crate) fn closed_by_peer(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Reads what has arrived on a socket that its reader is too busy to read: hands replies to
    /// `channel` and defers commands. While the reader reads itself, nothing.
    pub(crate) fn pump(&self, channel: &DmaChannel) {
        let mut incoming = lock(&self.incoming);
        if !incoming.reader.is_busy() || incoming.is_full() {
            return;
        }
        let Incoming { rest, .. } = &mut *incoming;
        match rest.fill(&self.socket, SMALL_CHUNK, Wait::No) {
            Ok(Received::Bytes(_) | Received::Nothing) => {}
            Ok(Received::Eof) | Err(_) => self.closed_by_peer(),
        }
        let mut inbox = std::mem::take(rest);
        // A bad size stays in front of `rest`, where the reader finds it.
        while let Ok(Some(message)) = inbox.next(MAX_MESSAGE) {
            match message.header.kind() {
                Kind::Reply(status) => {
                    channel.deliver(&message.header, status, inbox.payload(&message));
                }
                _ => incoming.defer(message.defer(&inbox)),
            }
        }
        incoming.rest = inbox;
    }

    /// Reads what has arrived on a socket that has no reader (the second one): only replies have
    /// a meaning there. `false` if there was something else.
    pub(crate) fn pump_replies(&self, channel: &DmaChannel) -> bool {
        let mut incoming = lock(&self.incoming);
        let inbox = &mut incoming.rest;
        match inbox.fill(&self.socket, SMALL_CHUNK, Wait::No) {
            Ok(Received::Bytes(_) | Received::Nothing) => {}
            Ok(Received::Eof) | Err(_) => self.closed_by_peer(),
        }
        loop {
            match inbox.next(MAX_MESSAGE) {
                Ok(Some(message)) => {
                    let Kind::Reply(status) = message.header.kind() else { return false };
                    channel.deliver(&message.header, status, inbox.payload(&message));
                }
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
