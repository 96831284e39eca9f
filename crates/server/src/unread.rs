//! What was sent to a client, which may not have read it: descriptors, and the kernel's memory.
//!
//! Until it has read a descriptor, the kernel counts it for the user of this process, all clients and all its
//! other processes together, and fails to send another one beyond `RLIMIT_NOFILE` of them (`ETOOMANYREFS`). So
//! each is charged to its client from when its reply is made until it is known to be read: when the
//! socket is found to hold nothing unread, which is looked at before the next descriptor is sent and
//! when no thread serves the connection any more. A client that reads a reply before it asks again
//! never has more than one reply's descriptors.
//!
//! To close a socket does not take away what its peer has not read. So a socket of which something is not read
//! at the end of its connection is kept, shut down, with what is charged for that ([`Leftover`]), until
//! the client has read it or has closed its end. Nobody waits for that.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvFlags};
use vfiod_core::{Errno, Error, Result};
use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::{Mutex, lock};
use vfiod_wire::Command;

use crate::limits::MAX_FDS;
use crate::send_buffer::Paid;
use crate::unread_bytes::unread_bytes;

/// Descriptors that one connection may have unread; more if they are of one reply.
const MAX_UNREAD: usize = 32;
/// Why a reply has an errno in place of its descriptors.
pub(crate) const DENIED: &str = "no descriptor can be sent: clients, or other processes of this user, have not \
                                 read as many as its RLIMIT_NOFILE allows";
/// How often sockets of connections that have ended are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Stack of the thread that does so, bytes.
const STACK: usize = 64 << 10;

/// A descriptor for a client, from when its reply is made until it is known to be read.
#[derive(Debug)]
pub(crate) struct Passed {
    _charge: Charge,
    _counted: Arc<()>,
}

/// What a socket's peer may not have read.
#[derive(Default)]
pub(crate) struct Unread {
    /// As many owners as there are descriptors, and one.
    count: Arc<()>,
    state: Mutex<State>,
    has_denied: AtomicBool,
}

#[derive(Default)]
struct State {
    sent: Vec<Passed>,
    /// Commands whose replies could not have their descriptors.
    denied: Vec<u16>,
}

impl Unread {
    fn count(&self) -> usize {
        Arc::strong_count(&self.count) - 1
    }

    /// Lets `count` descriptors of one reply be sent, for which `payer` pays until they are known to be read.
    ///
    /// # Errors
    /// `EBUSY`: the client has not read those of earlier replies; `EMFILE`: more than its user may have.
    pub(crate) fn pass(
        &self,
        socket: &OwnedFd,
        count: usize,
        payer: &Payer,
    ) -> Result<Vec<Passed>> {
        self.settle(socket);
        let unread = self.count();
        if unread > 0 && unread + count > MAX_UNREAD {
            let what = format!(
                "{count} descriptors more, and the client may not have read {unread} of earlier replies; \
                 a connection may have {MAX_UNREAD}"
            );
            return Err(Error::new(Errno::BUSY, what));
        }
        let pass = |_| {
            let charge = payer.charge(Resource::Descriptors, 1)?;
            Ok(Passed { _charge: charge, _counted: self.count.clone() })
        };
        (0..count).map(pass).collect()
    }

    /// These were sent.
    pub(crate) fn sent(&self, passed: impl Iterator<Item = Passed>) {
        lock(&self.state).sent.extend(passed);
    }

    /// Looks whether all was read.
    pub(crate) fn settle(&self, socket: &OwnedFd) {
        if self.count() == 0 {
            return;
        }
        let mut state = lock(&self.state);
        if !state.sent.is_empty() && unread_bytes(socket).unwrap_or(0) == 0 {
            state.sent = Vec::new();
        }
    }

    /// What may not have been read at the end of the connection.
    pub(crate) fn take(&self, socket: &OwnedFd) -> Vec<Passed> {
        self.settle(socket);
        std::mem::take(&mut lock(&self.state).sent)
    }

    /// The reply to a command could not have its descriptors.
    pub(crate) fn denied(&self, command: u16) {
        lock(&self.state).denied.push(command);
        self.has_denied.store(true, Ordering::Release);
    }

    /// Takes the commands whose replies could not have their descriptors.
    pub(crate) fn take_denied(&self) -> Vec<Command> {
        if !self.has_denied.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut state = lock(&self.state);
        self.has_denied.store(false, Ordering::Release);
        let denied = std::mem::take(&mut state.denied);
        denied.into_iter().filter_map(Command::from_number).collect()
    }
}

/// What is charged for what may not have been read at the end of a connection.
#[derive(Debug)]
pub(crate) struct Leftover {
    passed: Vec<Passed>,
    /// `None`: nothing was sent.
    paid: Option<Paid>,
}

impl Leftover {
    pub(crate) fn new(passed: Vec<Passed>, paid: Option<Paid>) -> Self {
        Self { passed, paid }
    }

    /// Whether the peer has not read all of it. What it has read is not charged any more.
    pub(crate) fn is_left(&self, socket: &OwnedFd) -> bool {
        let unread = match (&self.paid, self.passed.is_empty()) {
            (None, true) => 0,
            _ => unread_bytes(socket).unwrap_or(0),
        };
        if let Some(paid) = &self.paid {
            paid.shrink(unread);
        }
        unread > 0
    }
}

/// Sockets of connections that have ended, with what was not read.
struct Kept {
    sockets: Vec<(OwnedFd, Leftover)>,
    /// Whether a thread looks at them.
    watched: bool,
}

// Of the process, as is what the kernel counts.
static KEPT: std::sync::Mutex<Kept> =
    std::sync::Mutex::new(Kept { sockets: Vec::new(), watched: false });

/// Closes the socket of a connection that has ended once its peer has read what was passed, or has
/// closed its end. The socket is shut down, and nothing that it has received is left in it.
pub(crate) fn close_when_read(socket: OwnedFd, leftover: Leftover) {
    if !leftover.is_left(&socket) {
        return;
    }
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.sockets.push((socket, leftover));
    if !kept.watched {
        let thread = thread::Builder::new().name("unread-fds".to_owned()).stack_size(STACK);
        // Where none can be started, the next socket tries again.
        kept.watched = thread.spawn(look_at_kept).is_ok();
    }
}

fn look_at_kept() {
    loop {
        thread::sleep(LOOK);
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sockets.retain(|(socket, leftover)| leftover.is_left(socket));
        if kept.sockets.is_empty() {
            *kept = Kept { sockets: Vec::new(), watched: false };
            return;
        }
    }
}

/// Drops what a socket that is shut down has received. To close a descriptor among it may wait for another
/// process.
pub(crate) fn drop_received(socket: &OwnedFd) {
    let mut bytes = [0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let slice = &mut [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, slice, &mut control, flags) {
            Ok(message) if message.bytes > 0 => drop(control),
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}
