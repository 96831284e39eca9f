//! SIGTERM and SIGINT: a request to finish in order; a second one ends the process at once.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Tells when the process is to finish.
pub struct Termination(Receiver<&'static str>);

impl Termination {
    /// Takes SIGTERM and SIGINT over from the kernel's default of dying at once.
    pub fn catch() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for (n, signal) in signals.forever().enumerate() {
                let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
                if n > 0 {
                    tracing::warn!(signal = name, "asked twice to finish: leaving at once");
                    crate::logging::finish();
                    std::process::exit(1);
                }
                if sender.send(name).is_err() {
                    // Nobody waits any more, so nobody would finish in order.
                    std::process::exit(1);
                }
            }
        })?;
        Ok(Self(receiver))
    }

    /// The signal, if it comes within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<&'static str> {
        match self.0.recv_timeout(timeout) {
            Ok(name) => Some(name),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some("lost signal thread"),
        }
    }
}
