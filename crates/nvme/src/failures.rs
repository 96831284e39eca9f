//! What the failures of a disk come to. `docs/nvme.md` has the table.

use vfiod_core::Errno;
use vfiod_disk::FailureKind;

use vfiod_nvme_spec::Status;

/// What a command ends with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ends {
    /// Unrecovered Read Error or Write Fault; whether to try again is of no use.
    Media { for_good: bool },
    /// The same for each command.
    With(Status),
    /// Nothing: it begins anew.
    Never,
}

/// A kind of failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) kind: FailureKind,
    /// What the kernel says.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/nvme.md, which a test makes"))]
    pub(crate) errnos: &'static [Errno],
    /// What it stands for, where no errno does, or beside them.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/nvme.md, which a test makes"))]
    pub(crate) cause: &'static str,
    pub(crate) ends: Ends,
    /// How the disk goes on.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/nvme.md, which a test makes"))]
    pub(crate) then: &'static str,
}

const fn row(
    kind: FailureKind,
    errnos: &'static [Errno],
    cause: &'static str,
    ends: Ends,
    then: &'static str,
) -> Row {
    Row { kind, errnos, cause, ends, then }
}

const EACH: &str = "each command by itself";

/// The kinds of failures. A comparison that finds other data is none.
pub(crate) const FAILURES: &[Row] = &[
    row(FailureKind::Medium, &[Errno::IO], "", Ends::Media { for_good: false }, EACH),
    row(
        FailureKind::NoSpace,
        &[Errno::NOSPC, Errno::DQUOT, Errno::FBIG],
        "",
        Ends::With(Status::CAPACITY_EXCEEDED),
        "when there is space again, without a reset",
    ),
    row(
        FailureKind::ReadOnly,
        &[Errno::ROFS, Errno::BADF, Errno::PERM],
        "",
        Ends::With(Status::WRITE_PROTECTED),
        "reads go on",
    ),
    row(
        FailureKind::Gone,
        &[Errno::NODEV, Errno::NXIO, Errno::NOMEDIUM],
        "the device has vanished",
        Ends::Media { for_good: true },
        "when it is opened anew",
    ),
    row(
        FailureKind::Memory,
        &[Errno::FAULT, Errno::ACCESS],
        "the client has truncated its memory",
        Ends::With(Status::DATA_TRANSFER),
        EACH,
    ),
    row(
        FailureKind::OutOfRange,
        &[],
        "the file has become smaller",
        Ends::With(Status::LBA_OUT_OF_RANGE),
        "within what is left",
    ),
    row(
        FailureKind::SyncFailed,
        &[],
        "a sync has failed, whatever it said",
        Ends::Media { for_good: true },
        "writes and flushes when it is opened anew; SMART says read-only, and one event",
    ),
    row(
        FailureKind::Unsupported,
        &[Errno::OPNOTSUPP, Errno::NOSYS],
        "",
        Ends::With(Status::INTERNAL),
        EACH,
    ),
    row(
        FailureKind::Short,
        &[Errno::AGAIN, Errno::NOMEM, Errno::INTR, Errno::CANCELED],
        "no memory, a queue that is full",
        Ends::Never,
        "each command begins anew, as often as it must",
    ),
    row(FailureKind::Other, &[], "any other error", Ends::With(Status::INTERNAL), EACH),
];

/// What a command ends with whose request has failed; `media` where the media did.
pub(crate) fn status_of(kind: FailureKind, media: Status) -> Status {
    match FAILURES.iter().find(|row| row.kind == kind).map(|row| row.ends) {
        Some(Ends::Media { for_good: false }) => media,
        Some(Ends::Media { for_good: true }) => media.for_good(),
        Some(Ends::With(status)) => status,
        // Whoever asks has begun the command anew.
        Some(Ends::Never) => Status::INTERNAL,
        None if kind == FailureKind::Different => Status::COMPARE_FAILURE,
        None => Status::INTERNAL,
    }
}

/// Whether a failure is kept in the Error Information log: not those that the host alone has made.
pub(crate) fn is_logged(status: Status) -> bool {
    let others = [Status::DATA_TRANSFER, Status::INTERNAL, Status::CAPACITY_EXCEEDED];
    status.is_media() || others.contains(&status)
}
