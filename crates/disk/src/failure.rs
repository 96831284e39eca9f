//! Why requests fail, as a guest has to tell it apart.

use vfiod_dma::{Errno, Error};

/// Why a request failed.
#[derive(Debug)]
pub struct Failure {
    /// What the guest is told.
    pub kind: FailureKind,
    /// What the log is told.
    pub error: Error,
}

/// Kinds of failures, as a guest has to tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The medium could not be read or written (`EIO`), or ended early.
    Medium,
    /// No space is left, or a quota is reached (`ENOSPC`, `EDQUOT`): works again when there is.
    NoSpace,
    /// It cannot be written (`EROFS`, `EBADF`, `EPERM`).
    ReadOnly,
    /// The device behind it is gone (`ENODEV`, `ENXIO`).
    Gone,
    /// Guest memory could not be reached (`EFAULT`, `EACCES`).
    Memory,
    /// The back end does not do this (`EOPNOTSUPP`).
    Unsupported,
    /// Outside the disk, or the disk has become smaller than it was.
    OutOfRange,
    /// A sync has failed, this one or an earlier one: what was written before may be lost, and no
    /// write and no flush succeeds until the disk is opened anew.
    SyncFailed,
    /// A compare: the disk has other data than the buffer.
    Different,
    /// Nobody wants what it comes to any more: its [`Interest`](crate::Interest) has ended.
    Unwanted,
    /// Too little memory, or of something else that this process or the kernel has a limited number of (`EAGAIN`,
    /// `ENOMEM`), or the kernel has given the request up (`EINTR`, `ECANCELED`). A read or write that fails so has
    /// given back all that it had, and is started anew, after a while: no guest is told.
    Short,
    /// Any other error.
    Other,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match error.errno() {
            Errno::IO => FailureKind::Medium,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => FailureKind::NoSpace,
            Errno::ROFS | Errno::BADF | Errno::PERM => FailureKind::ReadOnly,
            Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM => FailureKind::Gone,
            Errno::FAULT | Errno::ACCESS => FailureKind::Memory,
            Errno::OPNOTSUPP | Errno::NOSYS => FailureKind::Unsupported,
            Errno::AGAIN | Errno::NOMEM | Errno::INTR | Errno::CANCELED => FailureKind::Short,
            _ if error.is_short() => FailureKind::Short,
            _ => FailureKind::Other,
        };
        Self { kind, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_is_told_what_kind_of_failure_an_errno_is() {
        for (errnos, expected) in [
            (&[Errno::IO][..], FailureKind::Medium),
            (&[Errno::NOSPC, Errno::DQUOT, Errno::FBIG], FailureKind::NoSpace),
            (&[Errno::ROFS, Errno::BADF, Errno::PERM], FailureKind::ReadOnly),
            (&[Errno::NODEV, Errno::NXIO, Errno::NOMEDIUM], FailureKind::Gone),
            (&[Errno::FAULT, Errno::ACCESS], FailureKind::Memory),
            (&[Errno::OPNOTSUPP, Errno::NOSYS], FailureKind::Unsupported),
            (&[Errno::AGAIN, Errno::NOMEM, Errno::INTR, Errno::CANCELED], FailureKind::Short),
            (&[Errno::INVAL, Errno::TIMEDOUT], FailureKind::Other),
        ] {
            for errno in errnos {
                let failure = Failure::from(Error::new(*errno, "a test"));
                assert_eq!(failure.kind, expected, "{errno:?}");
            }
        }
    }
}
