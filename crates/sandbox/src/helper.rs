//! A small process beside the sandbox, started before it is entered: it does what the daemon needs at
//! its end and must not do itself, also if the daemon is killed.
//!
//! It is the program itself with another command. It reads one end of a socket, whose other end only
//! the daemon has: a byte asks it to do its task, and so does the end of the stream. It takes no other
//! input.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long the helper has for its task.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The helper of this process. It ends when this is dropped, or when the process ends.
#[derive(Debug)]
pub struct Helper(Mutex<Running>);

#[derive(Debug)]
struct Running {
    child: Child,
    stream: Option<UnixStream>,
}

impl Helper {
    /// Starts this program with arguments that make it call [`serve`].
    ///
    /// # Errors
    /// Errors of the kernel; there is no `/proc`.
    pub fn start(name: &str, arguments: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(TIMEOUT))?;
        let child = Command::new("/proc/self/exe")
            .arg0(name)
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        let mut stream = ours;
        // Once it has caught the signals that a terminal or a service manager sends to all processes.
        stream.read_exact(&mut [0])?;
        Ok(Self(Mutex::new(Running { child, stream: Some(stream) })))
    }

    /// Lets the helper do its task and end. Does nothing the second time. Blocks at most five seconds.
    ///
    /// # Errors
    /// The helper failed, which it has said on standard error, or takes too long.
    pub fn finish(&self) -> io::Result<()> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut stream) = running.stream.take() else { return Ok(()) };
        stream.write_all(&[0])?;
        let mut done = [0];
        stream.read_exact(&mut done)?;
        drop(stream);
        running.child.wait()?;
        if done == [0] { Ok(()) } else { Err(io::Error::other("the helper process failed")) }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "the sandbox's helper did not finish");
        }
    }
}

/// Waits until the daemon asks for it, or ends in whichever way, and does the task. SIGTERM, SIGINT and
/// SIGHUP are ignored.
///
/// # Errors
/// Standard input is not a socket; those of the task.
pub fn serve<E: From<io::Error>>(task: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.write_all(&[0])?;
    let _ = stream.read(&mut [0]);
    let result = task();
    // Nobody may listen any more.
    let _ = stream.write_all(&[u8::from(result.is_err())]);
    result
}
