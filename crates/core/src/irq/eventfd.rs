//! Eventfds that a client handed over: checked to be eventfds, signalled and drained without ever
//! staying blocked.

use std::cell::Cell;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, readlink};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use vfiod_quota::{Charge, Payer, Resource, SlowCalls};

use super::watchdog;
use crate::error::{Error, Result};
use crate::sync::{Arc, thread};

/// A descriptor known to be an eventfd.
///
/// A write to an eventfd blocks while its counter is at the maximum and `O_NONBLOCK` is off. That
/// flag belongs to the description, which the client shares, so it is not set here behind the
/// client's back (its own reads would start to fail), and would not stay set either. A write that
/// a client blocks is interrupted by the `watchdog`.
///
/// A write also wakes whoever watches the eventfd, with nothing that could interrupt it: a client can
/// have it watched so often that this takes very long ([`SlowCalls`]). Its user owes that time.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// What the client is charged for it.
    charge: Option<Charge>,
    calls: SlowCalls,
    /// How many of the last signals were slow.
    slow: AtomicU8,
}

/// How many slow signals in a row are too many: a virtual machine's processor may have been taken from
/// it during one.
const MAX_SLOW: u8 = 3;

/// How long a thread looks first whether a write would block, once a client has let one block. A device
/// can have thousands of vectors, and each write that blocks takes some milliseconds.
const CAREFUL: Duration = Duration::from_millis(100);

thread_local! {
    /// Until when this thread looks first.
    static CAREFUL_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// The counter is above 0: whoever waits for it finds it readable.
    Yes,
    /// The counter is above 0, but the write had to be interrupted: the client has filled the counter
    /// and made the eventfd blocking. Another signal would block again.
    Blocked,
    /// The counter is above 0, but several writes took long, as the client has the eventfd watched very
    /// often.
    Slow,
}

impl EventFd {
    /// Checks a descriptor of a client that pays for it. What is no eventfd is closed, which may wait for
    /// another process: see [`is_eventfd`].
    ///
    /// # Errors
    /// `EINVAL`: it is anything but an eventfd; `EMFILE`: the payer's user has as many descriptors as it
    /// may have.
    pub fn new(fd: OwnedFd, payer: Option<&Payer>) -> Result<Self> {
        if !is_eventfd(&fd) {
            return Err(Error::new(Errno::INVAL, "a descriptor for an interrupt is no eventfd"));
        }
        let charge = payer.map(|payer| payer.charge(Resource::Descriptors, 1)).transpose()?;
        Ok(Self { fd, charge, calls: SlowCalls::default(), slow: AtomicU8::new(0) })
    }

    /// Adds 1, unless the counter is full: it is readable then, too. Takes some milliseconds if
    /// the client blocks it, but not for each of several; no lock may be held.
    pub fn signal(&self) -> Signalled {
        let careful = || CAREFUL_UNTIL.get().is_some_and(|until| Instant::now() < until);
        let write = || if careful() { self.write_if_room() } else { self.write() };
        let guarded = || watchdog::guarded(write).unwrap_or_else(|| self.write_if_room());
        let (written, is_slow) = self.timed(guarded);
        match written {
            Ok(_) | Err(Errno::AGAIN) if self.is_too_slow(is_slow) => Signalled::Slow,
            Ok(_) | Err(Errno::AGAIN) => Signalled::Yes,
            // Only a write that waits for room can be interrupted.
            Err(Errno::INTR) => {
                CAREFUL_UNTIL.set(Some(Instant::now() + CAREFUL));
                Signalled::Blocked
            }
            Err(error) => {
                tracing::debug!(%error, "an interrupt's eventfd refused a signal");
                Signalled::Yes
            }
        }
    }

    /// Makes a call on the eventfd. Returns whether it took long, too, which its user owes then.
    fn timed<R>(&self, call: impl FnOnce() -> R) -> (R, bool) {
        let (result, took) = self.calls.time(call);
        if let (Some(took), Some(charge)) = (took, &self.charge) {
            charge.payer().debt().owe(took);
        }
        (result, took.is_some())
    }

