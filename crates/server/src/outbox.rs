//! Replies on their way out: collected while there are commands to handle, sent as one.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use vfiod_wire::{HEADER_LEN, Header};
use zerocopy::{Immutable, IntoBytes};

use crate::transport::{Socket, Wait};

/// Replies of one batch of commands. Owned by the thread that handles the batch.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// All of it initialised once, so that room for a reply need not be cleared each time.
    buffer: Vec<u8>,
    len: usize,
    /// From here on it is all zeros.
    dirty: usize,
    /// Whose replies it held last.
    user: u64,
}

impl Replies {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Forgets what was sent.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Gives memory back that only large replies need.
    pub(crate) fn trim(&mut self) {
        if self.is_large() {
            *self = Self::default();
        }
    }

    /// Whether [`Replies::trim`] would give memory back.
    pub(crate) fn is_large(&self) -> bool {
        self.buffer.len() > 64 << 10
    }

    /// Takes back what was added behind `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Gets ready for the replies of a connection. What another left behind is cleared, so that
    /// a device that does not fill its answer cannot give one client's data to another.
    pub(crate) fn lend_to(&mut self, user: u64) {
        if std::mem::replace(&mut self.user, user) != user {
            self.buffer[..self.dirty].fill(0);
            self.dirty = 0;
        }
    }

    /// Room for `len` bytes more, with what the same connection left there before.
    fn extend(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        self.len += len;
        if self.buffer.len() < self.len {
            let grown = self.len.next_power_of_two().max(4096);
            self.buffer.resize(grown, 0);
        }
        self.dirty = self.dirty.max(self.len);
        &mut self.buffer[start..start + len]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.extend(bytes.len()).copy_from_slice(bytes);
    }

    /// Adds a reply with a fixed payload.
    pub(crate) fn reply<T: IntoBytes + Immutable>(&mut self, command: &Header, payload: &T) {
        self.reply_bytes(command, payload.as_bytes(), &[]);
    }

    /// Adds a reply of two pieces.
    pub(crate) fn reply_bytes(&mut self, command: &Header, fixed: &[u8], rest: &[u8]) {
        self.put(command.reply(fixed.len() + rest.len()).as_bytes());
        self.put(fixed);
        self.put(rest);
    }

    /// Adds a reply that reports an errno, padded with zeros for clients that wait for more
    /// than the header.
    pub(crate) fn error(&mut self, command: &Header, errno: u32, padding: usize) {
        self.put(command.error(errno, padding).as_bytes());
        self.extend(padding).fill(0);
    }

    /// Adds a reply whose `len` bytes behind the fixed part are written in place by `fill`: all
    /// of them, as nothing clears them before. Where `fill` fails, the reply is taken back.
    pub(crate) fn reply_with<T: IntoBytes + Immutable, E>(
        &mut self,
        command: &Header,
        fixed: &T,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.len;
        let head = HEADER_LEN + size_of::<T>();
        let room = self.extend(head + len);
        room[..HEADER_LEN].copy_from_slice(command.reply(size_of::<T>() + len).as_bytes());
        room[HEADER_LEN..head].copy_from_slice(fixed.as_bytes());
        let filled = fill(&mut room[head..]);
        if filled.is_err() {
            self.len = before;
        }
        filled
    }
}

/// What a socket's peer has not taken yet. Behind the connection's send lock.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// How many of them are gone.
    sent: usize,
    /// The peer did not take them when asked last.
    blocked: bool,
}

impl Outbox {
    /// Whether bytes wait for the peer to take them.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Keeps a message to be sent with, or in front of, the next.
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Sends, keeping what the peer does not take in time.
    pub(crate) fn send(
        &mut self,
        socket: &Socket,
        mut bytes: &[u8],
        wait: Wait,
    ) -> Result<(), Errno> {
        if !self.bytes.is_empty() {
            // Sent as one where copying is cheaper than a system call.
            if bytes.len() <= 4096 {
                self.queue(bytes);
                return self.flush(socket, wait);
            }
            self.flush(socket, wait)?;
        }
        while !bytes.is_empty() && !self.blocked {
            match socket.send(&[bytes], &[], wait)? {
                0 => self.blocked = true,
                sent => bytes = &bytes[sent..],
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends a message with descriptors. They go with the first byte, so what waits before it
    /// must be gone: `EAGAIN` where the peer does not take that in time.
    pub(crate) fn send_with_fds(
        &mut self,
        socket: &Socket,
        bytes: &[u8],
        fds: &[OwnedFd],
        wait: Wait,
    ) -> Result<(), Errno> {
        self.flush(socket, wait)?;
        if self.blocked {
            return Err(Errno::AGAIN);
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match socket.send(&[bytes], &fds, wait)? {
            0 => Err(Errno::AGAIN),
            sent => self.send(socket, &bytes[sent..], wait),
        }
    }

    /// Tries to get rid of what waits.
    pub(crate) fn flush(&mut self, socket: &Socket, wait: Wait) -> Result<(), Errno> {
        while self.sent < self.bytes.len() {
            match socket.send(&[&self.bytes[self.sent..]], &[], wait)? {
                0 => {
                    self.blocked = true;
                    return Ok(());
                }
                sent => self.sent += sent,
            }
        }
        self.blocked = false;
        self.sent = 0;
        if self.bytes.capacity() > 1024 {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        Ok(())
    }
}
