//! From bytes to messages: framing, and which descriptors belong to which message.

use vfiod_wire::{HEADER_LEN, Header};

use crate::transport::{Descriptors, Received, Socket, Wait};

/// How much is received at once; what a socket holds by default is a little less.
const CHUNK: usize = 256 << 10;

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

    /// Receives once, behind what is there. Memory grows with what arrives, never with what a
    /// header claims.
    pub(crate) fn fill(
        &mut self,
        socket: &Socket,
        wait: Wait,
    ) -> Result<Received, rustix::io::Errno> {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && self.data.len() - self.end < CHUNK / 2 {
            self.data.copy_within(self.start..self.end, 0);
            for (place, _) in &mut self.descriptors {
                *place -= self.start;
            }
            self.end -= self.start;
            self.start = 0;
        }
        if self.data.len() - self.end < CHUNK / 2 {
            let grown = (self.end + CHUNK).max(self.end * 2).next_multiple_of(CHUNK);
            self.data.resize(grown, 0);
        }
        let mut descriptors = Descriptors::default();
        let received = socket.receive(&mut self.data[self.end..], &mut descriptors, wait)?;
        if let Received::Bytes(bytes) = received {
            self.end += bytes;
            if !descriptors.is_empty() {
                self.descriptors.push((self.end, descriptors));
            }
        }
        Ok(received)
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
        if self.end - self.start < size {
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

    /// Whether what comes next can never become a message.
    pub(crate) fn check(&self, limit: usize) -> Result<(), BadSize> {
        match Header::parse(&self.data[self.start..self.end]) {
            Some(header) if (header.size as usize) < HEADER_LEN || header.size as usize > limit => {
                Err(BadSize { size: header.size, limit })
            }
            _ => Ok(()),
        }
    }

    /// Cuts off what is behind the last whole message (or in front of a bad one).
    pub(crate) fn split_tail(&mut self, limit: usize) -> Inbox {
        let mut cut = self.start;
        while let Some(header) = Header::parse(&self.data[cut..self.end]) {
            let size = header.size as usize;
            if size < HEADER_LEN || size > limit || self.end - cut < size {
                break;
            }
            cut += size;
        }
        if cut == self.end {
            return Inbox::default();
        }
        let mut tail = Inbox {
            data: self.data[cut..self.end].to_vec(),
            start: 0,
            end: self.end - cut,
            descriptors: Vec::new(),
        };
        self.descriptors.retain_mut(|(place, descriptors)| {
            let theirs = *place > cut;
            if theirs {
                tail.descriptors.push((*place - cut, std::mem::take(descriptors)));
            }
            !theirs
        });
        self.end = cut;
        tail
    }

    /// Moves what is left over into an inbox no larger than that.
    pub(crate) fn split_rest(&mut self) -> Inbox {
        // A limit of 0 makes every message a bad one, so all is cut off.
        let rest = self.split_tail(0);
        self.descriptors.clear();
        rest
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
