//! What can go wrong.

use std::time::Duration;

use crate::command::Status;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call of the driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection failed, or the server refused a message.
    #[error(transparent)]
    Client(#[from] vfiod_client::Error),
    /// The driver's own memory cannot be had or reached.
    #[error("the driver's memory: {0}")]
    Memory(#[from] vfiod_dma::Error),
    /// A command ended with another status than success.
    #[error("the command ended with {0}")]
    Status(Status),
    /// The controller shows fatal status. [`Controller::reset`](crate::Controller::reset) makes it work
    /// again.
    #[error("the controller shows fatal status; it must be reset")]
    Fatal,
    /// The controller did not do in time what was asked of it.
    #[error("{what}: not within {timeout:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        timeout: Duration,
    },
    /// The controller was reset since the queue was made. The queue is of no more use.
    #[error("the controller was reset since the queue was made")]
    QueueEnded,
    /// As many commands are in flight as the queue has room for; wait for one.
    #[error("the queue is full")]
    QueueFull,
    /// So much of the driver's memory is not free in one piece.
    #[error(
        "no {0} bytes of the driver's memory are free in one piece; give it more in the options"
    )]
    NoMemory(usize),
    /// What was asked for is not there, or the device is none that this driver can use.
    #[error("{0}")]
    Unsupported(String),
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// How it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what, source: source.into() }
    }

    /// The status that a command ended with, if that is why the call failed.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status(status) => Some(*status),
            _ => None,
        }
    }
}
