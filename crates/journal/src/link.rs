//! A socket on which messages and descriptors go.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::message::{MAX_LEN, MAX_REPLY_FDS, Packet};

/// Makes both ends of a link.
///
/// # Errors
/// Those of `socketpair`.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)
}

/// The worker's end: its descriptor 0, of which there must be no other. The kernel closes descriptors from 0
/// on, when no thread of a dying process has memory any more: so the end of the link says that, even where
/// the close of another descriptor hangs.
pub fn of_worker() -> std::io::Stdin {
    std::io::stdin()
}

/// What came with a message.
#[derive(Debug, Default)]
pub struct Received {
    bytes: Vec<u8>,
    /// The descriptors.
    pub fds: Vec<OwnedFd>,
    /// Bytes or descriptors were lost: the message was too long, or there was no room for a descriptor.
    pub is_truncated: bool,
}

impl Received {
    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The only descriptor.
    pub fn only_fd(&mut self) -> Option<OwnedFd> {
        if self.fds.len() == 1 && !self.is_truncated { self.fds.pop() } else { None }
    }
}

/// Whether a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Yes,
    /// Not at all: `EAGAIN`.
    No,
}

/// Sends a message with descriptors. At most [`MAX_REPLY_FDS`].
///
/// # Errors
/// Those of `sendmsg`; `EINVAL`: too many descriptors.
pub fn send(
    link: impl AsFd,
    packet: &Packet,
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<(), Errno> {
    send_bytes(link, packet.bytes(), fds, wait).map(|_| ())
}

/// Sends bytes with descriptors on any socket.
///
/// # Errors
/// As [`send`].
pub fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REPLY_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let mut flags = SendFlags::NOSIGNAL;
    if wait == Wait::No {
        flags |= SendFlags::DONTWAIT;
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Receives a message; `None` at the end of the link.
///
/// # Errors
/// Those of `recvmsg`; `EAGAIN`: there is none.
pub fn receive(link: impl AsFd, wait: Wait) -> Result<Option<Received>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REPLY_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if wait == Wait::No {
        flags |= RecvFlags::DONTWAIT;
    }
    let mut bytes = vec![0; MAX_LEN];
    let got = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&link, &mut parts, &mut control, flags) {
            // Told once if the other end was closed with something unread. What it has sent comes next.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    let mut received = Received::default();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            received.fds.extend(fds);
        }
    }
    received.is_truncated = got.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
    // No message is empty.
    if got.bytes == 0 && received.fds.is_empty() {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    received.bytes = bytes;
    Ok(Some(received))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::message::{Key, ToHolder};

    #[test]
    fn message_and_descriptor_outlive_their_sender() {
        let (ours, theirs) = pair().unwrap();
        let file = crate::memory::create_file("kept", 8).unwrap();
        rustix::io::pwrite(&file, b"bytes", 0).unwrap();
        let message = ToHolder::Drop { key: Key { owner: 1, token: 2 } };
        send(&theirs, &message.encode(), &[file.as_fd()], Wait::No).unwrap();
        drop((theirs, file));
        let mut received = receive(&ours, Wait::No).unwrap().unwrap();
        assert_eq!(ToHolder::decode(received.bytes()), Ok(message));
        let mut bytes = [0; 5];
        rustix::io::pread(received.only_fd().unwrap(), &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"bytes");
        assert!(receive(&ours, Wait::No).unwrap().is_none());
    }

    #[test]
    fn message_of_a_sender_that_has_left_something_unread_is_received() {
        let (ours, theirs) = pair().unwrap();
        let message = ToHolder::Drop { key: Key { owner: 1, token: 2 } };
        send(&ours, &ToHolder::Ready.encode(), &[], Wait::No).unwrap();
        send(&theirs, &message.encode(), &[], Wait::No).unwrap();
        drop(theirs);
        let received = receive(&ours, Wait::No).unwrap().expect("the message");
        assert_eq!(ToHolder::decode(received.bytes()), Ok(message));
        assert!(receive(&ours, Wait::No).unwrap().is_none());
    }

    #[test]
    fn message_that_is_too_long_is_truncated() {
        let (ours, theirs) = pair().unwrap();
        send_bytes(&theirs, &[0; MAX_LEN + 1], &[], Wait::No).unwrap();
        assert!(receive(&ours, Wait::No).unwrap().unwrap().is_truncated);
        assert_eq!(receive(&ours, Wait::No).unwrap_err(), Errno::AGAIN);
    }
}
