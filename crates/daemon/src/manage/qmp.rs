//! QEMU's monitor protocol (QMP), as much of it as giving a running VM a device takes.
//!
//! Whoever listens at the socket may be anything. It has a deadline for each reply, whatever it says
//! meanwhile, and a message may not be longer than [`LONGEST`]. What it says goes to a terminal by
//! [`crate::output`] and the program's own error line only, which escape what controls one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Deserializer, Value, json};

/// Bytes of the longest message, far more than QEMU says of a machine with hundreds of devices.
const LONGEST: usize = 4 << 20;
/// Bytes that are received at once.
const PART: usize = 64 << 10;
/// How long to wait before a monitor is tried again that has no place for one more connection.
const RETRY: Duration = Duration::from_millis(10);

/// Why a monitor did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens at the socket.
    NotThere(PathBuf, io::Error),
    /// Whoever listens does not reply.
    Silent(PathBuf, Duration),
    /// The connection ended.
    Closed(PathBuf),
    /// What it says is no QMP.
    NotQmp(PathBuf, String),
    /// It refuses a command.
    Refused { command: String, reason: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere(path, error) => write!(
                f,
                "no QEMU answers at {}: {error}; start it with `-qmp unix:PATH,server=on,wait=off`",
                path.display()
            ),
            Self::Silent(path, time) => write!(
                f,
                "QEMU's monitor at {} did not reply within {} s: another program is connected to it, of \
                 which it serves one at a time, or QEMU is stopped",
                path.display(),
                time.as_secs_f32()
            ),
            Self::Closed(path) => {
                write!(f, "QEMU's monitor at {} has closed the connection", path.display())
            }
            Self::NotQmp(path, what) => write!(
                f,
                "what listens at {} is no monitor of QEMU that speaks QMP: {what}",
                path.display()
            ),
            Self::Refused { command, reason } => write!(f, "QEMU refuses {command}: {reason}"),
        }
    }
}

impl std::error::Error for Failure {}

/// A connection to a monitor that takes commands.
#[derive(Debug)]
pub(super) struct Monitor {
    fd: OwnedFd,
    socket: PathBuf,
    /// How long each reply may take.
    patience: Duration,
    received: Vec<u8>,
    /// Of that: what belongs to messages that were taken.
    taken: usize,
    commands: u64,
    /// What QEMU calls its version.
    version: String,
}

