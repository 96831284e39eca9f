//! How a connection ends.

use rustix::io::Errno;
use vfiod_quota::Exceeded;

use crate::clients::ConnectionInfo;
use crate::limits::Clipped;

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
    #[error("nothing can be sent to it: {0}")]
    Unsendable(Exceeded),
    #[error("the device was revoked")]
    Revoked,
    #[error("the server stops serving it")]
    Stopped,
}

impl End {
    /// Whether somebody has ended it on purpose, and in order.
    fn is_orderly(&self) -> bool {
        matches!(self, Self::Closed | Self::Revoked | Self::Stopped)
    }

    /// Logs the end of a connection to `device`. `refusals` are those of which nothing was said,
    /// `suppressed` the ends.
    pub(crate) fn log(
        &self,
        device: &str,
        connection: u64,
        of: &ConnectionInfo,
        refusals: u64,
        suppressed: u64,
    ) {
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    device,
                    connection,
                    reason = %Clipped(self),
                    owner = %of.owner,
                    messages = of.messages,
                    errors = of.errors,
                    refusals,
                    suppressed,
                    "connection ended"
                )
            };
        }
        if self.is_orderly() { log!(info) } else { log!(warn) }
    }
}
