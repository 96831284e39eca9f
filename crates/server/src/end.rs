//! How a connection ends.

use rustix::io::Errno;
use vfiod_quota::Exceeded;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client closed it")]
    Closed,
    #[error("the client closed it in the middle of a message")]
    Truncated,
    #[error("{0}")]
    Protocol(#[from] vfiod_protocol::End),
    #[error("the socket failed: {0}")]
    Socket(#[from] Errno),
    #[error("it sends descriptors whose close does not return")]
    Descriptors,
    #[error("its process has died, and nobody takes what was sent")]
    Abandoned,
    #[error("it keeps too much waiting: {0}")]
    Memory(#[from] Exceeded),
    #[error("the device was revoked")]
    Revoked,
    #[error("the server stops serving it")]
    Stopped,
}
