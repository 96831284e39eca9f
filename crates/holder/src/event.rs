//! What a holder logs.

use std::fmt;
use std::io;
use std::time::Duration;

use vfiod_journal::message::Death;

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A worker was started.
    Started {
        /// Its process id.
        pid: i32,
    },
    /// A worker has ended, and another one will be started.
    Ended {
        /// Its process id.
        pid: i32,
        /// How.
        death: Death,
        /// When the next one starts.
        again_in: Duration,
    },
    /// The last worker has ended: it was to, or it was the first and never served.
    LastEnded {
        /// Its process id.
        pid: i32,
        /// How.
        death: Death,
    },
    /// The kernel has started no worker.
    CannotStart {
        /// Why.
        error: io::Error,
        /// When it is tried again.
        again_in: Duration,
    },
    /// A worker runs, but its end will not be noticed at once.
    CannotWatch(io::Error),
    /// No other holder could take over.
    CannotBeReplaced(io::Error),
    /// A byte of the pipe of requests asks for nothing.
    UnknownRequest {
        /// The byte.
        byte: u8,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { pid } => write!(f, "worker {pid} started"),
            Self::Ended { pid, death, again_in } => {
                write!(f, "worker {pid} ended: {death}; another one starts in {again_in:?}")
            }
            Self::LastEnded { pid, death } => write!(f, "worker {pid} ended: {death}"),
            Self::CannotStart { error, again_in } => {
                write!(f, "no worker can be started: {error}; tried again in {again_in:?}")
            }
            Self::CannotWatch(error) => write!(f, "the worker cannot be watched: {error}"),
            Self::CannotBeReplaced(error) => {
                write!(f, "the holder cannot be replaced, and goes on: {error}")
            }
            Self::UnknownRequest { byte } => write!(f, "there is no request {byte}"),
        }
    }
}
