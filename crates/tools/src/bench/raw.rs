//! A bare stream socket: bytes out, bytes in, nothing between that would be measured as well.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Nothing measured here takes that long, unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A connected socket and its buffer.
#[derive(Debug)]
pub(super) struct Raw {
    fd: OwnedFd,
    /// Poll instead of sleeping.
    spin: bool,
    /// How long a receive waits.
    patience: Duration,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connects.
    pub(super) fn connect(path: &Path, spin: bool) -> anyhow::Result<Self> {
        let address = SocketAddrUnix::new(path)
            .with_context(|| format!("{} is no path of a socket", path.display()))?;
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&fd, &address)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        Self::new(fd, spin)
    }

    /// Takes a connected socket.
    pub(super) fn new(fd: OwnedFd, spin: bool) -> anyhow::Result<Self> {
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&fd, direction, Some(PATIENCE))?;
        }
        Ok(Self { fd, spin, patience: PATIENCE, buffer: Vec::new() })
    }

    /// Sets how long a receive waits: [`PATIENCE`] at first.
    pub(super) fn set_patience(&mut self, patience: Duration) -> anyhow::Result<()> {
        sockopt::set_socket_timeout(&self.fd, Timeout::Recv, Some(patience))?;
        self.patience = patience;
        Ok(())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends everything.
    pub(super) fn send(&self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot send"),
            }
        }
        Ok(())
    }

    /// Sends a short message with a descriptor.
    pub(super) fn send_with(&self, bytes: &[u8], fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let slices = [IoSlice::new(bytes)];
        let sent = rustix::net::sendmsg(&self.fd, &slices, &mut control, SendFlags::NOSIGNAL)
            .context("cannot send")?;
        self.send(&bytes[sent..])
    }

    /// What is there now, or comes first; at most `limit` bytes.
    pub(super) fn receive_some(&mut self, limit: usize) -> anyhow::Result<&[u8]> {
        if self.buffer.len() < limit {
            self.buffer.resize(limit, 0);
        }
        let count = receive(&self.fd, self.spin, self.patience, &mut self.buffer[..limit])?;
        let count = count.with_context(|| format!("nothing came within {:?}", self.patience))?;
        Ok(&self.buffer[..count])
    }

    /// Exactly so many bytes, and the descriptors that come with them, which are closed.
    pub(super) fn receive_with_fds(&mut self, len: usize) -> anyhow::Result<&[u8]> {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        let mut filled = 0;
        while filled < len {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut self.buffer[filled..len])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.fd, &mut slices, &mut control, flags) {
                Ok(message) if message.bytes == 0 => bail!("the other side closed the connection"),
                Ok(message) => filled += message.bytes,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot receive"),
            }
        }
        Ok(&self.buffer[..len])
    }

    /// Exactly so many bytes.
    pub(super) fn receive(&mut self, len: usize) -> anyhow::Result<&[u8]> {
        let patience = self.patience;
        let bytes = self.receive_or_nothing(len)?;
        bytes.with_context(|| format!("nothing came within {patience:?}"))
    }

    /// Exactly so many bytes; `None` if none has come in time.
    pub(super) fn receive_or_nothing(&mut self, len: usize) -> anyhow::Result<Option<&[u8]>> {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        let (mut filled, mut waited) = (0, Duration::ZERO);
        while filled < len {
            match receive(&self.fd, self.spin, self.patience, &mut self.buffer[filled..len])? {
                Some(0) => bail!("the other side closed the connection"),
                Some(count) => filled += count,
                None if filled == 0 => return Ok(None),
                // The rest is on its way.
                None => {
                    waited += self.patience;
                    ensure!(waited < PATIENCE, "nothing more came within {PATIENCE:?}");
                }
            }
        }
        Ok(Some(&self.buffer[..len]))
    }
}

/// Receives what is there or comes first; `None` if nothing comes in time.
fn receive(
    fd: &OwnedFd,
    spin: bool,
    patience: Duration,
    buffer: &mut [u8],
) -> anyhow::Result<Option<usize>> {
    let flags = if spin { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    let mut polls = 0u32;
    let start = Instant::now();
    loop {
        match rustix::net::recv(fd, &mut *buffer, flags) {
            Ok((count, _)) => return Ok(Some(count)),
            Err(Errno::AGAIN) if spin => {
                std::hint::spin_loop();
                polls = polls.wrapping_add(1);
                if polls.is_multiple_of(1 << 16) && start.elapsed() > patience {
                    return Ok(None);
                }
            }
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot receive"),
        }
    }
}
