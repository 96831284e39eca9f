//! Why a step of a command is not done.

use vfiod_core::Error;
use vfiod_nvme_spec::Status;

/// Why a step of a command is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The command ends with this.
    With(Status),
    /// There is too little memory for now, or of something else that the daemon has a limited number of. The host
    /// is never told of that: the command gives back all that it has, and begins anew
    /// ([`BounceMemory::again`](crate::bounce::BounceMemory::again)).
    Short,
}

impl Denied {
    /// What a command ends with that cannot begin anew.
    pub(crate) fn for_good(self) -> Status {
        match self {
            Self::With(status) => status,
            Self::Short => Status::INTERNAL,
        }
    }

    /// Why an access to guest memory has failed.
    pub(crate) fn of_memory(error: &Error) -> Self {
        if error.is_short() { Self::Short } else { Self::With(Status::DATA_TRANSFER) }
    }
}

impl From<Status> for Denied {
    fn from(status: Status) -> Self {
        Self::With(status)
    }
}
