//! The descriptor by which the owner of a ring learns of completions: an eventfd.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_dma::{Error, Result};
use vfiod_sync::Arc;

/// Makes one that is not readable.
///
/// # Errors
/// `EMFILE` and the like: no descriptors are left.
pub(crate) fn new() -> Result<Arc<OwnedFd>> {
    let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    made.map(Arc::new).map_err(|e| Error::new(e, "cannot make an eventfd for completions"))
}

/// Makes an eventfd readable.
pub(crate) fn signal(eventfd: &OwnedFd) {
    // It fails only when the counter is full, and then it is readable already.
    _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}
