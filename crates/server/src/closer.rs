//! Closing descriptors of clients whose close may not return.
//!
//! The last close of a file can wait for whoever serves it: a FUSE server that does not answer
//! FLUSH, the peer of a TCP socket with `SO_LINGER`. No signal ends the former. So only descriptors
//! that the kernel alone serves are closed where they are found; others are closed by threads that
//! may be lost: each device has one, and up to three more that are charged to the user whose descriptors
//! they were started for, of what is common. Nobody waits for these threads, the end of the process
//! included.
//!
//! The bound is for each device: a client can only use up the share of a device that it may connect
//! to. The closer of a device is *saturated* with [`MANY`] descriptors of which none was closed for a
//! while, or with [`LIMIT`]. Then a connection that brings another one ends, one that has not negotiated
//! ends, too, and no client is accepted, until a descriptor is closed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use vfiod_core::dma::MemoryKind;
use vfiod_core::irq::is_eventfd;
use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::{Mutex, lock};

use crate::limits::Quiet;
use crate::unread::{self, Leftover};

/// Threads of a device that close descriptors. Nobody is charged for the first of them.
const MAX_THREADS: usize = 4;
/// Stack of such a thread, bytes.
const STACK: usize = 64 << 10;
/// Descriptors to be closed of which one must be closed within [`PROGRESS`].
const MANY: usize = 64;
/// How long no descriptor is closed before the closer counts as stuck.
const PROGRESS: Duration = Duration::from_millis(100);
/// Most descriptors to be closed.
const LIMIT: usize = 1024;

type Relief = Box<dyn FnOnce() + Send>;

/// Closes descriptors that the clients of one device have sent, without waiting for a close that does not
/// return.
pub struct Closer {
    device: String,
    /// Descriptors whose close has not returned.
    outstanding: AtomicUsize,
    start: Instant,
    /// When a close returned, or the first of them began: milliseconds since `start`.
    progress: AtomicU64,
    state: Mutex<State>,
    quiet: Quiet,
}

impl std::fmt::Debug for Closer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Closer").field("outstanding", &self.outstanding).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// With what the peer of a socket may not have read.
    queue: VecDeque<(OwnedFd, Option<Leftover>)>,
    threads: usize,
    /// To be called when no longer saturated.
    relief: Vec<Relief>,
}

/// Whether no call on a descriptor, its last close included, can wait for another process. Decided
/// by calls that cannot wait either. So it is with eventfds and with memory (memfd, tmpfs, hugetlbfs).
pub fn is_safe(fd: impl AsFd) -> bool {
    MemoryKind::of(&fd).cannot_block() || is_eventfd(fd)
}

impl Closer {
    /// A closer of a device of this name, which is for the log.
    pub fn new(device: &str) -> Arc<Self> {
        Arc::new(Self {
            device: device.to_owned(),
            outstanding: AtomicUsize::new(0),
            start: Instant::now(),
            progress: AtomicU64::new(0),
            state: Mutex::default(),
            quiet: Quiet::default(),
        })
    }

    /// Closes a descriptor of a client: at once if that cannot wait for another process, otherwise on
    /// another thread. Returns whether it was closed at once.
    pub fn close(self: &Arc<Self>, fd: OwnedFd, payer: Option<&Payer>) -> bool {
        let safe = is_safe(&fd);
        if !safe {
            self.close_elsewhere(fd, payer);
        }
        safe
    }

    /// Closes descriptors that no message asked for. Returns `false` if their client must go: one of
    /// them could not be closed at once, and the device is saturated.
    pub(crate) fn close_all(self: &Arc<Self>, fds: Vec<OwnedFd>, payer: &Payer) -> bool {
        let mut all = true;
        for fd in fds {
            all &= self.close(fd, Some(payer));
        }
        all || !self.is_saturated()
    }

    /// Closes a connected UNIX socket of the server. What its peer has sent and nobody has received
    /// is dropped by that close, descriptors included, whose own close may wait.
    pub fn close_socket(self: &Arc<Self>, socket: OwnedFd, payer: Option<&Payer>) {
        self.close_socket_with(socket, payer, drop);
    }

    /// [`Closer::close_socket`], of a socket whose peer may not have read all: then it is kept until that is
    /// so.
    pub(crate) fn close_socket_of(
        self: &Arc<Self>,
        socket: OwnedFd,
        payer: Option<&Payer>,
        leftover: Leftover,
    ) {
        if !leftover.is_left(&socket) {
            return self.close_socket(socket, payer);
        }
        let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        match rustix::io::ioctl_fionread(&socket) {
            Ok(0) => unread::close_when_read(socket, leftover),
            _ => self.enqueue(socket, payer, Some(leftover)),
        }
    }

