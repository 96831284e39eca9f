//! Whole messages over a socket, well-formed or not.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use vfiod_wire::{HEADER_LEN, Header};

use crate::error::{Error, Result};

/// As many as Linux passes with one `sendmsg`.
const MAX_FDS: usize = 253;
/// No server has a reason to send more than a transfer of 1 MiB and its header.
const MAX_MESSAGE: usize = 16 << 20;

/// A message as it came.
#[derive(Debug)]
pub struct RawMessage {
    /// Its header.
    pub header: Header,
    /// What was behind it.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// A connected socket. [`crate::Client`] sits on it; tests use it to misbehave.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Connects to a path. `timeout` bounds every later send and receive.
    ///
    /// # Errors
    /// [`Error::Io`] with what the kernel says.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self> {
        let path = path.as_ref();
        let failed =
            |errno: Errno| Error::io(format!("cannot connect to {}", path.display()), errno);
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        rustix::net::connect(&fd, &address).map_err(failed)?;
        Self::from_fd(fd, timeout)
    }

    /// Takes a connected socket.
    ///
    /// # Errors
    /// [`Error::Io`]: not a socket.
    pub fn from_fd(fd: OwnedFd, timeout: Duration) -> Result<Self> {
        let failed = |errno: Errno| Error::io("cannot set a socket's timeout", errno);
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&fd, direction, Some(timeout)).map_err(failed)?;
        }
        Ok(Self { fd })
    }

    /// Sends bytes, whatever they are, the descriptors with the first.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Io`].
    pub fn send(&self, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut fds = fds;
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Error::io("too many descriptors", Errno::TOOBIG));
            }
            let sent = rustix::net::sendmsg(
                &self.fd,
                &[IoSlice::new(bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(Error::Timeout),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Closed),
                Err(errno) => return Err(Error::io("cannot send", errno)),
            }
            fds = &[];
        }
        Ok(())
    }

    /// Receives at most `buffer`; 0 at the end of the stream.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Io`].
    pub fn receive(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        loop {
            let slice = &mut [IoSliceMut::new(buffer)];
            match rustix::net::recvmsg(&self.fd, slice, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => {
                    for item in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(received) = item {
                            fds.extend(received);
                        }
                    }
                    return Ok(message.bytes);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Error::Timeout),
                Err(Errno::CONNRESET) => return Ok(0),
                Err(errno) => return Err(Error::io("cannot receive", errno)),
            }
        }
    }

    fn receive_exactly(&self, mut buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
        while !buffer.is_empty() {
            match self.receive(buffer, fds)? {
                0 => return Err(Error::Closed),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    /// Receives one message.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Protocol`]: a size that makes no sense.
    pub fn receive_message(&self) -> Result<RawMessage> {
        let mut fds = Vec::new();
        let (header, payload) = self.receive_message_with(&mut fds)?;
        Ok(RawMessage { header, payload, fds })
    }

    /// Receives one message: its header, and what was behind it. Descriptors that came along are added to
    /// `fds`, also where it fails: their close may not return.
    ///
    /// # Errors
    /// As [`Socket::receive_message`].
    pub fn receive_message_with(&self, fds: &mut Vec<OwnedFd>) -> Result<(Header, Vec<u8>)> {
        let mut head = [0; HEADER_LEN];
        self.receive_exactly(&mut head, fds)?;
        let header = Header::parse(&head)
            .ok_or_else(|| Error::Protocol("a header that cannot be read".to_owned()))?;
        let size = header.size as usize;
        if !(HEADER_LEN..=MAX_MESSAGE).contains(&size) {
            return Err(Error::Protocol(format!("a message of {size} bytes")));
        }
        let mut payload = vec![0; size - HEADER_LEN];
        self.receive_exactly(&mut payload, fds)?;
        Ok((header, payload))
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
