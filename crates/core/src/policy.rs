//! Who may open a device, and what its next user finds.

use crate::ids::Owner;

/// How many files a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OpenPolicy {
    /// One; a second open gets `EINVAL` (the kernel's cdev path).
    #[default]
    Single,
    /// Any number of one owner; another owner gets `EBUSY` (the kernel's group path).
    Multi,
}

/// Whose state a device has that retains it.
#[derive(Clone, Debug, Default)]
pub(crate) enum Retained {
    /// Nobody's: it has not been opened yet.
    #[default]
    PowerOn,
    /// That of the user who has, or had, it open.
    User(Owner),
    /// Not known: the state of a device that was not open was restored.
    Unknown,
    /// That of whoever opens the device next: an operator has restored it
    /// ([`DeviceRef::restore_portable`](crate::DeviceRef::restore_portable)).
    Next,
}

impl Retained {
    /// Whether a user may find the state.
    pub(crate) fn is_for(&self, user: &Owner) -> bool {
        match self {
            Self::PowerOn | Self::Next => true,
            Self::User(last) => last.is_same_user(user),
            Self::Unknown => false,
        }
    }
}

/// What happens to a device's state between its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StatePolicy {
    /// The first open resets the device.
    #[default]
    Reset,
    /// State is kept, so that a client can come back to it. It belongs to the user that the client ran
    /// as: the first open of another user resets the device. DMA mappings and eventfds are the
    /// client's, and go with it; a bus turns off at the last close what could reach them.
    Retain,
}
