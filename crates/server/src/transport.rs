//! Bytes and descriptors over a UNIX stream socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};
use vfiod_core::Error;
use vfiod_core::memory::SharedMemory;
use vfiod_quota::{Payer, SlowCalls};

use crate::closer::Closer;
use crate::descriptor::Descriptor;
use crate::limits::MAX_FDS;
use crate::send_buffer::SendBuffer;
use crate::unread::{Leftover, Passed, Unread};

/// Whether a call may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Up to the socket's timeout.
    Linger,
    /// Not at all.
    No,
}

/// What a receive brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// This many bytes.
    Bytes(usize),
    /// Nothing has arrived in time.
    Nothing,
    /// The peer is gone.
    Eof,
}

/// Descriptors that came with receives. They must be judged, or given to a [`Closer`]: to drop one may
/// wait for another process.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    pub(crate) fds: Vec<OwnedFd>,
    /// Some were lost, as this process has no room for more.
    pub(crate) truncated: bool,
}

impl Lent {
    /// Whether there are none, and none was lost.
    pub(crate) fn is_empty(&self) -> bool {
        self.fds.is_empty() && !self.truncated
    }
}

/// Processor time that a byte may take: many times what a copy takes.
const TIME_PER_BYTE: Duration = Duration::from_nanos(4);

/// A connected socket.
pub(crate) struct Socket {
    /// Until the drop.
    fd: Option<OwnedFd>,
    closer: Arc<Closer>,
    /// Who pays for a thread that closes it, once that is known.
    payer: OnceLock<Payer>,
    unread: Unread,
    buffer: SendBuffer,
    linger: Duration,
    /// Whether sends that sleep are bounded yet.
    calls: SlowCalls,
    sends_linger: AtomicBool,
}

