//! What a connection knows beside its bytes.

use serde::{Deserialize, Serialize};
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, HEADER_LEN, Header};

use crate::dialect::Dialect;
use crate::input::{BadSize, Frame, Input};
use crate::limits::REQUEST_TIMEOUT;
use crate::time::Time;

/// Why a connection ended. The driver sends what is left in the output and closes the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum End {
    /// A message of a size that no message can have.
    #[error("the stream has no meaning any more: {0}")]
    Stream(#[from] BadSize),
    /// The first message did not lead to an open device.
    #[error("negotiation failed: {0}")]
    Refused(String),
    /// More than [`crate::limits::MAX_STRAY_REPLIES`] replies to nothing.
    #[error("it answers commands that were never sent")]
    StrayReplies,
    /// Something else than a reply on the second socket.
    #[error("a message on the second socket that is no reply")]
    NotAReply,
}

/// How far a connection is.
///
/// ```text
///                VERSION                    negotiated
/// AwaitsVersion ─────────► (pending VERSION) ─────────► Ready ──► Ended
///       └── anything else: errno ──► Ended ◄── refused ──┘
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    AwaitsVersion,
    Ready,
    Ended(End),
}

/// A request that was handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) frame: Frame,
    /// Its reply is in the output.
    pub(crate) replied: bool,
    pub(crate) deadline: Time,
}

impl Pending {
    #[inline]
    pub(crate) fn new<D>(input: &Input<D>, frame: Frame) -> Self {
        let deadline = input.arrived(frame.position).after(REQUEST_TIMEOUT);
        Self { frame, replied: false, deadline }
    }
}

/// A REGION_WRITE whose data does not come through the input's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outside {
    /// How much of the data has arrived.
    pub(crate) received: usize,
}

/// A message for which there is no memory. Behind its header, what comes of it is dropped; then it is
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// How much has arrived behind the header.
    pub(crate) received: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) phase: Phase,
    pub(crate) dialect: Dialect,
    /// Descriptors in one message that the client takes.
    pub(crate) client_fds: u32,
    /// Bytes of data in one message that the client takes.
    pub(crate) client_data: u64,
    pub(crate) pending: Option<Pending>,
    pub(crate) outside: Option<Outside>,
    pub(crate) dropped: Option<Dropped>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            phase: Phase::AwaitsVersion,
            dialect: Dialect::Standard,
            client_fds: 1,
            client_data: crate::limits::MAX_DATA as u64,
            pending: None,
            outside: None,
            dropped: None,
        }
    }
}

impl Session {
    /// How much of the message at the front is in the input's buffer, if it is not received there in
    /// whole.
    #[inline]
    pub(crate) fn inside(&self) -> Option<usize> {
        match (self.outside, self.dropped) {
            (Some(_), _) => Some(HEADER_LEN + RegionAccess::LEN),
            (None, Some(_)) => Some(HEADER_LEN),
            (None, None) => None,
        }
    }

    pub(crate) fn error_padding(&self, command: Option<Command>) -> usize {
        command.map_or(0, |command| self.dialect.error_padding(command))
    }

    pub(crate) fn command(header: &Header) -> Option<Command> {
        Command::from_number(header.command)
    }
}
