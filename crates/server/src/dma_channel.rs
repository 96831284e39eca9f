//! DMA by messages: memory of the client that it gave no descriptor for.
//!
//! A request goes out on the connection's own socket, or on the second one where the client
//! offered it, and the thread that asked waits for the reply. On the own socket the reply may be
//! behind commands; those are put aside and handled in their turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    /// Answers by message id; `None` while it has not come.
    waiting: Mutex<Waiting>,
    outstanding: AtomicUsize,
    arrived: Condvar,
    used: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    next_id: u16,
    answers: HashMap<u16, Option<Answer>>,
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
        }
    }

    /// Whether any window depends on it, so that a command may have to wait for the client.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// From now on windows depend on it.
    pub(crate) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether a reply is being waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) > 0
    }

    /// A reply came. `false` if nobody asked for it.
    pub(crate) fn deliver(
        &self,
        header: &Header,
        status: std::result::Result<(), u32>,
        payload: &[u8],
    ) -> bool {
        let mut waiting = lock(&self.waiting);
        match waiting.answers.get_mut(&header.id) {
            Some(slot @ None) => {
                *slot = Some(status.map(|()| payload.to_vec()));
                drop(waiting);
                self.arrived.notify_all();
                true
            }
            _ => false,
        }
    }

    fn ask(&self, command: Command, access: &DmaAccess, data: &[u8]) -> Result<Vec<u8>> {
        let deadline = Instant::now() + TIMEOUT;
        let id = self.claim_id()?;
        let header = Header::command(id, command, DmaAccess::LEN + data.len(), false);
        let mut message = Vec::with_capacity(HEADER_LEN + DmaAccess::LEN + data.len());
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(access.as_bytes());
        message.extend_from_slice(data);
        let answer = self
            .link
            .send(&message, Wait::Linger)
            .map_err(|errno| Error::new(errno, "cannot send a DMA message to the client"))
            .and_then(|()| self.wait_for(id, deadline));
        lock(&self.waiting).answers.remove(&id);
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
        answer
    }

    fn claim_id(&self) -> Result<u16> {
        let mut waiting = lock(&self.waiting);
        if waiting.answers.len() >= 1024 {
            return Err(Error::new(Errno::BUSY, "1024 DMA messages wait for the client already"));
        }
        let id = loop {
            let id = waiting.next_id;
            waiting.next_id = id.wrapping_add(1);
            if !waiting.answers.contains_key(&id) {
                break id;
            }
        };
        waiting.answers.insert(id, None);
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        Ok(id)
    }

    /// Waits for an answer: reads the socket itself where the thread that otherwise reads it is
    /// busy with a command (perhaps the one that needs this answer).
    fn wait_for(&self, id: u16, deadline: Instant) -> Result<Vec<u8>> {
        loop {
            let mut waiting = lock(&self.waiting);
            if let Some(Some(_)) = waiting.answers.get(&id) {
                let answer = waiting.answers.remove(&id).flatten();
                return match answer {
                    Some(Ok(payload)) => Ok(payload),
                    Some(Err(errno)) => Err(refused(errno)),
                    None => Err(Error::new(Errno::IO, "a DMA message's answer was lost")),
                };
            }
            if self.link.is_ended() {
                return Err(Error::new(Errno::NOTCONN, "the client went away during DMA"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(Errno::TIMEDOUT, "the client did not answer a DMA message"));
            }
            let reader = self.link.reader();
            if self.twin || reader.is_busy() {
                drop(waiting);
                let alone = self.twin || reader.is_this_thread();
                self.poll(if alone { left.min(Duration::from_millis(100)) } else { SLICE });
                self.link.pump(self, self.twin);
            } else {
                let waited = self.arrived.wait_timeout(waiting, left.min(SLICE));
                drop(waited);
            }
        }
    }

    fn poll(&self, wait: Duration) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let mut fds = [PollFd::new(self.link.socket(), PollFlags::IN)];
        // Whatever it says, the socket is read without waiting afterwards.
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
