//! What a connection's thread made of what had arrived.

use crate::dispatch::Waiting;
use crate::interest::Interest;
use crate::message_log::Message;

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
    /// VERSION waits for another client of the device.
    Parked,
    /// A request that may wait for the client, its first position, and its deadline.
    Waits(Waiting, u64, vfiod_protocol::Time, Message),
}

/// What became of a turn.
pub(crate) enum Turn {
    Handled(Handled),
    /// Nothing can be done before this: the client takes what was sent before, or VERSION waits for
    /// another client.
    Blocked(Interest),
}
