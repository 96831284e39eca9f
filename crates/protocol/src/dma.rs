//! DMA by message: DMA_READ and DMA_WRITE from the server to the client, and their replies.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vfiod_buffer::zeroed;
use vfiod_wire::payload::DmaAccess;
use vfiod_wire::{Command, HEADER_LEN, Kind};
use zerocopy::{FromBytes, IntoBytes};

use crate::connection::DmaReply;
use crate::limits::{MAX_DATA, MAX_DMA_MESSAGES, MAX_DMA_TRANSFERS, MAX_STRAY_REPLIES};
use crate::output::Output;
use crate::session::End;
use crate::time::Time;

/// How long a client may take that has left a message without a reply before: a device with much
/// to transfer should fail soon, not once for each piece.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_millis(100);
/// How many messages of one transfer are sent without waiting for a reply.
const AHEAD: usize = 8;
/// Most bytes that one DMA_READ asks for.
///
/// QEMU sends a reply with one `sendmsg` that does not wait, and takes one that has sent a part for done: the
/// rest of a reply that is longer than the room in its socket's buffer never comes, and what it sends next is
/// taken for that rest. The kernel sends no part of what fits into one of its own buffers, which is 32 KiB and
/// most of a page (or half of the socket's buffer, if that is less): it takes all of it or nothing, and what
/// it does not take QEMU sends again.
const READ_CHUNK: usize = 32 << 10;

/// Names a transfer; never used twice by one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TransferId(pub u64);

/// Why a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DmaFailure {
    /// The client refused it with an errno (0 where it named none).
    #[error("the client refused a DMA message")]
    Refused(u32),
    /// The client's reply belongs to another access.
    #[error("the client's answer to a DMA message is about something else")]
    WrongAccess,
    /// The client's reply to DMA_READ has another length than what was asked for.
    #[error("the client's answer to DMA_READ has the wrong length")]
    WrongLength,
    /// The deadline passed.
    #[error("the client did not answer a DMA message")]
    TimedOut,
    /// [`MAX_DMA_TRANSFERS`] transfers wait already.
    #[error("{MAX_DMA_TRANSFERS} DMA transfers wait for the client already")]
    TooMany,
    /// There is no memory for the data, or for a message with them.
    #[error("no memory for a DMA transfer")]
    NoMemory,
    /// The connection ended.
    #[error("the client went away during DMA")]
    Closed,
}

/// A transfer that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which one.
    pub id: TransferId,
    /// The data of a read (empty for a write), or why it failed.
    pub outcome: Result<Vec<u8>, DmaFailure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    fn command(self) -> Command {
        match self {
            Self::Read => Command::DmaRead,
            Self::Write => Command::DmaWrite,
        }
    }

    /// Most bytes of data in one message to a client that takes so many.
    fn most(self, chunk: usize) -> usize {
        match self {
            Self::Read => chunk.min(READ_CHUNK),
            Self::Write => chunk,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Transfer {
    direction: Direction,
    iova: u64,
    /// What was read so far, or what is to be written.
    data: Vec<u8>,
    /// How much was asked for in messages.
    sent: usize,
    /// How much has a good reply.
    done: usize,
    /// Messages without a reply.
    messages: usize,
    deadline: Time,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Message {
    transfer: TransferId,
    /// Which part of the transfer.
    at: usize,
    len: usize,
}

/// The DMA messages of one connection that wait for their replies. Bytes go into the output that
/// is given: the connection's, or that of the second socket.
///
/// Apart from [`crate::Connection`], so that a driver can start transfers on other threads while
/// one handles a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct DmaRequests {
    /// Most bytes of data in one message.
    chunk: usize,
    next_message: u16,
    next_transfer: u64,
    messages: HashMap<u16, Message>,
    transfers: BTreeMap<TransferId, Transfer>,
    /// Transfers of which not everything was asked for yet, in order.
    queue: VecDeque<TransferId>,
    unresponsive: bool,
    stray_replies: u64,
}

impl Serialize for DmaRequests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The derived one.
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for DmaRequests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The derived one.
        let restored = Self::deserialize(deserializer)?;
        let wrong = "DMA transfers and messages that do not fit each other";
        if restored.is_consistent() { Ok(restored) } else { Err(D::Error::custom(wrong)) }
    }
}

impl DmaRequests {
    /// For a client that takes `limit` bytes of data in a message
    /// ([`crate::Connection::client_data_limit`]).
    pub fn new(limit: u64) -> Self {
        Self {
            chunk: limit.clamp(1, MAX_DATA as u64) as usize,
            next_message: 0,
            next_transfer: 0,
            messages: HashMap::new(),
            transfers: BTreeMap::new(),
            queue: VecDeque::new(),
            unresponsive: false,
            stray_replies: 0,
        }
    }

    /// Whether a transfer has timed out, and no reply has come since.
    pub fn is_unresponsive(&self) -> bool {
        self.unresponsive
    }

    /// Whether nothing waits for a reply.
    pub fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    /// The transfer that a message without a reply belongs to.
    pub fn transfer_of(&self, message: u16) -> Option<TransferId> {
        self.messages.get(&message).map(|message| message.transfer)
    }

