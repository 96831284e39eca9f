//! A worker: its start, its link, its death.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use vfiod_journal::link;
use vfiod_journal::message::Death;

/// The environment variable by which a worker knows that descriptor 0 is a link: the holder's process id.
pub(crate) const HOLDER: &str = "VFIOD_HOLDER";

/// How long a worker without memory is waited for, to learn how it has ended: longer only if the close of one of
/// its descriptors hangs, or processors are scarce.
const GRACE: Duration = Duration::from_secs(1);

/// What is started.
#[derive(Debug)]
pub(crate) struct Program {
    /// The program's file, which may have been replaced since.
    pub(crate) file: OwnedFd,
    /// The first argument: its name.
    pub(crate) name: OsString,
}

impl Program {
    /// A command for it, whose descriptor 0 is `link`.
    pub(crate) fn command(&self, link: OwnedFd, arguments: &[OsString]) -> Command {
        // Found before the descriptor is closed on `exec`.
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(&self.name).args(arguments).stdin(Stdio::from(link));
        command.env(HOLDER, std::process::id().to_string());
        command
    }
}

/// A process that has the other end of a link.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) link: OwnedFd,
    pub(crate) started: Instant,
    /// It serves.
    pub(crate) is_ready: bool,
    was_killed: bool,
    /// Killed as it had closed its link.
    has_closed_link: bool,
    /// Since when it has no memory.
    without_memory: Option<Instant>,
    /// There is something for it that it did not take.
    pub(crate) wants_out: bool,
}

impl Worker {
    pub(crate) fn start(program: &Program, arguments: &[OsString]) -> io::Result<Self> {
        let (link, theirs) = link::pair()?;
        Self::of_child(&program.command(theirs, arguments).spawn()?, link)
    }

    /// A process that was started with the other end of `link`.
    pub(crate) fn of_child(child: &Child, link: OwnedFd) -> io::Result<Self> {
        let pid = Pid::from_child(child);
        // Nobody else waits for it, so it is still this process that the number means.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pid,
            pidfd,
            link,
            started: Instant::now(),
            is_ready: false,
            was_killed: false,
            has_closed_link: false,
            without_memory: None,
            // As it is watched at first.
            wants_out: true,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it is about to be gone.
    pub(crate) fn is_ending(&self) -> bool {
        self.was_killed || self.without_memory.is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    pub(crate) fn kill(&mut self) {
        self.was_killed = true;
        self.signal(Signal::KILL);
    }

    /// How it has ended, if it has; kills it if it has closed its link. Does not wait.
    pub(crate) fn death(&mut self) -> Option<Death> {
        let death = reap(&self.pidfd);
        if death.is_some() {
            return if self.has_closed_link { Some(Death::LinkClosed) } else { death };
        }
        if !has_ended(&self.link) {
            return None;
        }
        if !has_no_memory(self.pid()) {
            // The kernel closes a link of its own accord only where no thread has memory any more.
            self.has_closed_link |= !self.was_killed;
            self.kill();
            return None;
        }
        // All that is left is the close of its descriptors, which rarely takes long.
        let since = *self.without_memory.get_or_insert_with(Instant::now);
        let unknown = if self.has_closed_link { Death::LinkClosed } else { Death::Unknown };
        (since.elapsed() >= GRACE).then_some(unknown)
    }

    /// Waits until the kernel says how it has ended.
    pub(crate) fn await_end(&self, time: Duration) -> Option<Death> {
        let time = Timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos() as _ };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&time));
        reap(&self.pidfd)
    }
}

/// How a child has ended, if it has.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<Death> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
        Ok(None) => None,
        Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Death::Exit(status),
            (None, Some(signal)) => Death::Signal(signal),
            (None, None) => Death::Unknown,
        }),
        Err(_) => Some(Death::Unknown),
    }
}

/// Whether the other end of a link is closed.
fn has_ended(link: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(link, PollFlags::RDHUP)];
    let closed = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    rustix::event::poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(closed)
}

/// Whether no thread of a process has memory, or there is no such process.
fn has_no_memory(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let size = std::fs::read_to_string(thread.path().join("statm"));
        // A thread that is gone has none.
        size.map_or(true, |size| size.split(' ').next() == Some("0"))
    })
}
