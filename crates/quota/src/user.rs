//! Who takes something: an account, unless the kernel cannot name it.

use std::fmt;
use std::sync::OnceLock;

/// Who takes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum User {
    /// An account, by its user id.
    Account(u32),
    /// One connection, whose account the kernel cannot name.
    Connection(u64),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(uid) => write!(f, "uid {uid}"),
            Self::Connection(_) => f.write_str("connections without an account"),
        }
    }
}

impl User {
    /// The user, or one for all connections whose account the kernel cannot name: where it is about how many
    /// there are, they are one, who could be as many as they like otherwise.
    #[must_use]
    pub fn or_unnamed(self) -> Self {
        match self {
            Self::Account(_) => self,
            Self::Connection(_) => Self::Connection(0),
        }
    }

    /// The user of a connection whose client runs as `uid`, as the kernel says. A client whose account it
    /// does not name, or names by [`overflow_uid`], is a user of its own.
    pub fn of(uid: Option<u32>, connection: u64) -> Self {
        uid.filter(|uid| *uid != overflow_uid()).map_or(Self::Connection(connection), Self::Account)
    }
}

/// The user id that the kernel names where an account has none in our user namespace: that of nobody in
/// particular. It is read once.
pub fn overflow_uid() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| read("/proc/sys/kernel/overflowuid"))
}

/// The group id that the kernel names where a group has none in our user namespace. It is read once.
pub fn overflow_gid() -> u32 {
    static GID: OnceLock<u32> = OnceLock::new();
    *GID.get_or_init(|| read("/proc/sys/kernel/overflowgid"))
}

fn read(path: &str) -> u32 {
    /// `DEFAULT_OVERFLOWUID` and `DEFAULT_OVERFLOWGID` of the kernel's `linux/highuid.h`.
    const DEFAULT: u32 = 65534;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT)
}