impl Monitor {
    /// Connects to the monitor that listens at a path, and waits for its greeting.
    pub(super) fn connect(socket: &Path, patience: Duration) -> Result<Self, Failure> {
        let deadline = Instant::now() + patience;
        let fd = connect(socket, patience, deadline)?;
        let mut monitor = Self {
            fd,
            socket: socket.to_owned(),
            patience,
            received: Vec::new(),
            taken: 0,
            commands: 0,
            version: "of unknown version".to_owned(),
        };
        let greeting = monitor.message(deadline)?;
        let Some(about) = greeting.get("QMP") else {
            return Err(monitor.is_not_qmp("it does not greet"));
        };
        let part = |name: &str| about.pointer(&format!("/version/qemu/{name}"))?.as_u64();
        if let (Some(major), Some(minor)) = (part("major"), part("minor")) {
            monitor.version = format!("{major}.{minor}");
        }
        monitor.command("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// QEMU's version, as `11.1`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Waits so long for each reply from now on.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends a command, and waits for what it returns. Events are passed over.
    pub(super) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.patience;
        self.commands += 1;
        let id = Value::from(format!("vfiod-{}", self.commands));
        let command = json!({ "execute": name, "arguments": arguments, "id": id });
        self.send(&format!("{command}\n"), deadline)?;
        loop {
            let mut message = self.message(deadline)?;
            if message.get("id") != Some(&id) {
                continue;
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            let reason = message.pointer("/error/desc").and_then(Value::as_str);
            let Some(reason) = reason else {
                return Err(self.is_not_qmp("a reply without a result"));
            };
            return Err(Failure::Refused { command: name.to_owned(), reason: reason.to_owned() });
        }
    }

    fn is_not_qmp(&self, what: &str) -> Failure {
        Failure::NotQmp(self.socket.clone(), what.to_owned())
    }

    /// The next message.
    fn message(&mut self, deadline: Instant) -> Result<Value, Failure> {
        // Also of what was received before: there may be events without end.
        if Instant::now() >= deadline {
            return Err(self.silent());
        }
        let mut stream = Stream { monitor: self, deadline, read: 0, failure: None };
        let message = Deserializer::from_reader(&mut stream).into_iter::<Value>().next();
        let failure = stream.failure.take();
        match (failure, message) {
            (Some(failure), _) => Err(failure),
            (None, Some(Ok(message @ Value::Object(_)))) => Ok(message),
            (None, Some(Ok(_))) => Err(self.is_not_qmp("a message that is no object")),
            (None, Some(Err(error))) if !error.is_eof() => Err(self.is_not_qmp(&error.to_string())),
            (None, Some(Err(_)) | None) => Err(Failure::Closed(self.socket.clone())),
        }
    }

    /// Receives what comes next. At the end of the connection that is nothing.
    fn receive(&mut self, deadline: Instant) -> Result<(), Failure> {
        self.taken = 0;
        self.received.resize(PART, 0);
        loop {
            self.wait(PollFlags::IN, deadline)?;
            match rustix::net::recv(&self.fd, &mut self.received[..], RecvFlags::empty()) {
                Ok((count, _)) => {
                    self.received.truncate(count);
                    return Ok(());
                }
                Err(Errno::CONNRESET) => return Err(Failure::Closed(self.socket.clone())),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Failure::NotThere(self.socket.clone(), errno.into())),
            }
        }
    }

    fn silent(&self) -> Failure {
        Failure::Silent(self.socket.clone(), self.patience)
    }

    fn send(&self, text: &str, deadline: Instant) -> Result<(), Failure> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            self.wait(PollFlags::OUT, deadline)?;
            match rustix::net::send(&self.fd, rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Err(Failure::Closed(self.socket.clone())),
            }
        }
        Ok(())
    }

    /// Waits until the socket can be used so.
    fn wait(&self, how: PollFlags, deadline: Instant) -> Result<(), Failure> {
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(self.silent());
            }
            let timeout = Timespec::try_from(rest).map_err(|_| self.silent())?;
            match poll(&mut [PollFd::new(&self.fd.as_fd(), how)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Failure::NotThere(self.socket.clone(), errno.into())),
            }
        }
    }
}

/// A message as it comes: what follows it stays with the monitor.
struct Stream<'a> {
    monitor: &'a mut Monitor,
    deadline: Instant,
    /// Bytes of the message so far.
    read: usize,
    /// Why it does not come.
    failure: Option<Failure>,
}

impl Stream<'_> {
    fn next(&mut self) -> Result<Option<u8>, Failure> {
        if self.read == LONGEST {
            return Err(self.monitor.is_not_qmp("a message that does not end"));
        }
        if self.monitor.taken == self.monitor.received.len() {
            self.monitor.receive(self.deadline)?;
        }
        let next = self.monitor.received.get(self.monitor.taken).copied();
        self.monitor.taken += usize::from(next.is_some());
        self.read += 1;
        Ok(next)
    }
}

impl io::Read for Stream<'_> {
    /// Gives one byte at a time, which is what a parser asks for: nothing behind the message is taken.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        match self.next() {
            Ok(next) => {
                *first = next.unwrap_or(0);
                Ok(next.is_some().into())
            }
            Err(failure) => {
                let error = io::Error::other(failure.to_string());
                self.failure = Some(failure);
                Err(error)
            }
        }
    }
}

/// Connects to a path. A socket whose queue is full is tried again until the deadline.
fn connect(path: &Path, patience: Duration, deadline: Instant) -> Result<OwnedFd, Failure> {
    let failed = |errno: Errno| Failure::NotThere(path.to_owned(), errno.into());
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed)?;
    loop {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => return Ok(fd),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            Err(Errno::AGAIN | Errno::INTR) => {
                return Err(Failure::Silent(path.to_owned(), patience));
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

#[cfg(test)]
mod tests;