    /// Starts to read `len` bytes of the client's memory. Ends with [`Ended`].
    ///
    /// # Errors
    /// [`DmaFailure::TooMany`], [`DmaFailure::NoMemory`].
    pub fn read<D>(
        &mut self,
        iova: u64,
        len: usize,
        now: Time,
        timeout: Duration,
        output: &mut Output<D>,
    ) -> Result<TransferId, DmaFailure> {
        let data = zeroed(len).map_err(|_| DmaFailure::NoMemory)?;
        self.start(Direction::Read, iova, data, now, timeout, output)
    }

    /// Starts to write the client's memory. Ends with [`Ended`].
    ///
    /// # Errors
    /// [`DmaFailure::TooMany`], [`DmaFailure::NoMemory`].
    pub fn write<D>(
        &mut self,
        iova: u64,
        data: Vec<u8>,
        now: Time,
        timeout: Duration,
        output: &mut Output<D>,
    ) -> Result<TransferId, DmaFailure> {
        self.start(Direction::Write, iova, data, now, timeout, output)
    }

    fn start<D>(
        &mut self,
        direction: Direction,
        iova: u64,
        data: Vec<u8>,
        now: Time,
        timeout: Duration,
        output: &mut Output<D>,
    ) -> Result<TransferId, DmaFailure> {
        if self.transfers.len() >= MAX_DMA_TRANSFERS {
            return Err(DmaFailure::TooMany);
        }
        let first = message_len(direction, data.len().min(direction.most(self.chunk)));
        output.reserve(first).map_err(|_| DmaFailure::NoMemory)?;
        let timeout = if self.unresponsive { timeout.min(UNRESPONSIVE_TIMEOUT) } else { timeout };
        let id = TransferId(self.next_transfer);
        self.next_transfer += 1;
        let deadline = now.after(timeout);
        let transfer = Transfer { direction, iova, data, sent: 0, done: 0, messages: 0, deadline };
        self.transfers.insert(id, transfer);
        self.queue.push_back(id);
        self.send_more(output);
        Ok(id)
    }

    /// Sends what may be sent of the transfers that are not all sent.
    fn send_more<D>(&mut self, output: &mut Output<D>) {
        let mut kept = VecDeque::new();
        while let Some(id) = self.queue.pop_front() {
            let Some(transfer) = self.transfers.get_mut(&id) else { continue };
            // A transfer of no bytes has one message, too: its reply says that it is allowed.
            while (transfer.sent < transfer.data.len() || transfer.data.is_empty())
                && transfer.messages < AHEAD
                && self.messages.len() < MAX_DMA_MESSAGES
            {
                let at = transfer.sent;
                let len = (transfer.data.len() - at).min(transfer.direction.most(self.chunk));
                if output.reserve(message_len(transfer.direction, len)).is_err() {
                    // It goes on with the next reply, or is over at its deadline.
                    break;
                }
                let number = loop {
                    let number = self.next_message;
                    self.next_message = number.wrapping_add(1);
                    if !self.messages.contains_key(&number) {
                        break number;
                    }
                };
                self.messages.insert(number, Message { transfer: id, at, len });
                let address = transfer.iova.wrapping_add(at as u64);
                let access = DmaAccess { address, count: len as u64 };
                let data = match transfer.direction {
                    Direction::Read => &[],
                    Direction::Write => &transfer.data[at..at + len],
                };
                output.command(number, transfer.direction.command(), access.as_bytes(), data);
                transfer.sent += len;
                transfer.messages += 1;
                if transfer.data.is_empty() {
                    break;
                }
            }
            if transfer.sent < transfer.data.len() {
                kept.push_back(id);
            }
        }
        self.queue = kept;
    }

    /// Takes a reply, and sends what may be sent now. Returns the transfer that it ended, if any.
    /// A reply that nobody asked for is counted.
    ///
    /// # Errors
    /// [`End::StrayReplies`]: there were too many of those.
    pub fn complete<D>(
        &mut self,
        reply: &DmaReply<'_>,
        output: &mut Output<D>,
    ) -> Result<Completed, End> {
        let Some((id, message, transfer)) = self.find(reply) else {
            self.stray_replies += 1;
            return if self.stray_replies > MAX_STRAY_REPLIES {
                Err(End::StrayReplies)
            } else {
                Ok(Completed::Stray)
            };
        };
        let address = transfer.iova.wrapping_add(message.at as u64);
        let access = DmaAccess { address, count: message.len as u64 };
        let outcome = match reply.header.kind() {
            Kind::Reply(Err(errno)) => Err(DmaFailure::Refused(errno)),
            _ => check(transfer.direction, &access, reply.payload),
        };
        self.messages.remove(&id);
        self.unresponsive = false;
        let Some(transfer) = self.transfers.get_mut(&message.transfer) else {
            return Ok(Completed::Stray);
        };
        transfer.messages -= 1;
        let ended = match outcome {
            Ok(data) => {
                if transfer.direction == Direction::Read {
                    transfer.data[message.at..message.at + message.len].copy_from_slice(data);
                }
                transfer.done += message.len;
                (transfer.done == transfer.data.len()).then_some(Ok(()))
            }
            Err(failure) => Some(Err(failure)),
        };
        let completed = match ended {
            Some(outcome) => self.finish(message.transfer, outcome).map(Completed::Ended),
            None => None,
        };
        self.send_more(output);
        Ok(completed.unwrap_or(Completed::Part))
    }

