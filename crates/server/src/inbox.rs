//! From bytes to messages: framing, and which descriptors belong to which message.

use rustix::io::Errno;
use vfiod_wire::{HEADER_LEN, Header};

use crate::limits::MAX_HELD_FDS;
use crate::transport::{Descriptors, Received, Socket, Wait};

/// How much a thread receives at once; what a socket holds by default is a little less.
pub(crate) const CHUNK: usize = 256 << 10;
/// The same where replies to DMA messages are waited for: most are a page.
pub(crate) const SMALL_CHUNK: usize = 16 << 10;
/// Leftovers up to this are copied, larger ones keep the buffer that they are in.
const COPIED: usize = 16 << 10;

/// The byte stream has lost its meaning; the connection must end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of {size} bytes, allowed are 16 to {limit}")]
pub(crate) struct BadSize {
    size: u32,
    limit: usize,
}

/// Bytes that have arrived and are not used up.
///
/// A stream socket hands over descriptors with the receive whose last bytes they were sent
/// with: Linux ends a receive behind data that carries some. So they belong to the message that
/// holds the last byte of that receive.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Grows with what arrives, never with what a header claims.
    data: Vec<u8>,
    /// `data[start..end]` is unused.
    start: usize,
    end: usize,
    /// Descriptors and the place in `data` behind the receive that brought them.
    descriptors: Vec<(usize, Descriptors)>,
}

/// One whole message, still in the inbox.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    /// Where its payload is; see [`Inbox::payload`].
    start: usize,
    end: usize,
    pub(crate) descriptors: Descriptors,
}

impl Inbox {
    /// Whether nothing is left over.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// Gives memory back that only large messages need.
    pub(crate) fn trim(&mut self) {
        if self.is_empty() && self.data.len() > CHUNK {
            *self = Self::default();
        }
    }

    /// Whether [`Inbox::trim`] would give memory back.
    pub(crate) fn is_large(&self) -> bool {
        self.data.len() > CHUNK
    }

    /// Receives once, behind what is there, at least half of `chunk` if so much has arrived.
    pub(crate) fn fill(
        &mut self,
        socket: &Socket,
        chunk: usize,
        wait: Wait,
    ) -> Result<Received, Errno> {
        self.make_room(chunk / 2, chunk);
        let mut descriptors = Descriptors::default();
        let received = socket.receive(&mut self.data[self.end..], &mut descriptors, wait)?;
        if let Received::Bytes(bytes) = received {
            self.end += bytes;
            if !descriptors.is_empty() {
                self.hold(descriptors);
            }
        }
        Ok(received)
    }

    /// Keeps descriptors for the message that they belong to. A client that sends one message in
    /// many pieces, each with descriptors, must not use up those of the process.
    fn hold(&mut self, mut descriptors: Descriptors) {
        let held = self.descriptors.iter().map(|(_, held)| held.fds.len()).sum::<usize>();
        if held + descriptors.fds.len() > MAX_HELD_FDS {
            descriptors = Descriptors { fds: Vec::new(), truncated: true };
        }
        match self.descriptors.last_mut() {
            Some((place, last)) if descriptors.fds.is_empty() && held >= MAX_HELD_FDS => {
                // One mark for all that follow.
                *place = self.end;
                last.truncated = true;
            }
            _ => self.descriptors.push((self.end, descriptors)),
        }
    }

