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
use serde_json::{Value, json};

/// Bytes of the longest message, far more than QEMU says of a machine with hundreds of devices.
const LONGEST: usize = 4 << 20;
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
    /// Of that: no message ends in it.
    searched: usize,
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
            searched: 0,
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
        let mut part = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            if self.received.len() > LONGEST {
                return Err(self.is_not_qmp("a message that does not end"));
            }
            self.wait(PollFlags::IN, deadline)?;
            match rustix::net::recv(&self.fd, &mut part[..], RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    return Err(Failure::Closed(self.socket.clone()));
                }
                Ok((count, _)) => self.received.extend_from_slice(&part[..count]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Failure::NotThere(self.socket.clone(), errno.into())),
            }
        }
    }

    /// Takes the first message of what was received, if it is there as a whole. Each ends with a line.
    fn take_message(&mut self) -> Result<Option<Value>, Failure> {
        if !self.received[self.searched..].contains(&b'\n') {
            self.searched = self.received.len();
            return Ok(None);
        }
        let mut values = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
        let next = values.next();
        let end = values.byte_offset();
        match next {
            Some(Ok(value)) => {
                self.received.drain(..end);
                self.searched = 0;
                Ok(Some(value))
            }
            // Of a message that has several lines the rest comes.
            None => {
                self.searched = self.received.len();
                Ok(None)
            }
            Some(Err(error)) if error.is_eof() => {
                self.searched = self.received.len();
                Ok(None)
            }
            Some(Err(error)) => Err(self.is_not_qmp(&error.to_string())),
        }
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
            let silent = || Failure::Silent(self.socket.clone(), self.patience);
            if rest.is_zero() {
                return Err(silent());
            }
            let timeout = Timespec::try_from(rest).map_err(|_| silent())?;
            match poll(&mut [PollFd::new(&self.fd.as_fd(), how)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Failure::NotThere(self.socket.clone(), errno.into())),
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