    /// Counts a signal. Returns whether there were too many slow ones in a row.
    #[inline]
    fn is_too_slow(&self, is_slow: bool) -> bool {
        if is_slow {
            // Of several threads, one may be missed: they go on counting.
            let slow = self.slow.load(Ordering::Relaxed).saturating_add(1);
            self.slow.store(slow, Ordering::Relaxed);
            return slow >= MAX_SLOW;
        }
        if self.slow.load(Ordering::Relaxed) > 0 {
            self.slow.store(0, Ordering::Relaxed);
        }
        false
    }

    fn write(&self) -> std::result::Result<usize, Errno> {
        write(&self.fd, &1u64.to_ne_bytes())
    }

    /// For a thread without a watchdog, and after a write that a client has let block.
    fn write_if_room(&self) -> std::result::Result<usize, Errno> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(1) if fds[0].revents().contains(PollFlags::OUT) => self.write(),
            _ => Err(Errno::AGAIN),
        }
    }

    /// Takes the counter without waiting. Returns whether it was above 0.
    pub fn take(&self) -> bool {
        self.timed(|| drain(&self.fd)).0.unwrap_or(false)
    }
}

/// Takes the counter of an eventfd without waiting, whatever its flags are. Returns whether it was
/// above 0.
pub(crate) fn drain(fd: &OwnedFd) -> std::result::Result<bool, Errno> {
    let mut counter = [0; 8];
    let mut parts = [IoSliceMut::new(&mut counter)];
    // RWF_NOWAIT holds for this call, whatever the client does to the description's flags.
    match preadv2(fd, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        // Before Linux 5.7. Another reader may come in between, and then this one waits for the
        // next signal; no client seen does that to us.
        Err(Errno::OPNOTSUPP) => {
            let mut fds = [PollFd::new(fd, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default()))? {
                0 => Ok(false),
                _ => rustix::io::read(fd, &mut counter).map(|_| true),
            }
        }
        Err(error) => Err(error),
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a descriptor is an eventfd that can be signalled. Asks nobody but the kernel, and so never
/// waits.
///
/// By its name in `/proc`, which a descriptor with `O_PATH` has as well: every read and write of that
/// fails. Without `/proc`, a timerfd and a signalfd pass, too: no call on them can
/// wait for another process either.
pub fn is_eventfd(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    match readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()) {
        Ok(name) => name.as_bytes() == b"anon_inode:[eventfd]" && !is_path(fd),
        Err(_) => refuses_short_reads(fd),
    }
}

/// Whether a descriptor only names a file (`O_PATH`).
fn is_path(fd: BorrowedFd<'_>) -> bool {
    fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH))
}

/// Whether a read without waiting of less than a counter is malformed. Of a file whose reads can wait
/// for a file system's server, `RWF_NOWAIT` is refused before that is asked.
fn refuses_short_reads(fd: BorrowedFd<'_>) -> bool {
    let mut short = [0; 4];
    let mut parts = [IoSliceMut::new(&mut short)];
    preadv2(fd, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) == Err(Errno::INVAL)
}

