//! What a source is watched for, by `epoll` and by its model.

/// What a source waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
    /// That the peer hangs up.
    HangUp,
    /// That nobody can send to the peer any more.
    Closed,
}
