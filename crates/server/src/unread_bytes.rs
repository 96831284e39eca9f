//! How much of what a socket has sent its peer has not read.
//!
//! `unsafe`: an `ioctl` that rustix has no function for.

#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};

/// Whether the peer of a UNIX socket has read all that was sent, or has closed its end (SIOCOUTQ, which
/// has the number of TIOCOUTQ).
pub(crate) fn all_is_read(socket: impl AsFd) -> Result<bool, Errno> {
    const SIOCOUTQ: Opcode = nix::libc::TIOCOUTQ as Opcode;
    // SAFETY: SIOCOUTQ stores an `int` and touches nothing else.
    let unread = unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) }?;
    Ok(unread == 0)
}
