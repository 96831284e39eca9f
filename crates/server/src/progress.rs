//! What a connection's thread made of what had arrived.

use crate::dispatch::Waiting;
use crate::interest::Interest;
use crate::message_log::Message;
use crate::patience::Patience;

/// How much of what had arrived was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    /// There was no whole message.
    Nothing,
    /// Every message.
    All,
    /// There are more: the client does not take replies, or others have waited for long.
    Part,
}

/// What became of an event.
pub(crate) enum Step {
    /// There is none.
    Idle,
    /// It is done with.
    Done,
    /// VERSION waits for another client of the device, or a hot reset for one of the set.
    Parked,
    /// A request that may wait for the client.
    Waits(Unanswered),
}

/// A request that may wait, without a reply yet.
pub(crate) struct Unanswered {
    pub(crate) what: Waiting,
    /// Its first position.
    pub(crate) request: u64,
    pub(crate) deadline: vfiod_protocol::Time,
    pub(crate) message: Message,
    /// How long it waits for other clients; `None`: it has not been tried yet.
    pub(crate) patience: Option<Patience>,
}

/// What became of a turn.
pub(crate) enum Turn {
    Handled(Handled),
    /// Nothing can be done before this: the client takes what was sent before, or a request waits for
    /// another client.
    Blocked(Interest),
}
