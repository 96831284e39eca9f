//! Replies on their way out: collected while there are commands to handle, sent as one.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use vfiod_wire::{HEADER_LEN, Header};
use zerocopy::{Immutable, IntoBytes};

use crate::transport::{Socket, Wait};

/// Replies of one batch of commands. Owned by the thread that handles the batch.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    bytes: Vec<u8>,
}

impl Replies {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was sent; a batch of unusual size gives its memory back.
    pub(crate) fn clear(&mut self) {
        if self.bytes.capacity() > 4 << 20 {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
    }

    /// Takes back what was added behind `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Adds a reply with a fixed payload.
    pub(crate) fn reply<T: IntoBytes + Immutable>(&mut self, command: &Header, payload: &T) {
        self.reply_bytes(command, payload.as_bytes(), &[]);
    }

    /// Adds a reply of two pieces.
    pub(crate) fn reply_bytes(&mut self, command: &Header, fixed: &[u8], rest: &[u8]) {
        self.bytes.extend_from_slice(command.reply(fixed.len() + rest.len()).as_bytes());
        self.bytes.extend_from_slice(fixed);
        self.bytes.extend_from_slice(rest);
    }

    /// Adds a reply that reports an errno, padded with zeros for clients that wait for more
    /// than the header.
    pub(crate) fn error(&mut self, command: &Header, errno: u32, padding: usize) {
        self.bytes.extend_from_slice(command.error(errno, padding).as_bytes());
        self.bytes.resize(self.bytes.len() + padding, 0);
    }

    /// Adds a reply whose `len` bytes behind the fixed part are written in place by `fill`.
    /// Where `fill` fails, the reply is taken back.
    pub(crate) fn reply_with<T: IntoBytes + Immutable, E>(
        &mut self,
        command: &Header,
        fixed: &T,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.bytes.len();
        let data = before + HEADER_LEN + size_of::<T>();
        self.bytes.extend_from_slice(command.reply(size_of::<T>() + len).as_bytes());
        self.bytes.extend_from_slice(fixed.as_bytes());
        self.bytes.resize(data + len, 0);
        let filled = fill(&mut self.bytes[data..]);
        if filled.is_err() {
            self.bytes.truncate(before);
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
}

impl Outbox {
    /// Whether bytes wait for the peer to take them.
    pub(crate) fn is_blocked(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Sends, keeping what the peer does not take in time.
    pub(crate) fn send(
        &mut self,
        socket: &Socket,
        mut bytes: &[u8],
        wait: Wait,
    ) -> Result<(), Errno> {
        self.flush(socket, wait)?;
        while !bytes.is_empty() && !self.is_blocked() {
            match socket.send(&[bytes], &[], wait)? {
                0 => break,
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
        if self.is_blocked() {
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
        while self.is_blocked() {
            match socket.send(&[&self.bytes[self.sent..]], &[], wait)? {
                0 => return Ok(()),
                sent => self.sent += sent,
            }
        }
        if !self.bytes.is_empty() {
            *self = Self::default();
        }
        Ok(())
    }
}
