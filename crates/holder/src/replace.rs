//! Another holder takes over.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vfiod_journal::link::{self, Received, Wait};
use vfiod_journal::message::{Class, Death, PROTOCOL, ToHolder, ToWorker};

use crate::handover::Handover;
use crate::state::{Connection, Files, Kept, State};
use crate::worker::{Program, Worker};

/// Hands everything to a new holder. On success it waits for this process to end.
///
/// # Errors
/// It could not be started, or did not acknowledge in time; it is dead then.
pub(crate) fn hand_over(
    program: &Program,
    arguments: &[OsString],
    limit: Duration,
    state: &State,
) -> io::Result<()> {
    let mut next = Worker::start(program, arguments)?;
    let acknowledged = offer(&next.link, limit, state);
    if acknowledged.is_err() {
        next.kill();
        // It must not go on beside this one. SIGKILL ends it, as it has nothing open whose close hangs.
        while next.death().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    acknowledged
}

fn offer(link: &OwnedFd, limit: Duration, state: &State) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    let mut handover = Handover::new(Death::Replaced, state);
    while !handover.send(link, state)? {
        wait(link, PollFlags::OUT, deadline)?;
    }
    wait(link, PollFlags::IN, deadline)?;
    let received = link::receive(link, Wait::No)?;
    match received.map(|received| ToHolder::decode(received.bytes())) {
        Some(Ok(ToHolder::Ready)) => Ok(()),
        _ => Err(io::Error::other("the new holder did not acknowledge what it was given")),
    }
}

/// Waits until a link is ready.
fn wait(link: &OwnedFd, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("the new holder did not take over in time"));
        }
        let left = Timespec { tv_sec: 0, tv_nsec: left.as_nanos().min(100_000_000) as _ };
        match rustix::event::poll(&mut [PollFd::new(link, flags)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes everything that another holder has, acknowledges it, and waits for that one to end.
pub(crate) fn receive_all(link: impl AsFd) -> io::Result<State> {
    let mut state = State::new()?;
    while let Some(mut received) = link::receive(&link, Wait::Yes)? {
        let message = ToWorker::decode(received.bytes()).map_err(io::Error::other)?;
        if received.is_truncated {
            return Err(io::Error::other("descriptors of the old holder were lost"));
        }
        match message {
            ToWorker::Begin {
                protocol: PROTOCOL, starts, next_connection, died, deaths, ..
            } => {
                (state.starts, state.next_connection) = (starts, next_connection);
                (state.died, state.deaths) = (died, deaths);
            }
            ToWorker::Settings(settings) => state.settings = settings,
            ToWorker::Kept { key, class, listening } => {
                let fd = received.only_fd().ok_or(Errno::BADF)?;
                if listening && class == Class::Listener {
                    state.listeners.watch(key, fd.as_fd())?;
                }
                state.kept.insert(key, Kept { fd, class });
            }
            ToWorker::Connection { number, origin, sent } => {
                let (socket, files) = connection_files(received)?;
                let connection = Connection { socket, files, origin, sent };
                state.connections.insert(number, connection);
            }
            ToWorker::Complete => {
                link::send(&link, &ToHolder::Ready.encode(), &[], Wait::Yes)?;
                // The other one ends, or kills this process.
                while link::receive(&link, Wait::Yes)?.is_some() {}
                return Ok(state);
            }
            message => {
                let what = format!("the old holder sent what this one does not know: {message:?}");
                return Err(io::Error::other(what));
            }
        }
    }
    Err(io::Error::other("the old holder ended before it had handed over everything"))
}

fn connection_files(mut received: Received) -> io::Result<(OwnedFd, Files)> {
    let (outbox, journal, socket) = (received.fds.pop(), received.fds.pop(), received.fds.pop());
    match (socket, journal, outbox) {
        (Some(socket), Some(journal), Some(outbox)) if received.fds.is_empty() => {
            Ok((socket, Files { journal, outbox }))
        }
        _ => Err(io::Error::other("a connection without its three descriptors")),
    }
}
