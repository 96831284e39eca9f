//! Eventfds that a peer handed over: checked to be eventfds, signalled without ever blocking.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, readlink};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};

use crate::error::{Error, Result};
use crate::sync::{Arc, thread};

/// A descriptor known to be an eventfd.
///
/// A write to an eventfd blocks only while its counter is at the maximum and `O_NONBLOCK` is
/// off. That flag belongs to the description, which the peer shares, so it is not set here
/// behind the peer's back (its own reads would start to fail); every client seen uses
/// non-blocking eventfds anyway. For a blocking one each signal asks `poll` first. A peer that
/// clears the flag later, or fills the counter between `poll` and `write`, can still hold the
/// signalling thread: no lock is held then, and [`retire`] frees it.
#[derive(Debug)]
pub(super) struct EventFd {
    fd: OwnedFd,
    nonblocking: bool,
}

impl EventFd {
    /// Checks a descriptor. `EINVAL` if it is anything but an eventfd.
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        if !is_eventfd(fd.as_fd()) {
            return Err(Error::new(Errno::INVAL, "a descriptor for an interrupt is no eventfd"));
        }
        let flags = fcntl_getfl(&fd)
            .map_err(|e| Error::new(e, "cannot read the flags of an interrupt's eventfd"))?;
        Ok(Self { fd, nonblocking: flags.contains(OFlags::NONBLOCK) })
    }

    /// Adds 1. A full counter is as good: whoever waits for it finds it readable.
    pub(super) fn signal(&self) {
        if !self.nonblocking {
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(1) if fds[0].revents().contains(PollFlags::OUT) => {}
                _ => return,
            }
        }
        match write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => tracing::debug!(%error, "an interrupt's eventfd refused a signal"),
        }
    }

    /// Takes the counter without waiting; whether it was above 0.
    pub(super) fn take(&self) -> bool {
        let mut counter = [0; 8];
        // RWF_NOWAIT holds for this call whatever the peer does to the description's flags.
        match preadv2(
            &self.fd,
            &mut [IoSliceMut::new(&mut counter)],
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(_) => true,
            // Before Linux 5.7.
            Err(Errno::OPNOTSUPP) => {
                let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
                    && rustix::io::read(&self.fd, &mut counter).is_ok()
            }
            Err(_) => false,
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a descriptor is an eventfd, by its name in `/proc`. Without `/proc`: whether it
/// refuses an empty write as malformed, which nothing that could block a signal does.
fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;
    match readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()) {
        Ok(name) => name.as_bytes() == b"anon_inode:[eventfd]",
        Err(_) => write(fd, &[]) == Err(Errno::INVAL),
    }
}

/// Waits until no signal of an eventfd that was taken away is under way, so that the peer sees
/// none later, and closes it. One that the peer blocks on purpose is freed by emptying the
/// counter; bounded all the same.
pub(super) fn retire(fds: Vec<Arc<EventFd>>) {
    const PATIENCE: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_millis(200);
    for mut fd in fds {
        let start = Instant::now();
        loop {
            match Arc::try_unwrap(fd) {
                Ok(_) => break,
                Err(shared) => fd = shared,
            }
            if start.elapsed() > LIMIT {
                tracing::warn!("a peer's eventfd still blocks a signal");
                break;
            }
            if start.elapsed() > PATIENCE {
                fd.take();
            }
            thread::yield_now();
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn full(flags: EventfdFlags) -> (OwnedFd, EventFd) {
        let ours = eventfd(0, flags).unwrap();
        write(&ours, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let theirs = EventFd::new(ours.try_clone().unwrap()).unwrap();
        (ours, theirs)
    }

    #[test]
    fn a_full_counter_never_blocks() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let (_ours, fd) = full(flags);
            fd.signal();
            assert!(fd.take());
            assert!(!fd.take());
            fd.signal();
            assert!(fd.take());
        }
    }

    #[test]
    fn a_signal_that_the_peer_blocked_on_purpose_is_freed() {
        let (ours, fd) = full(EventfdFlags::NONBLOCK);
        rustix::fs::fcntl_setfl(&ours, OFlags::empty()).unwrap();
        let fd = Arc::new(fd);
        let signaller = std::thread::spawn({
            let fd = fd.clone();
            move || fd.signal()
        });
        std::thread::sleep(Duration::from_millis(5));
        retire(vec![fd]);
        signaller.join().unwrap();
    }

    #[test]
    fn only_eventfds_are_taken() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let socket = std::os::unix::net::UnixStream::pair().unwrap().0.into();
        for fd in [pipe, file, socket] {
            assert_eq!(EventFd::new(fd).unwrap_err().errno(), Errno::INVAL);
        }
    }
}
