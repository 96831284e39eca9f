//! What can go wrong, by whose fault.

use vfiod_wire::Command;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server replied with an errno. The connection can be used further.
    #[error("{} was refused: {}", command.name(), describe(*errno))]
    Remote {
        /// What was refused.
        command: Command,
        /// Why; 0 if the server did not say.
        errno: u32,
    },
    /// The server broke the protocol. The connection is of no more use.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// No reply came in time. The connection cannot be used further: the reply may still arrive.
    #[error("the server did not reply in time")]
    Timeout,
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The socket failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// How it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    /// The errno that the server replied with, if it did.
    pub fn remote_errno(&self) -> Option<u32> {
        match self {
            Self::Remote { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

fn describe(errno: u32) -> String {
    match i32::try_from(errno) {
        Ok(0) => "no reason given".to_owned(),
        Ok(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        Err(_) => format!("errno {errno}"),
    }
}
