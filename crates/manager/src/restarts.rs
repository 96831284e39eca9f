//! What is known of the processes that have served before this one.

use std::time::Duration;

/// How the processes before this one have ended, which the same holder has started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// The holder's process id.
    pub holder: u32,
    /// Ended by a signal, such as SIGSEGV, or SIGKILL where memory ran out.
    pub signal: u64,
    /// Ended by `exit`.
    pub exit: u64,
    /// Killed by the holder, as they had closed their link with it.
    pub link: u64,
    /// Ended in a way that the kernel did not say.
    pub unknown: u64,
    /// How the last one ended; `None`: this process is the first.
    pub last: Option<String>,
    /// From that end to the moment when this process served.
    pub blackout: Option<Duration>,
}
