//! DMA by messages: memory of the client that it gave no descriptor for.
//!
//! A request goes out on the connection's own socket, or on the second one where the client
//! offered it, and the thread that asked waits for the reply. On the own socket the reply may be
//! behind commands; those are put aside and handled in their turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use vfiod_core::dma::DmaPeer;
use vfiod_core::{Errno, Error, Result};
use vfiod_wire::payload::DmaAccess;
use vfiod_wire::{Command, HEADER_LEN, Header};
use zerocopy::{FromBytes, IntoBytes};

use crate::link::Link;
use crate::sync::lock;
use crate::transport::Wait;

/// How long a peer may take to answer. QEMU gives up on its own commands after five seconds,
/// and one of them may be waiting for this.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long all DMA messages of one command may take together, for the same reason.
const COMMAND_BUDGET: Duration = Duration::from_secs(4);
/// How long a peer may take that has left a message without an answer before: devices with much
/// to transfer should fail soon, not once for each piece.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_millis(100);
/// How long another thread's progress is waited for before looking again.
const SLICE: Duration = Duration::from_millis(2);

type Answer = std::result::Result<Vec<u8>, u32>;

/// The way to a client's memory by messages.
pub(crate) struct DmaChannel {
    link: Arc<Link>,
    /// Whether `link` is the second socket, which nobody else reads.
    twin: bool,
    /// Most bytes in one message that the client takes.
    chunk: usize,
    waiting: Mutex<Waiting>,
    outstanding: AtomicUsize,
    arrived: Condvar,
    used: AtomicBool,
    /// Counts the commands that the connection's thread has begun.
    commands: AtomicU64,
    unresponsive: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    next_id: u16,
    /// Messages without an answer taken, by id.
    messages: HashMap<u16, Pending>,
    /// A command that has waited, by its count, and when it must stop.
    budget: Option<(u64, Instant)>,
}

struct Pending {
    command: Command,
    answer: Option<Answer>,
}

impl DmaChannel {
    pub(crate) fn new(link: Arc<Link>, twin: bool, client_limit: u64) -> Self {
        let chunk = client_limit.clamp(1, crate::limits::MAX_DATA as u64) as usize;
        Self {
            link,
            twin,
            chunk,
            waiting: Mutex::default(),
            outstanding: AtomicUsize::new(0),
            arrived: Condvar::new(),
            used: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            unresponsive: AtomicBool::new(false),
        }
    }

    /// Whether any window depends on it, so that a command may have to wait for the client.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether messages travel on the connection's own socket, so that its thread may find it
    /// read by another.
    pub(crate) fn shares_socket(&self) -> bool {
        !self.twin && self.is_used()
    }

