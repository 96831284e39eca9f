//! Clients that have died, but whose end of the connection is still open.
//!
//! A client can send its own end as a descriptor, and so can whoever has it. As long as the server
//! does not receive that message, the kernel keeps the end open: with it the connection, and the
//! device. That matters where a connection is not read, because its client takes no replies or has
//! sent more than is kept. Then the process that connected is watched by its pidfd:
//!
//! - once it has died, everything is taken in that is queued, as far as there is room. Descriptors that
//!   no command can ask for are closed as they arrive, the client's own end among them;
//! - a connection that cannot be read even so, as there is no room, and on which nothing moves for
//!   [`PATIENCE`], ends.
//!
//! A client that another process has connected for, and which lives, loses nothing by the former.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerPidfd;
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::pool::{Alarm, Interest, Pool, Source, Watch, Worker};

/// How long nothing moves on a connection that is not read, and whose process has died, before it
/// ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A connection.
pub(crate) trait Bereaved: Send + Sync {
    /// The process that has connected has died: the connection is looked at again.
    fn process_has_died(&self);
}

/// The process that has connected, as far as it matters where its connection is not read.
#[derive(Default)]
pub(crate) struct PeerProcess {
    /// Set once it is asked for. Without a watch the kernel cannot say.
    exit: OnceLock<Option<Watch>>,
    has_died: AtomicBool,
    pause: Mutex<Option<Pause>>,
}

/// A time in which a connection was not read.
struct Pause {
    start: Instant,
    /// What had moved on the connection until then.
    moved: u64,
    /// Has the connection looked at again after [`PATIENCE`].
    _alarm: Alarm,
}

impl PeerProcess {
    /// Whether it has died. Known only after [`PeerProcess::watch`].
    pub(crate) fn has_died(&self) -> bool {
        self.has_died.load(Ordering::Acquire)
    }

    /// It has died.
    pub(crate) fn set_died(&self) {
        self.has_died.store(true, Ordering::Release);
    }

    /// From now on tells `connection`, whose socket is `socket`, when the process has died.
    pub(crate) fn watch(
        &self,
        socket: BorrowedFd<'_>,
        connection: Weak<dyn Bereaved>,
        pool: &Pool,
    ) {
        self.exit.get_or_init(|| {
            let pidfd = match getsockopt(&socket, PeerPidfd) {
                Ok(pidfd) => pidfd,
                Err(errno) => {
                    // Before Linux 6.16 there is no pidfd of a process that is known no more.
                    if matches!(errno, nix::Error::ESRCH | nix::Error::EINVAL) {
                        self.set_died();
                    }
                    return None;
                }
            };
            let exit = pool.reserve();
            let source: Arc<dyn Source> = Arc::new(Exit { pidfd, connection });
            exit.arm(&source, Interest::Read).ok().map(|()| exit)
        });
    }

    /// The connection is not read. Returns whether that has to end it: the process has died, and nothing
    /// has moved for [`PATIENCE`]. `moved` says what has, and `alarm` has the connection looked at
    /// again after a time.
    pub(crate) fn is_abandoned(&self, moved: u64, alarm: impl FnOnce(Duration) -> Alarm) -> bool {
        if !self.has_died() {
            return false;
        }
        let mut pause = lock(&self.pause);
        match &*pause {
            Some(pause) if pause.moved == moved => pause.start.elapsed() >= PATIENCE,
            _ => {
                let start = Instant::now();
                *pause = Some(Pause { start, moved, _alarm: alarm(PATIENCE) });
                false
            }
        }
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        if let Some(Some(exit)) = self.exit.get() {
            exit.forget();
        }
    }
}

/// The end of a process, as a source.
struct Exit {
    pidfd: OwnedFd,
    connection: Weak<dyn Bereaved>,
}

impl Source for Exit {
    fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        watch.forget();
        if let Some(connection) = self.connection.upgrade() {
            connection.process_has_died();
        }
    }
}
