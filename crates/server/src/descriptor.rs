//! Descriptors of a connection: a client's, which are judged as they arrive, and ours for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, readlink};
use vfiod_core::{Errno, Error};
use vfiod_protocol::Request;
use vfiod_quota::{Charge, Exceeded, Payer, Resource};

use crate::closer::{Closer, is_safe};
use crate::unread::Passed;

/// Descriptors in a connection's input.
pub(crate) type Descriptors = vfiod_protocol::Descriptors<Descriptor>;
/// The protocol's side of a connection.
pub(crate) type State = vfiod_protocol::Connection<Descriptor>;
/// What is to be sent.
pub(crate) type Output = vfiod_protocol::Output<Descriptor>;

/// A descriptor in a connection's input or output.
///
/// Of a client's, only those are kept that a command can ask for. Everything else goes to the closer
/// before its message is complete: a client can put its own end of the connection into a socket, or
/// send it, and would then never be seen to close it.
#[derive(Debug)]
pub(crate) struct Descriptor(Kind);

#[derive(Debug)]
enum Kind {
    /// A client's eventfd or memory: no call on it can wait for another process.
    Safe { fd: OwnedFd, _charge: Charge },
    /// One for the client.
    Ours { fd: OwnedFd, passed: Passed },
    /// A client's file, where the operator accepts files that can block.
    File { fd: Option<OwnedFd>, closer: Arc<Closer>, charge: Charge },
    /// A client's, which no command can ask for.
    Refused,
    /// A client's, more than it may have.
    Excess(Exceeded),
}

impl Descriptor {
    /// One for the client.
    pub(crate) fn passed(fd: OwnedFd, passed: Passed) -> Self {
        Self(Kind::Ours { fd, passed })
    }

    /// What is left of one for the client once it is sent.
    pub(crate) fn into_passed(mut self) -> Option<Passed> {
        match std::mem::replace(&mut self.0, Kind::Refused) {
            Kind::Ours { passed, .. } => Some(passed),
            other => {
                drop(Self(other));
                None
            }
        }
    }

    /// Judges a client's descriptor, for which the client pays if it is kept. `accepts_files`: whether
    /// the operator accepts files that can block.
    pub(crate) fn judge(
        fd: OwnedFd,
        closer: &Arc<Closer>,
        accepts_files: bool,
        payer: &Payer,
    ) -> Self {
        let is_safe = is_safe(&fd);
        let is_kept = is_safe || (accepts_files && has_path(&fd));
        if !is_kept {
            closer.close_elsewhere(fd, Some(payer));
            return Self(Kind::Refused);
        }
        Self(match payer.charge(Resource::Descriptors, 1) {
            Ok(charge) if is_safe => Kind::Safe { fd, _charge: charge },
            Ok(charge) => Kind::File { fd: Some(fd), closer: closer.clone(), charge },
            Err(exceeded) => {
                if !is_safe {
                    closer.close_elsewhere(fd, Some(payer));
                }
                Kind::Excess(exceeded)
            }
        })
    }

    /// Whether it went to the closer.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.0, Kind::Refused)
    }

    /// An eventfd or memory.
    pub(crate) fn into_safe(mut self) -> Option<OwnedFd> {
        match std::mem::replace(&mut self.0, Kind::Refused) {
            Kind::Safe { fd, .. } | Kind::Ours { fd, .. } => Some(fd),
            file @ Kind::File { .. } => {
                drop(Self(file));
                None
            }
            Kind::Refused | Kind::Excess(_) => None,
        }
    }

    /// An eventfd, memory, or a file that the operator accepts.
    pub(crate) fn into_file(mut self) -> Option<OwnedFd> {
        match &mut self.0 {
            Kind::File { fd, .. } => fd.take(),
            Kind::Safe { .. } | Kind::Ours { .. } | Kind::Refused | Kind::Excess(_) => {
                self.into_safe()
            }
        }
    }

    /// The descriptor, if it can be sent.
    pub(crate) fn as_safe(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Safe { fd, .. } | Kind::Ours { fd, .. } => Some(fd.as_fd()),
            Kind::File { .. } | Kind::Refused | Kind::Excess(_) => None,
        }
    }
}

/// Takes the descriptors of a request, to be carried out.
///
/// # Errors
/// `EINVAL`: DEVICE_SET_IRQS with something else than eventfds. `ENODEV`: DMA_MAP of a file that is
/// not accepted. `EMFILE`: a descriptor more than the client's user may have.
pub(crate) fn of_request(request: Request<'_, Descriptor>) -> Result<Request<'_, OwnedFd>, Error> {
    let dma = matches!(request, Request::DmaMap(..));
    let mut excess = None;
    let take = |fd: Descriptor| {
        if let Kind::Excess(exceeded) = fd.0 {
            excess = Some(exceeded);
        }
        if dma { fd.into_file() } else { fd.into_safe() }
    };
    let taken = request.try_map_descriptors(take);
    if let Some(exceeded) = excess {
        return Err(exceeded.into());
    }
    taken.ok_or_else(|| match dma {
        true => Error::new(
            Errno::NODEV,
            "a descriptor for DMA must be memory (a memfd, or a file of a tmpfs or hugetlbfs), \
             unless the operator accepts other files",
        ),
        false => Error::new(Errno::INVAL, "a descriptor for an interrupt is no eventfd"),
    })
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Kind::File { fd, closer, charge } = &mut self.0
            && let Some(fd) = fd.take()
        {
            closer.close_elsewhere(fd, Some(charge.payer()));
        }
    }
}

/// Whether a descriptor stands for an open file that has or had a path: not a socket, and nothing that
/// can hold one. `false` without `/proc`.
fn has_path(fd: &OwnedFd) -> bool {
    if fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH)) {
        return false;
    }
    let name = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
    name.is_ok_and(|name| name.as_bytes().starts_with(b"/"))
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::Mode;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use vfiod_quota::{Ledger, Limits, User};

    use super::*;
    use crate::testing::eventually;

    #[test]
    fn only_eventfds_memory_and_accepted_files_are_kept() {
        let closer = Closer::new("x");
        let ledger = Ledger::new(Limits::of_process(1));
        let payer = Payer::new(ledger.open("x").unwrap().account, User::Account(0));
        let judge = |fd, accepts| Descriptor::judge(fd, &closer, accepts, &payer);
        let disk = || std::fs::File::open(std::env::current_exe().unwrap()).unwrap().into();
        let memory = || rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let socket = || std::os::unix::net::UnixStream::pair().unwrap().0.into();
        let epoll = || epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let pidfd = || pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        // It names the same file, but no call on the file works.
        let path_of = |fd: OwnedFd| {
            let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::fs::open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let (path_of_event, path_of_memory) = (|| path_of(event()), || path_of(memory()));
        type Make<'a> = &'a dyn Fn() -> OwnedFd;
        let makes: [(Make<'_>, bool, bool); 8] = [
            (&memory, true, true),
            (&event, true, true),
            (&path_of_event, false, false),
            (&path_of_memory, false, false),
            (&disk, false, true),
            (&socket, false, false),
            (&epoll, false, false),
            (&pidfd, false, false),
        ];
        for (make, safe, file) in makes {
            assert_eq!(judge(make(), false).into_file().is_some(), safe);
            assert_eq!(judge(make(), true).into_safe().is_some(), safe);
            assert_eq!(judge(make(), true).into_file().is_some(), file);
        }
        let (pipe, other) = rustix::pipe::pipe().unwrap();
        drop(judge(pipe, false));
        eventually("it is closed", || rustix::io::write(&other, b"x").is_err());
    }
}
