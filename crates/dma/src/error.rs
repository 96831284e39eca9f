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
    is_short: bool,
}

impl Error {
    /// An error with the errno for the peer and what went wrong.
    pub fn new(errno: Errno, what: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, what: what.into(), source: None, is_short: false }
    }

    /// An error for want of memory, or of something else that this process has a limited number of. The same may
    /// succeed later.
    pub fn short(errno: Errno, what: impl Into<Cow<'static, str>>) -> Self {
        Self { is_short: true, ..Self::new(errno, what) }
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

    /// Whether this process had too little of something ([`Error::short`]). A peer's own error is never of this
    /// kind, whatever its errno.
    pub fn is_short(&self) -> bool {
        self.is_short
    }

    /// The errno to report to a peer.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<vfiod_quota::Exceeded> for Error {
    fn from(exceeded: vfiod_quota::Exceeded) -> Self {
        Self::short(exceeded.errno(), exceeded.to_string())
    }
}

impl From<vfiod_buffer::NoMemory> for Error {
    fn from(none: vfiod_buffer::NoMemory) -> Self {
        Self::short(Errno::NOMEM, none.to_string())
    }
}
