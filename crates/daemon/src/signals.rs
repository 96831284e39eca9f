//! Signals: SIGTERM and SIGINT ask the process to finish in order, another one a second later or
//! more ends it at once; SIGHUP asks it to reload its configuration.
//!
//! What the kernel ends a process for by default: a write to a file that is longer than RLIMIT_FSIZE
//! allows (SIGXFSZ) is an error of that write; processor time beyond the soft limit of RLIMIT_CPU
//! (SIGXCPU) asks the process to finish in order. A peer that goes away is an error of the write, too:
//! Rust programs ignore SIGPIPE.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU, SIGXFSZ};

/// How long after a first signal to finish another one is taken for the same request: a service
/// manager and a terminal signal every process of a group, and so do those that repeat a signal to be
/// sure.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To finish, by the signal of this name.
    Finish(&'static str),
    /// To read the configuration again.
    Reload,
}

/// Lets a write that would make a file longer than this process may have it fail with `EFBIG`.
///
/// # Errors
/// Errors of the kernel.
pub(crate) fn outlive_file_size() -> io::Result<()> {
    // Caught, not ignored: what this process starts has the kernel's default again.
    signal_hook::flag::register(SIGXFSZ, Arc::<AtomicBool>::default()).map(drop)
}

/// Signals of this process.
pub struct Signals(Receiver<Asked>);

impl Signals {
    /// Takes SIGTERM, SIGINT and SIGXCPU over from the kernel's default of ending the process at once.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn catch() -> io::Result<Self> {
        Self::start(&[SIGTERM, SIGINT, SIGXCPU])
    }

    /// Takes SIGTERM, SIGINT, SIGXCPU and SIGHUP over.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn catch_with_reload() -> io::Result<Self> {
        Self::start(&[SIGTERM, SIGINT, SIGXCPU, SIGHUP])
    }

    fn start(signals: &[i32]) -> io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new(signals)?;
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new().name("signals".into()).spawn(move || {
            let mut asked_first: Option<Instant> = None;
            for signal in signals.forever() {
                let asked = match signal {
                    SIGHUP => Asked::Reload,
                    // Comes again with each second that it takes to finish.
                    SIGXCPU if asked_first.is_some() => continue,
                    SIGXCPU => Asked::Finish("SIGXCPU"),
                    SIGTERM => Asked::Finish("SIGTERM"),
                    _ => Asked::Finish("SIGINT"),
                };
                if let Asked::Finish(signal) = asked {
                    if asked_first.is_some_and(|first| first.elapsed() < SAME_REQUEST) {
                        continue;
                    }
                    if asked_first.is_some() {
                        tracing::warn!(signal, "second signal to finish: exiting at once");
                        crate::logging::finish();
                        std::process::exit(1);
                    }
                    asked_first = Some(Instant::now());
                }
                if sender.send(asked).is_err() {
                    // Nobody waits any more, so nobody would finish in order.
                    std::process::exit(1);
                }
            }
        })?;
        Ok(Self(receiver))
    }

    /// What a signal asks for, if one comes within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<Asked> {
        match self.0.recv_timeout(timeout) {
            Ok(asked) => Some(asked),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Asked::Finish("lost signal thread")),
        }
    }
}