    /// Makes room for `least` bytes; if memory is needed for that, it is `chunk` at least.
    fn make_room(&mut self, least: usize, chunk: usize) {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        }
        if self.data.len() - self.end >= least {
            return;
        }
        if self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            for (place, _) in &mut self.descriptors {
                *place -= self.start;
            }
            self.end -= self.start;
            self.start = 0;
        }
        if self.data.len() - self.end < least {
            let grown = (self.end + chunk).max(self.end * 2).next_multiple_of(chunk);
            self.data.resize(grown, 0);
        }
    }

    /// The next whole message, if there is one.
    pub(crate) fn next(&mut self, limit: usize) -> Result<Option<Message>, BadSize> {
        let Some(header) = Header::parse(&self.data[self.start..self.end]) else {
            return Ok(None);
        };
        let size = header.size as usize;
        if size < HEADER_LEN || size > limit {
            return Err(BadSize { size: header.size, limit });
        }
        if self.len() < size {
            return Ok(None);
        }
        let (start, end) = (self.start + HEADER_LEN, self.start + size);
        self.start = end;
        let descriptors =
            if self.descriptors.is_empty() { Descriptors::default() } else { self.claim(end) };
        Ok(Some(Message { header, start, end, descriptors }))
    }

    /// A message's payload. Valid until the next [`Inbox::fill`].
    pub(crate) fn payload(&self, message: &Message) -> &[u8] {
        &self.data[message.start..message.end]
    }

    fn claim(&mut self, end: usize) -> Descriptors {
        let mut claimed = Descriptors::default();
        self.descriptors.retain_mut(|(place, descriptors)| {
            let mine = *place <= end;
            if mine {
                claimed.fds.append(&mut descriptors.fds);
                claimed.truncated |= descriptors.truncated;
            }
            !mine
        });
        claimed
    }

    /// Where the last whole message ends (or a bad one begins).
    fn whole_messages(&self, limit: usize) -> usize {
        let mut cut = self.start;
        while let Some(header) = Header::parse(&self.data[cut..self.end]) {
            let size = header.size as usize;
            if size < HEADER_LEN || size > limit || self.end - cut < size {
                break;
            }
            cut += size;
        }
        cut
    }

    /// Whether what comes next can never become a message.
    pub(crate) fn check(&self, limit: usize) -> Result<(), BadSize> {
        match Header::parse(&self.data[self.start..self.end]) {
            Some(header) if (header.size as usize) < HEADER_LEN || header.size as usize > limit => {
                Err(BadSize { size: header.size, limit })
            }
            _ => Ok(()),
        }
    }

    /// Whether there is a whole message.
    pub(crate) fn has_message(&self, limit: usize) -> bool {
        self.whole_messages(limit) > self.start
    }

    /// Moves what is behind the last whole message (or in front of a bad one) behind what is in
    /// `other`.
    pub(crate) fn move_tail(&mut self, limit: usize, other: &mut Inbox) {
        let cut = self.whole_messages(limit);
        if cut < self.end {
            let start = std::mem::replace(&mut self.start, cut);
            let whole = std::mem::take(&mut self.descriptors);
            let (whole, tail) = whole.into_iter().partition(|(place, _)| *place <= cut);
            self.descriptors = tail;
            other.append_copy(self);
            (self.start, self.end, self.descriptors) = (start, cut, whole);
        }
    }

    /// Moves all that is left over out, into memory that is not much more than that.
    pub(crate) fn take_rest(&mut self) -> Inbox {
        if self.is_empty() {
            return Inbox::default();
        }
        if self.len() > COPIED {
            return std::mem::take(self);
        }
        let mut rest = Inbox::default();
        rest.append_copy(self);
        self.clear();
        rest
    }

    /// Moves all that is left over in `other` behind what is here; `other` keeps its memory,
    /// unless that is the cheaper way.
    pub(crate) fn append(&mut self, other: &mut Inbox) {
        if self.is_empty() && other.len() > COPIED {
            std::mem::swap(self, other);
        } else if !other.is_empty() {
            self.append_copy(other);
        }
        other.clear();
    }

    fn append_copy(&mut self, other: &mut Inbox) {
        let len = other.len();
        self.make_room(len, len);
        self.data[self.end..self.end + len].copy_from_slice(&other.data[other.start..other.end]);
        let moved = other.descriptors.drain(..);
        self.descriptors.extend(moved.map(|(place, held)| (place - other.start + self.end, held)));
        self.end += len;
    }

    /// Forgets everything but the memory.
    pub(crate) fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        self.descriptors.clear();
    }
}

/// A message that was taken out of an inbox to wait its turn.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Descriptors,
}

impl Message {
    /// A copy that outlives the inbox.
    pub(crate) fn defer(self, inbox: &Inbox) -> Deferred {
        let payload = inbox.payload(&self).to_vec();
        Deferred { header: self.header, payload, descriptors: self.descriptors }
    }
}
