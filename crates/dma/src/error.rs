//! The one error type of the core: an errno for the peer, a sentence for the person.

use std::borrow::Cow;

pub use rustix::io::Errno;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: the errno for the peer, what went wrong in words, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{what} ({})", errno)]
pub struct Error {
    errno: Errno,
    what: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with the errno for the peer and what went wrong.
    pub fn new(errno: Errno, what: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, what: what.into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong in words, without the errno.
    pub fn message(&self) -> &str {
        &self.what
    }

    /// The errno to report to a peer.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<vfiod_quota::Exceeded> for Error {
    fn from(exceeded: vfiod_quota::Exceeded) -> Self {
        Self::new(exceeded.errno(), exceeded.to_string())
    }
}

impl From<vfiod_buffer::NoMemory> for Error {
    fn from(none: vfiod_buffer::NoMemory) -> Self {
        Self::new(Errno::NOMEM, none.to_string())
    }
}