/// Waits until no signal to eventfds that were removed is under way, so that the client sees
/// none later, and closes them. A signal that the client blocks is interrupted by the watchdog;
/// bounded all the same.
pub(super) fn retire(fds: Vec<Arc<EventFd>>) {
    const YIELDS: u32 = 100;
    const PAUSE: Duration = Duration::from_micros(200);
    const LIMIT: Duration = Duration::from_secs(1);
    let start = Instant::now();
    for mut fd in fds {
        let mut tries = 0;
        while let Err(shared) = Arc::try_unwrap(fd) {
            fd = shared;
            tries += 1;
            if tries < YIELDS || cfg!(any(loom, shuttle)) {
                thread::yield_now();
            } else if start.elapsed() < LIMIT {
                std::thread::sleep(PAUSE);
            } else {
                tracing::warn!("a signal to a client's eventfd is still blocked");
                break;
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_setfl};

    fn full(flags: EventfdFlags) -> (OwnedFd, EventFd) {
        let ours = eventfd(0, flags).unwrap();
        write(&ours, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let theirs = EventFd::new(ours.try_clone().unwrap(), None).unwrap();
        (ours, theirs)
    }

    /// Runs `call` on a thread of its own, and fails if it is blocked.
    fn unblocked<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(call()));
        receiver.recv_timeout(Duration::from_secs(20)).expect("a client blocks the thread")
    }

    #[test]
    fn full_counter_of_a_nonblocking_eventfd_counts_as_signalled() {
        let (_ours, fd) = full(EventfdFlags::NONBLOCK);
        assert_eq!(fd.signal(), Signalled::Yes);
        assert!(fd.take());
        assert!(!fd.take());
        assert_eq!(fd.signal(), Signalled::Yes);
        assert!(fd.take());
    }

    #[test]
    fn signal_that_the_client_blocks_is_interrupted() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let (ours, fd) = full(flags);
            let fd = Arc::new(fd);
            fcntl_setfl(&ours, OFlags::empty()).unwrap();
            // A thread for each, as one that was blocked is careful for a while.
            let signal = || {
                let fd = fd.clone();
                unblocked(move || fd.signal())
            };
            assert_eq!(signal(), Signalled::Blocked);
            assert_eq!(signal(), Signalled::Blocked, "again, and the next thread as well");
            assert!(fd.take(), "it is readable");
            assert_eq!(signal(), Signalled::Yes);
        }
    }

    /// A batch of a device with many vectors.
    #[test]
    fn thread_that_was_blocked_is_not_blocked_for_every_further_signal() {
        let (_ours, fd) = full(EventfdFlags::empty());
        let blocked = (0..2_000).filter(|_| fd.signal() == Signalled::Blocked).count();
        // Once, and again each time that it is careful no more.
        assert!((1..1_000).contains(&blocked), "{blocked}");
    }

    #[test]
    fn thread_without_a_watchdog_does_not_write_to_a_full_counter() {
        let (_ours, fd) = full(EventfdFlags::empty());
        assert_eq!(fd.write_if_room(), Err(Errno::AGAIN));
        assert!(fd.take());
        assert_eq!(fd.write_if_room(), Ok(8));
    }

    #[test]
    fn retire_returns_after_a_signal_that_the_client_blocks() {
        let (ours, fd) = full(EventfdFlags::NONBLOCK);
        fcntl_setfl(&ours, OFlags::empty()).unwrap();
        let fd = Arc::new(fd);
        let weak = Arc::downgrade(&fd);
        let signaller = std::thread::spawn({
            let fd = fd.clone();
            move || fd.signal()
        });
        retire(vec![fd]);
        assert!(weak.upgrade().is_none(), "closed");
        assert_eq!(signaller.join().unwrap(), Signalled::Blocked);
    }

    #[test]
    fn drain_does_not_wait_for_an_empty_blocking_eventfd() {
        let fd = Arc::new(eventfd(0, EventfdFlags::empty()).unwrap());
        let drain = || {
            let fd = fd.clone();
            unblocked(move || drain(&fd))
        };
        assert_eq!(drain(), Ok(false));
        write(&fd, &3u64.to_ne_bytes()).unwrap();
        assert_eq!(drain(), Ok(true));
        assert_eq!(drain(), Ok(false));
    }

    #[test]
    fn only_eventfds_are_taken() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let socket = std::os::unix::net::UnixStream::pair().unwrap().0.into();
        for fd in [pipe, file, socket] {
            assert!(!refuses_short_reads(fd.as_fd()));
            assert_eq!(EventFd::new(fd, None).unwrap_err().errno(), Errno::INVAL);
        }
        let event = eventfd(7, EventfdFlags::empty()).unwrap();
        let name = format!("/proc/self/fd/{}", event.as_raw_fd());
        let path = rustix::fs::open(name, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(!refuses_short_reads(path.as_fd()));
        assert_eq!(EventFd::new(path, None).unwrap_err().errno(), Errno::INVAL, "O_PATH");
        assert!(is_eventfd(&event) && refuses_short_reads(event.as_fd()));
        assert_eq!(drain(&event), Ok(true), "its counter was not taken");
    }
}
