//! The link from the worker's side.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use vfiod_journal::link::{self, Wait};
use vfiod_journal::message::{Class, Death, Deaths, Key, PROTOCOL, ToHolder, ToWorker};

use crate::worker::HOLDER;

/// What a worker begins with.
#[derive(Debug)]
pub struct Beginning {
    /// Workers that were started before.
    pub starts: u64,
    /// How the one before ended.
    pub death: Death,
    /// How all of them ended.
    pub deaths: Deaths,
    /// What is kept.
    pub kept: BTreeMap<Key, (Class, OwnedFd)>,
    died: u64,
}

impl Beginning {
    /// How long ago the holder has seen that the worker before has ended; `None`: there was none.
    pub fn since_death(&self) -> Option<Duration> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32);
        let died = Duration::from_nanos(self.died);
        (self.died != 0).then(|| now.saturating_sub(died))
    }
}

/// The holder of this process. Its methods do nothing if the holder has ended: [`Link::wait`] says that.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    holder: i32,
}

/// What [`Link::wait`] has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHolder {
    /// It did not do something: the number of the message, and why.
    Refused(u32, Errno),
    /// It has ended, or sends what is no message.
    Ended,
}

impl Link {
    /// The holder that has started this process, and what it hands over. `None`: there is none. To be called
    /// once, before anything else uses standard input.
    ///
    /// # Errors
    /// The holder ended, or sent what this program does not know; a descriptor was lost.
    pub fn begin() -> io::Result<Option<(Self, Beginning)>> {
        let Some(holder) = holder() else { return Ok(None) };
        // The kernel has named this process after a descriptor.
        if let Some(name) = std::env::args_os().next()
            && let Some(name) = std::path::Path::new(&name).file_name()
            && let Ok(name) = std::ffi::CString::new(name.as_bytes())
        {
            let _ = rustix::thread::set_name(&name);
        }
        let mut beginning = Beginning {
            starts: 0,
            death: Death::First,
            deaths: Deaths::default(),
            kept: BTreeMap::new(),
            died: 0,
        };
        while let Some(mut received) = link::receive(link::of_worker(), Wait::Yes)? {
            match ToWorker::decode(received.bytes()).map_err(io::Error::other)? {
                ToWorker::Begin { protocol: PROTOCOL, starts, death, died, deaths, .. } => {
                    beginning = Beginning { starts, death, deaths, died, ..beginning };
                }
                ToWorker::Kept { key, class, .. } => {
                    let fd = received.only_fd().ok_or_else(|| {
                        io::Error::other("a descriptor of the holder was lost: RLIMIT_NOFILE?")
                    })?;
                    beginning.kept.insert(key, (class, fd));
                }
                ToWorker::Settings(_) => {}
                ToWorker::Complete => {
                    let link = Self { holder };
                    link.send(ToHolder::Hello { protocol: PROTOCOL }, None);
                    return Ok(Some((link, beginning)));
                }
                message => {
                    let what =
                        format!("the holder sent what this program does not know: {message:?}");
                    return Err(io::Error::other(what));
                }
            }
        }
        Err(io::Error::other("the holder has ended"))
    }

    /// The holder's process id.
    pub fn holder(&self) -> i32 {
        self.holder
    }

    /// Sends a message, with a descriptor.
    pub fn send(&self, message: ToHolder, fd: Option<BorrowedFd<'_>>) {
        let fds: Vec<_> = fd.into_iter().collect();
        // Fails only if the holder has ended.
        let _ = link::send(link::of_worker(), &message.encode(), &fds, Wait::Yes);
    }

    /// Waits for something that the worker must know.
    pub fn wait(&self) -> FromHolder {
        loop {
            let received = match link::receive(link::of_worker(), Wait::Yes) {
                Ok(Some(received)) => received,
                Ok(None) | Err(_) => return FromHolder::Ended,
            };
            match ToWorker::decode(received.bytes()) {
                Ok(ToWorker::Refused { message, errno, .. }) => {
                    let errno = Errno::from_raw_os_error(i32::try_from(errno).unwrap_or(0));
                    return FromHolder::Refused(message, errno);
                }
                // Of connections that it was not asked to accept.
                Ok(_) => {}
                Err(_) => return FromHolder::Ended,
            }
        }
    }
}

/// The parent's process id, if standard input is a link to it.
fn holder() -> Option<i32> {
    let named = std::env::var(HOLDER).ok()?.parse::<i32>().ok()?;
    // The environment may be that of another process, which had a holder.
    let parent = rustix::process::getppid()?.as_raw_nonzero().get();
    let stdin = std::io::stdin();
    let is_link = rustix::net::sockopt::socket_type(&stdin) == Ok(SocketType::SEQPACKET)
        && rustix::net::sockopt::socket_domain(stdin.as_fd()) == Ok(AddressFamily::UNIX);
    (named == parent && is_link).then_some(parent)
}