impl Socket {
    /// Takes a connected stream socket. `linger` bounds every sleep in a send or a receive.
    pub(crate) fn new(fd: OwnedFd, linger: Duration, closer: Arc<Closer>) -> Result<Self, Errno> {
        let sends_linger = AtomicBool::new(false);
        let payer = OnceLock::new();
        let (calls, unread) = (SlowCalls::default(), Unread::default());
        let buffer = SendBuffer::of(&fd)?;
        let fd = Some(fd);
        let socket = Self { fd, closer, payer, unread, buffer, linger, calls, sends_linger };
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(linger))?;
        // An urgent byte is data as any other: the kernel would drop it in a receive, and close
        // descriptors that came with it.
        match sockopt::set_socket_oobinline(&socket, true) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(socket),
            Err(errno) => Err(errno),
        }
    }

    /// Who closes what its peer has sent.
    pub(crate) fn closer(&self) -> &Arc<Closer> {
        &self.closer
    }

    /// Names who pays for a thread that closes it. Once.
    pub(crate) fn set_payer(&self, payer: &Payer) {
        let _ = self.payer.set(payer.clone());
    }

    /// Lets `count` descriptors of one reply be sent, for which `payer` pays until they are known to be read.
    ///
    /// # Errors
    /// `EBUSY`: the peer has not read those of earlier replies; `EMFILE`: more than its user may have.
    pub(crate) fn pass(&self, count: usize, payer: &Payer) -> Result<Vec<Passed>, Error> {
        self.unread.pass(self.owned(), count, payer)
    }

    /// What the peer may not have read.
    pub(crate) fn unread(&self) -> &Unread {
        &self.unread
    }

    /// What the kernel keeps of what was sent. Nothing may be sent before somebody pays for that.
    pub(crate) fn buffer(&self) -> &SendBuffer {
        &self.buffer
    }

    /// Looks whether the peer has read the descriptors that it was passed.
    pub(crate) fn settle(&self) {
        self.unread.settle(self.owned());
    }

    fn owned(&self) -> &OwnedFd {
        self.fd.as_ref().expect("there until the drop")
    }

    /// Whether a receive that may sleep is bounded, as it is at first.
    pub(crate) fn bound_receive(&self, bounded: bool) -> Result<(), Errno> {
        sockopt::set_socket_timeout(self, Timeout::Recv, bounded.then_some(self.linger))
    }

    /// Receives what has arrived, at most `buffer`. Interrupted calls are repeated.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        lent: &mut Lent,
        wait: Wait,
    ) -> Result<Received, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if wait == Wait::No {
            flags |= RecvFlags::DONTWAIT;
        }
        loop {
            let mut parts = [IoSliceMut::new(buffer)];
            let got = self.timed(
                || rustix::net::recvmsg(self, &mut parts, &mut control, flags),
                |message| message.bytes,
            );
            match got {
                Ok(message) => {
                    for item in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(fds) = item {
                            lent.fds.extend(fds);
                        }
                    }
                    lent.truncated |= message.flags.contains(ReturnFlags::CTRUNC);
                    return Ok(match message.bytes {
                        0 => Received::Eof,
                        bytes => Received::Bytes(bytes),
                    });
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET) => return Ok(Received::Eof),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends at least one byte of `bytes`, the descriptors with the first; 0 where the peer does
    /// not take any in time.
    pub(crate) fn send(
        &self,
        bytes: &[u8],
        fds: &[Descriptor],
        wait: Wait,
    ) -> Result<usize, Errno> {
        self.send_by(wait, |flags| {
            if fds.is_empty() {
                return rustix::net::send(self, bytes, flags);
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let borrowed: Vec<_> = fds.iter().filter_map(Descriptor::as_safe).collect();
            if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(Errno::TOOBIG);
            }
            rustix::net::sendmsg(self, &[IoSlice::new(bytes)], &mut control, flags)
        })
    }

    /// Sends some of `head` and then of `len` bytes of `memory` at `offset`. Returns how many bytes
    /// of both; 0 where the peer does not take any in time.
    pub(crate) fn send_memory(
        &self,
        head: &[u8],
        memory: &SharedMemory,
        offset: u64,
        len: usize,
        wait: Wait,
    ) -> Result<usize, Errno> {
        self.send_by(wait, |flags| memory.send(head, offset, len, self.as_fd(), flags))
    }

    /// Receives what has arrived, at most `len` bytes, into `memory` at `offset`, without waiting.
    pub(crate) fn receive_into(
        &self,
        memory: &SharedMemory,
        offset: u64,
        len: usize,
        lent: &mut Lent,
    ) -> Result<Received, Errno> {
        let mut receive = || memory.receive(offset, len, self.as_fd(), &mut lent.fds);
        received(|| self.timed(&mut receive, |bytes| *bytes))
    }

    /// Receives what has arrived, at most `len` bytes, and drops the bytes, without waiting.
    pub(crate) fn receive_nowhere(&self, len: usize, lent: &mut Lent) -> Result<Received, Errno> {
        let mut scratch = [0; 16 << 10];
        let len = len.min(scratch.len());
        self.receive(&mut scratch[..len], lent, Wait::No)
    }

    /// Waits for something to receive, no longer than a receive that lingers.
    pub(crate) fn await_input(&self) {
        let linger = Timespec { tv_sec: 0, tv_nsec: self.linger.as_nanos() as _ };
        // Whatever it says, the receive after it says it as well.
        let _ = rustix::event::poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&linger));
    }

    /// Makes a call that wakes whoever watches the peer's end, and moves so many bytes. If it takes long,
    /// as the client has its socket watched very often, its user owes the time.
    fn timed<R>(
        &self,
        call: impl FnOnce() -> Result<R, Errno>,
        bytes: impl FnOnce(&R) -> usize,
    ) -> Result<R, Errno> {
        let (result, took) = self.calls.time(call);
        if let (Some(took), Some(payer)) = (took, self.payer.get()) {
            let moved = result.as_ref().map_or(0, bytes);
            let moved = u32::try_from(moved).unwrap_or(u32::MAX);
            if let Some(more) = took.checked_sub(TIME_PER_BYTE.saturating_mul(moved)) {
                payer.debt().owe(more);
            }
        }
        result
    }

    /// Whether nothing can be sent to the peer any more.
    pub(crate) fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Calls `send`, at first without letting it sleep.
    fn send_by(
        &self,
        wait: Wait,
        mut send: impl FnMut(SendFlags) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let mut flags = SendFlags::NOSIGNAL;
        // Most sends need not sleep, and most connections never do.
        if wait == Wait::No || !self.sends_linger.load(Ordering::Relaxed) {
            flags |= SendFlags::DONTWAIT;
        }
        loop {
            match self.timed(|| send(flags), |bytes| *bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.buffer.grow(self) => {}
                Err(Errno::AGAIN)
                    if wait == Wait::Linger && flags.contains(SendFlags::DONTWAIT) =>
                {
                    sockopt::set_socket_timeout(self, Timeout::Send, Some(self.linger))?;
                    self.sends_linger.store(true, Ordering::Relaxed);
                    flags.remove(SendFlags::DONTWAIT);
                }
                Err(Errno::AGAIN) => return Ok(0),
                other => return other,
            }
        }
    }

    /// Whether the peer has closed its end, also where there is something left to read.
    pub(crate) fn peer_has_closed(&self) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Ends the connection in both directions; a receive in progress sees the end.
    pub(crate) fn shutdown(&self) {
        // Fails only where the peer has gone before us.
        let _ = rustix::net::shutdown(self, Shutdown::Both);
    }
}