    /// [`Closer::close_socket`], with `close` where that cannot wait.
    pub(crate) fn close_socket_with(
        self: &Arc<Self>,
        socket: OwnedFd,
        payer: Option<&Payer>,
        close: impl FnOnce(OwnedFd),
    ) {
        // From here on nothing arrives. Fails only where the peer has gone before.
        let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        match rustix::io::ioctl_fionread(&socket) {
            Ok(0) => close(socket),
            _ => self.close_elsewhere(socket, payer),
        }
    }

    /// Closes a descriptor on another thread. Without a payer, or where its user may have no further
    /// thread, the descriptor waits for one that is there.
    pub(crate) fn close_elsewhere(self: &Arc<Self>, fd: OwnedFd, payer: Option<&Payer>) {
        self.enqueue(fd, payer, None);
    }

    fn enqueue(self: &Arc<Self>, fd: OwnedFd, payer: Option<&Payer>, leftover: Option<Leftover>) {
        if self.outstanding.fetch_add(1, Ordering::SeqCst) == 0 {
            self.set_progress();
        }
        if self.is_saturated() {
            self.quiet.warn(|suppressed| {
                let device = &*self.device;
                let count = self.outstanding.load(Ordering::SeqCst);
                tracing::warn!(
                    device,
                    count,
                    suppressed,
                    "descriptors of clients cannot be closed; no client is accepted until one is"
                );
            });
        }
        let mut state = lock(&self.state);
        state.queue.push_back((fd, leftover));
        let charge = match state.threads {
            0 => None,
            MAX_THREADS => return,
            _ => match payer.map(|payer| payer.charge_common(Resource::Threads, 1)) {
                Some(Ok(charge)) => Some(charge),
                Some(Err(_)) | None => return,
            },
        };
        state.threads += 1;
        drop(state);
        let closer = self.clone();
        let started = thread::Builder::new()
            .name("fd-closer".to_owned())
            .stack_size(STACK)
            .spawn(move || closer.run(charge));
        if let Err(error) = started {
            // The descriptor stays in the queue for the next thread.
            lock(&self.state).threads -= 1;
            let device = &*self.device;
            tracing::warn!(device, %error, "cannot start a thread to close descriptors");
        }
    }

