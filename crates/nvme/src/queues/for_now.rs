//! Guest memory that cannot be reached for now.

use vfiod_core::{Errno, Error};

/// Whether an access to guest memory may succeed later: the host lets the device reach none for now, or there is too
/// little of our own to reach it by message.
pub(super) fn is_for_now(error: &Error) -> bool {
    error.errno() == Errno::PERM || error.is_short()
}