    /// From now on windows depend on it.
    pub(crate) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether a reply is being waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) > 0
    }

    /// The connection's thread begins a command: it has all the time that one may take.
    pub(crate) fn command_begins(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody is to wait for this client any more.
    pub(crate) fn end(&self) {
        if self.twin {
            self.link.end();
        }
        if self.is_waiting() {
            self.arrived.notify_all();
        }
    }

    /// A reply came. `false` if nobody asked for it.
    pub(crate) fn deliver(
        &self,
        header: &Header,
        status: std::result::Result<(), u32>,
        payload: &[u8],
    ) -> bool {
        let mut waiting = lock(&self.waiting);
        match waiting.messages.get_mut(&header.id) {
            Some(pending)
                if pending.answer.is_none() && pending.command as u16 == header.command =>
            {
                pending.answer = Some(status.map(|()| payload.to_vec()));
                drop(waiting);
                self.unresponsive.store(false, Ordering::Relaxed);
                self.arrived.notify_all();
                true
            }
            _ => false,
        }
    }

    /// Until when a message that is sent now may wait.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let patience = match self.unresponsive.load(Ordering::Relaxed) {
            true => UNRESPONSIVE_TIMEOUT,
            false => TIMEOUT,
        };
        if self.twin || !self.link.reader().is_this_thread() {
            return now + patience;
        }
        let command = self.commands.load(Ordering::Relaxed);
        let mut waiting = lock(&self.waiting);
        let until = match waiting.budget {
            Some((same, until)) if same == command => until,
            _ => now + COMMAND_BUDGET,
        };
        waiting.budget = Some((command, until));
        until.min(now + patience)
    }

    fn ask(&self, command: Command, access: &DmaAccess, data: &[u8]) -> Result<Vec<u8>> {
        let deadline = self.deadline();
        let id = self.claim_id(command)?;
        let header = Header::command(id, command, DmaAccess::LEN + data.len(), false);
        let mut message = Vec::with_capacity(HEADER_LEN + DmaAccess::LEN + data.len());
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(access.as_bytes());
        message.extend_from_slice(data);
        let answer = self
            .link
            .send(&message, Wait::No)
            .map_err(|errno| Error::new(errno, "cannot send a DMA message to the client"))
            .and_then(|()| self.wait_for(id, deadline));
        lock(&self.waiting).messages.remove(&id);
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
        answer
    }

    fn claim_id(&self, command: Command) -> Result<u16> {
        let mut waiting = lock(&self.waiting);
        if waiting.messages.len() >= 1024 {
            return Err(Error::new(Errno::BUSY, "1024 DMA messages wait for the client already"));
        }
        let id = loop {
            let id = waiting.next_id;
            waiting.next_id = id.wrapping_add(1);
            if !waiting.messages.contains_key(&id) {
                break id;
            }
        };
        waiting.messages.insert(id, Pending { command, answer: None });
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        Ok(id)
    }

    /// Waits for an answer: reads the socket itself where the thread that otherwise reads it is
    /// busy with a command (perhaps the one that needs this answer).
    fn wait_for(&self, id: u16, deadline: Instant) -> Result<Vec<u8>> {
        loop {
            let mut waiting = lock(&self.waiting);
            let pending = waiting.messages.get_mut(&id);
            match pending.map(|pending| pending.answer.take()) {
                Some(Some(Ok(payload))) => return Ok(payload),
                Some(Some(Err(errno))) => return Err(refused(errno)),
                Some(None) => {}
                None => return Err(Error::new(Errno::IO, "a DMA message's answer was lost")),
            }
            if self.link.is_ended() {
                return Err(Error::new(Errno::NOTCONN, "the client went away during DMA"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.unresponsive.store(true, Ordering::Relaxed);
                return Err(Error::new(Errno::TIMEDOUT, "the client did not answer a DMA message"));
            }
            let reader = self.link.reader();
            let reads = self.twin || reader.is_busy();
            if !reads && !self.link.is_blocked() {
                drop(self.arrived.wait_timeout(waiting, left.min(SLICE)));
                continue;
            }
            drop(waiting);
            // Where another thread may take over the reading it must be noticed soon.
            let alone = self.twin || reader.is_this_thread();
            self.poll(reads, if alone { left.min(Duration::from_millis(100)) } else { SLICE });
            self.link
                .flush(Wait::No)
                .map_err(|errno| Error::new(errno, "cannot send a DMA message to the client"))?;
            if self.twin {
                if !self.link.pump_replies(self) {
                    self.link.end();
                    tracing::warn!("the second socket was closed: no reply, but something else");
                }
            } else if reads {
                self.link.pump(self);
            }
        }
    }

    /// Waits for something to read, or for room for what the client has not taken.
    fn poll(&self, reads: bool, wait: Duration) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let mut events = if reads { PollFlags::IN } else { PollFlags::empty() };
        if self.link.is_blocked() {
            events |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(self.link.socket(), events)];
        // Whatever it says, nothing waits afterwards.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }
}

fn refused(errno: u32) -> Error {
    let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
    let errno = errno.map_or(Errno::IO, Errno::from_raw_os_error);
    Error::new(errno, "the client refused a DMA message")
}

fn check(payload: &[u8], access: &DmaAccess) -> Result<()> {
    let same = match DmaAccess::read_from_prefix(payload) {
        Ok((reply, _)) => reply == *access,
        // The specification's table gives the reply to DMA_WRITE a count of 4 bytes.
        Err(_) => payload.get(..8) == Some(access.address.as_bytes()) && payload.len() == 12,
    };
    if same {
        Ok(())
    } else {
        Err(Error::new(Errno::IO, "the client's answer to a DMA message is about something else"))
    }
}

impl DmaPeer for DmaChannel {
    fn dma_read(&self, iova: u64, data: &mut [u8]) -> Result<()> {
        let mut address = iova;
        for part in data.chunks_mut(self.chunk) {
            let access = DmaAccess { address, count: part.len() as u64 };
            let payload = self.ask(Command::DmaRead, &access, &[])?;
            check(&payload, &access)?;
            let bytes = payload.get(DmaAccess::LEN..).filter(|bytes| bytes.len() == part.len());
            let bytes = bytes.ok_or_else(|| {
                Error::new(Errno::IO, "the client's answer to DMA_READ has the wrong length")
            })?;
            part.copy_from_slice(bytes);
            address = address.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    fn dma_write(&self, iova: u64, data: &[u8]) -> Result<()> {
        let mut address = iova;
        for part in data.chunks(self.chunk) {
            let access = DmaAccess { address, count: part.len() as u64 };
            check(&self.ask(Command::DmaWrite, &access, part)?, &access)?;
            address = address.wrapping_add(part.len() as u64);
        }
        Ok(())
    }
}
