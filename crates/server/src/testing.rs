//! What unit tests and `tests/protocol` share.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A socket whose last close waits until this is dropped, ten minutes at most.
pub(crate) struct Lingering {
    /// First: its end ends the wait.
    _peer: TcpStream,
    socket: Mutex<Option<OwnedFd>>,
}

impl Lingering {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        set_socket_linger(&socket, Some(Duration::from_secs(600))).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 1 << 16]).is_ok() {}
        Self { socket: Mutex::new(Some(socket.into())), _peer: peer }
    }

    /// The socket, once.
    pub(crate) fn take(&self) -> OwnedFd {
        self.socket.lock().unwrap().take().unwrap()
    }

    /// Sends the socket with a byte to somebody who does not read yet, and closes it here: whoever reads it
    /// has the last descriptor of it when this returns.
    pub(crate) fn send_by(&self, channel: impl AsFd) {
        let fd = self.take();
        send_byte(channel, fd.as_fd(), SendFlags::empty());
    }

    /// Has the socket sent, and closes it here: on a thread of its own, in case that whoever got it
    /// has closed it before.
    #[allow(dead_code)] // by `tests/protocol` alone
    pub(crate) fn send_with<R>(&self, send: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
        let fd = self.take();
        let sent = send(fd.as_fd());
        std::thread::spawn(move || drop(fd));
        sent
    }
}

/// Sends a byte with a descriptor.
pub(crate) fn send_byte(channel: impl AsFd, fd: BorrowedFd<'_>, flags: SendFlags) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(channel, &[IoSlice::new(b"x")], &mut control, flags).unwrap();
}

/// Nothing takes that long, unless it hangs: also on a machine that is busy or stands still for seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, for [`PATIENCE`] at most, until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