    fn find(&self, reply: &DmaReply<'_>) -> Option<(u16, Message, &Transfer)> {
        let message = *self.messages.get(&reply.header.id)?;
        let transfer = self.transfers.get(&message.transfer)?;
        let same = transfer.direction.command() as u16 == reply.header.command;
        same.then_some((reply.header.id, message, transfer))
    }

    fn finish(&mut self, id: TransferId, outcome: Result<(), DmaFailure>) -> Option<Ended> {
        let Transfer { direction, data, messages, .. } = self.transfers.remove(&id)?;
        if messages > 0 {
            // Their replies are stray from now on.
            self.messages.retain(|_, message| message.transfer != id);
        }
        let data = if direction == Direction::Read { data } else { Vec::new() };
        Some(Ended { id, outcome: outcome.map(|()| data) })
    }

    /// Gives a transfer up, whose outcome is not needed. A write may happen all the same.
    pub fn cancel<D>(&mut self, id: TransferId, output: &mut Output<D>) {
        if self.finish(id, Err(DmaFailure::TimedOut)).is_some() {
            self.send_more(output);
        }
    }

    /// When [`DmaRequests::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Time> {
        self.transfers.values().map(|transfer| transfer.deadline).min()
    }

    /// Ends the transfers whose deadline has passed.
    pub fn expire<D>(&mut self, now: Time, output: &mut Output<D>) -> Vec<Ended> {
        let late =
            |(id, transfer): (&TransferId, &Transfer)| (transfer.deadline <= now).then_some(*id);
        let late: Vec<_> = self.transfers.iter().filter_map(late).collect();
        let ended: Vec<_> =
            late.iter().filter_map(|id| self.finish(*id, Err(DmaFailure::TimedOut))).collect();
        if !ended.is_empty() {
            self.unresponsive = true;
            self.send_more(output);
        }
        ended
    }

    /// Ends every transfer: the connection is gone.
    pub fn close(&mut self) -> Vec<Ended> {
        self.messages.clear();
        self.queue.clear();
        let ids: Vec<_> = self.transfers.keys().copied().collect();
        ids.iter().filter_map(|id| self.finish(*id, Err(DmaFailure::Closed))).collect()
    }

    /// Whether what was restored holds together.
    fn is_consistent(&self) -> bool {
        let Self { chunk, messages, transfers, queue, .. } = self;
        let mut counts: HashMap<TransferId, usize> = HashMap::new();
        let fits = |message: &Message| {
            transfers.get(&message.transfer).is_some_and(|transfer| {
                message.at.checked_add(message.len).is_some_and(|end| end <= transfer.sent)
            })
        };
        for message in messages.values() {
            *counts.entry(message.transfer).or_default() += 1;
        }
        (1..=MAX_DATA).contains(chunk)
            && messages.len() <= MAX_DMA_MESSAGES
            && transfers.len() <= MAX_DMA_TRANSFERS
            && messages.values().all(fits)
            && transfers.iter().all(|(id, transfer)| {
                let waiting: usize =
                    messages.values().filter(|m| m.transfer == *id).map(|m| m.len).sum();
                id.0 < self.next_transfer
                    && transfer.sent <= transfer.data.len()
                    && transfer.messages == counts.get(id).copied().unwrap_or(0)
                    && transfer.done.checked_add(waiting) == Some(transfer.sent)
                    && (transfer.sent < transfer.data.len()) == queue.contains(id)
            })
    }
}

/// The size of a message with so much data.
fn message_len(direction: Direction, data: usize) -> usize {
    let sent = if direction == Direction::Write { data } else { 0 };
    HEADER_LEN + size_of::<DmaAccess>() + sent
}

/// What became of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completed {
    /// It ended a transfer.
    Ended(Ended),
    /// Further replies are needed for its transfer.
    Part,
    /// Nobody asked for it.
    Stray,
}

/// Checks a reply, and finds the data in it.
fn check<'a>(
    direction: Direction,
    access: &DmaAccess,
    payload: &'a [u8],
) -> Result<&'a [u8], DmaFailure> {
    let same = match DmaAccess::read_from_prefix(payload) {
        Ok((reply, _)) => reply == *access,
        // The specification's table gives the reply to DMA_WRITE a count of 4 bytes.
        Err(_) => payload.get(..8) == Some(access.address.as_bytes()) && payload.len() == 12,
    };
    if !same {
        return Err(DmaFailure::WrongAccess);
    }
    if direction == Direction::Write {
        return Ok(&[]);
    }
    let data = payload.get(DmaAccess::LEN..).filter(|data| data.len() as u64 == access.count);
    data.ok_or(DmaFailure::WrongLength)
}
