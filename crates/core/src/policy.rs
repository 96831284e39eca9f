//! Who may open a device, and what its next user finds.

/// How many files a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OpenPolicy {
    /// One; a second open gets `EINVAL` (the kernel's cdev path).
    #[default]
    Single,
    /// Any number of one owner; another owner gets `EBUSY` (the kernel's group path).
    Multi,
}

/// What happens to a device's state between its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StatePolicy {
    /// The first open resets the device.
    #[default]
    Reset,
    /// State is kept, so that a client can come back to it.
    Retain,
}