    fn run(&self, _charge: Option<Charge>) {
        loop {
            let mut state = lock(&self.state);
            let Some((fd, leftover)) = state.queue.pop_front() else {
                state.threads -= 1;
                return;
            };
            drop(state);
            // May never return.
            match leftover {
                None => drop(fd),
                Some(leftover) => {
                    unread::drop_received(&fd);
                    unread::close_when_read(fd, leftover);
                }
            }
            self.set_progress();
            self.outstanding.fetch_sub(1, Ordering::SeqCst);
            let mut state = lock(&self.state);
            let relief = match self.is_saturated() {
                true => Vec::new(),
                false => std::mem::take(&mut state.relief),
            };
            drop(state);
            relief.into_iter().for_each(|relief| relief());
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn set_progress(&self) {
        self.progress.store(self.now(), Ordering::SeqCst);
    }

    /// Whether so many descriptors are to be closed that no others may be taken.
    pub fn is_saturated(&self) -> bool {
        let count = self.outstanding.load(Ordering::SeqCst);
        if count < MANY {
            return false;
        }
        let stuck = self.now().saturating_sub(self.progress.load(Ordering::SeqCst));
        count >= LIMIT || u128::from(stuck) >= PROGRESS.as_millis()
    }

    /// Calls `relief` when the closer is no longer saturated. Returns `false`, without calling it,
    /// if it is not saturated.
    pub(crate) fn when_relieved(&self, relief: impl FnOnce() + Send + 'static) -> bool {
        let mut state = lock(&self.state);
        // With the lock held: whoever closes one takes the list afterwards.
        let saturated = self.is_saturated();
        if saturated {
            state.relief.push(Box::new(relief));
        }
        saturated
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use vfiod_quota::{Ledger, Limit, Limits, Share, Size, User};

    use super::*;
    use crate::testing::{Lingering, eventually};

    /// A user, where so many threads are common.
    fn payer(threads: u64) -> Payer {
        let mut limits = Limits::of_process(1);
        limits.set(Resource::Threads, Limit::new(Size::Common(threads), Share::Demanded(2)));
        Payer::new(Ledger::new(limits).open("x").unwrap().account, User::Account(0))
    }

    fn memory() -> OwnedFd {
        rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn only_what_the_kernel_alone_serves_is_closed_at_once() {
        let closer = Closer::new("x");
        assert!(closer.close(memory(), None) && closer.close(eventfd(), None));
        let (pipe, other) = rustix::pipe::pipe().unwrap();
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap().into();
        for fd in [pipe, file, std::os::unix::net::UnixStream::pair().unwrap().0.into()] {
            assert!(!closer.close(fd, None));
        }
        eventually("all are closed", || closer.outstanding.load(Ordering::SeqCst) == 0);
        assert_eq!(rustix::io::write(&other, b"x"), Err(rustix::io::Errno::PIPE));
        eventually("the threads have ended", || lock(&closer.state).threads == 0);
    }

    #[test]
    fn threads_beyond_the_first_are_charged_to_the_user_of_what_they_close() {
        let (closer, payer) = (Closer::new("x"), payer(4));
        let ledger = payer.account().ledger().clone();
        let lingering: Vec<_> = (0..5).map(|_| Lingering::new()).collect();
        closer.close(lingering[0].take(), Some(&payer));
        assert_eq!(ledger.usage(Resource::Threads).used, 0);
        lingering[1..].iter().for_each(|socket| _ = closer.close(socket.take(), Some(&payer)));
        // Half of what is common. The device's share is for those who serve.
        assert_eq!(ledger.usage(Resource::Threads).used, 2);
        assert_eq!(payer.account().usage(Resource::Threads).used, 0);
        assert_eq!(lock(&closer.state).threads, 3);
        drop(lingering);
        eventually("all are closed", || closer.outstanding.load(Ordering::SeqCst) == 0);
        eventually("all is given back", || ledger.usage(Resource::Threads).used == 0);
    }

    #[test]
    fn closes_that_do_not_return_saturate_it_until_they_do() {
        let (closer, payer) = (Closer::new("x"), payer(100));
        assert!(!closer.when_relieved(|| unreachable!()));
        let lingering: Vec<_> = (0..MANY).map(|_| Lingering::new()).collect();
        let close = |socket: &Lingering| _ = closer.close(socket.take(), Some(&payer));
        lingering.iter().skip(1).for_each(close);
        assert!(!closer.is_saturated());
        close(&lingering[0]);
        eventually("it is saturated", || closer.is_saturated());
        assert_eq!(lock(&closer.state).threads, MAX_THREADS);
        let (told, relieved) = std::sync::mpsc::channel();
        assert!(closer.when_relieved(move || told.send(()).unwrap()));
        assert!(relieved.try_recv().is_err());
        drop(lingering);
        relieved.recv().unwrap();
        eventually("all are closed", || closer.outstanding.load(Ordering::SeqCst) == 0);
        assert!(!closer.is_saturated());
    }

    #[test]
    fn socket_with_unread_descriptors_is_closed_elsewhere() {
        use std::os::unix::net::UnixStream;
        let closer = Closer::new("x");
        let (ours, theirs) = UnixStream::pair().unwrap();
        closer.close_socket(ours.into(), None);
        assert_eq!(closer.outstanding.load(Ordering::SeqCst), 0, "nothing was unread");
        drop(theirs);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let lingering = Lingering::new();
        lingering.send_by(&theirs);
        let closing = std::thread::spawn({
            let closer = closer.clone();
            move || closer.close_socket(ours.into(), None)
        });
        eventually("the call has returned", || closing.is_finished());
        assert_eq!(closer.outstanding.load(Ordering::SeqCst), 1);
        drop(lingering);
        eventually("it is closed", || closer.outstanding.load(Ordering::SeqCst) == 0);
    }

    #[test]
    fn socket_whose_peer_has_not_read_what_was_passed_is_kept_and_nothing_that_it_received() {
        use std::os::unix::net::UnixStream;
        let (closer, payer) = (Closer::new("x"), payer(4));
        let charged = || payer.account().usage(Resource::Descriptors).used;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        let passed = unread::Unread::default().pass(&ours, 2, &payer).unwrap();
        rustix::io::write(&ours, b"x").unwrap();
        let lingering = Lingering::new();
        lingering.send_by(&theirs);
        closer.close_socket_of(ours, Some(&payer), Leftover::new(passed, None));
        assert_eq!(closer.outstanding.load(Ordering::SeqCst), 1);
        drop(lingering);
        eventually("what it received is closed", || closer.outstanding.load(Ordering::SeqCst) == 0);
        assert_eq!(charged(), 2);
        drop(theirs);
        eventually("what was passed is given back", || charged() == 0);
    }
}
