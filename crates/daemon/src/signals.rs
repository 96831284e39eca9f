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
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
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

/// What a signal means after those before it.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// It asks for something.
    Asks(Asked),
    /// It repeats what was asked for before.
    Nothing,
    /// Whoever sends it, by this name, does not wait for the end any longer.
    Impatience(&'static str),
}

/// What a signal that comes now means. `first` is when the first one to finish came.
fn meaning(signal: i32, first: &mut Option<Instant>, now: Instant) -> Meaning {
    let name = match signal {
        SIGHUP => return Meaning::Asks(Asked::Reload),
        SIGXCPU => "SIGXCPU",
        SIGTERM => "SIGTERM",
        _ => "SIGINT",
    };
    match *first {
        None => {
            *first = Some(now);
            Meaning::Asks(Asked::Finish(name))
        }
        // The kernel's comes again with each second that it takes to finish.
        Some(_) if signal == SIGXCPU => Meaning::Nothing,
        Some(first) if now.duration_since(first) < SAME_REQUEST => Meaning::Nothing,
        Some(_) => Meaning::Impatience(name),
    }
}

/// Signals of this process.
pub struct Signals(Receiver<Asked>);

impl Signals {
    /// Takes SIGTERM, SIGINT and SIGXCPU over from the kernel's default of ending the process at once.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn catch() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        Self::start(&[SIGTERM, SIGINT, SIGXCPU], sender)?;
        Ok(Self(receiver))
    }

    /// Takes SIGTERM, SIGINT, SIGXCPU and SIGHUP over. `others` may start what asks for something, too.
    ///
    /// # Errors
    /// Errors of the kernel, or of `others`.
    pub(crate) fn catch_with_reload(
        others: impl FnOnce(Sender<Asked>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        Self::start(&[SIGTERM, SIGINT, SIGXCPU, SIGHUP], sender.clone())?;
        others(sender)?;
        Ok(Self(receiver))
    }

    fn start(signals: &[i32], sender: Sender<Asked>) -> io::Result<()> {
        let mut signals = signal_hook::iterator::Signals::new(signals)?;
        thread::Builder::new().name("signals".into()).spawn(move || {
            let mut asked_first = None;
            for signal in signals.forever() {
                let asked = match meaning(signal, &mut asked_first, Instant::now()) {
                    Meaning::Asks(asked) => asked,
                    Meaning::Nothing => continue,
                    Meaning::Impatience(signal) => {
                        tracing::warn!(signal, "second signal to finish: exiting at once");
                        crate::logging::finish();
                        std::process::exit(1);
                    }
                };
                if sender.send(asked).is_err() {
                    // Nobody waits any more, so nobody would finish in order.
                    std::process::exit(1);
                }
            }
        })?;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_signal_to_finish_counts_from_one_second_after_the_first() {
        let begin = Instant::now();
        let mut first = None;
        let mut at =
            |signal, millis| meaning(signal, &mut first, begin + Duration::from_millis(millis));
        assert_eq!(at(SIGHUP, 0), Meaning::Asks(Asked::Reload));
        assert_eq!(at(SIGTERM, 100), Meaning::Asks(Asked::Finish("SIGTERM")));
        for (signal, millis) in [(SIGTERM, 100), (SIGINT, 600), (SIGTERM, 1_099), (SIGXCPU, 5_000)]
        {
            assert_eq!(at(signal, millis), Meaning::Nothing, "{signal} at {millis}");
        }
        assert_eq!(at(SIGHUP, 1_100), Meaning::Asks(Asked::Reload));
        assert_eq!(at(SIGTERM, 1_100), Meaning::Impatience("SIGTERM"));
        assert_eq!(at(SIGINT, 9_000), Meaning::Impatience("SIGINT"));
    }
}