/// Calls `receive`, again where it is interrupted.
fn received(mut receive: impl FnMut() -> Result<usize, Errno>) -> Result<Received, Errno> {
    loop {
        match receive() {
            Ok(0) | Err(Errno::CONNRESET) => return Ok(Received::Eof),
            Ok(bytes) => return Ok(Received::Bytes(bytes)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(error) => return Err(error),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owned().as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            let leftover = Leftover::new(self.unread.take(&fd), self.buffer.take());
            self.closer.close_socket_of(fd, self.payer.get(), leftover);
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
pub(crate) mod testing {
    use std::os::unix::net::UnixStream;

    use vfiod_quota::{Ledger, Limit, Limits, Resource, Share, Size, User};

    use super::*;
    use crate::pool::LINGER;

    /// A socket for which a user pays who can spare half of so much memory.
    pub(crate) fn socket(memory: u64) -> (Socket, UnixStream, Payer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut limits = Limits::of_process(1);
        limits.set(Resource::Memory, Limit::new(Size::Common(0), Share::Demanded(memory)));
        let payer = Payer::new(Ledger::new(limits).open("x").unwrap().account, User::Account(0));
        let socket = Socket::new(OwnedFd::from(ours), LINGER, Closer::new("x")).unwrap();
        socket.buffer().pay(&payer).unwrap();
        (socket, theirs, payer)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use vfiod_quota::Resource;

    use super::testing::socket;
    use super::*;
    use crate::send_buffer::{SIZES, most_of};
    use crate::unread_bytes::unread_bytes;

    fn charged(payer: &Payer) -> u64 {
        payer.account().usage(Resource::Memory).used
    }

    /// Messages of many sizes, as many as the kernel takes, in buffers of all sizes.
    #[test]
    fn kernel_keeps_no_more_than_is_charged() {
        for memory in SIZES.map(|size| 2 * most_of(size)) {
            for len in [1, 100, 2000, 2240, 3000, 4096, 33_000, 100_000, 1 << 20] {
                let (socket, _theirs, payer) = socket(memory);
                let message = vec![7; len];
                while socket.send(&message, &[], Wait::No).unwrap() > 0 {}
                let (kept, charged) = (unread_bytes(&socket).unwrap() as u64, charged(&payer));
                assert!(kept <= charged && charged <= memory / 2, "{len}: {kept} of {charged}");
                assert!(kept > memory / 8, "{len}: only {kept} of {memory}");
            }
        }
    }

    #[test]
    fn buffer_grows_only_where_something_does_not_fit() {
        let (socket, theirs, payer) = socket(64 << 20);
        let least = charged(&payer);
        assert_eq!(least, most_of(SIZES[0]));
        let mut bytes = vec![0; 4096];
        for _ in 0..1000 {
            assert_eq!(socket.send(&bytes[..2000], &[], Wait::No).unwrap(), 2000);
            assert_eq!(rustix::io::read(&theirs, &mut *bytes).unwrap(), 2000);
        }
        assert_eq!(charged(&payer), least);
        while socket.send(&bytes, &[], Wait::No).unwrap() > 0 {}
        assert!(charged(&payer) > least);
        // It was closed by its peer: nothing is left.
        drop(theirs);
        drop(socket);
        assert_eq!(charged(&payer), 0);
    }
}
