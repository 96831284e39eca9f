//! How much of what a socket has sent its peer has not read.
//!
//! `unsafe`: an `ioctl` that rustix has no function for.

#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};

/// What of what was sent on a UNIX socket its peer has not read: bytes of the kernel's memory. None where it
/// has closed its end (SIOCOUTQ, which has the number of TIOCOUTQ).
pub(crate) fn unread_bytes(socket: impl AsFd) -> Result<usize, Errno> {
    const SIOCOUTQ: Opcode = nix::libc::TIOCOUTQ as Opcode;
    // SAFETY: SIOCOUTQ stores an `int` and touches nothing else.
    let unread = unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) }?;
    Ok(usize::try_from(unread).unwrap_or(0))
}
