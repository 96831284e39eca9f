//! Descriptors that clients send, where none is wanted.

use std::os::fd::AsFd;

use nix::sys::socket::{SetSockOpt, sockopt};

/// `SO_PASSRIGHTS` of the kernel's `asm-generic/socket.h`.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Whether a socket takes descriptors.
#[derive(Clone, Copy)]
struct PassRights;

nix::setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, sockopt::SetBool);

/// Has the kernel refuse descriptors that are sent to a socket, and to those that it accepts from now on:
/// whoever sends them gets `EPERM`. Otherwise the kernel closes them when the socket is read without
/// asking for them, in the thread that reads, and that may take for ever.
///
/// Returns whether the kernel can do that, from Linux 6.16 on.
pub fn refuse_descriptors(socket: impl AsFd) -> bool {
    PassRights.set(&socket, &false).is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::io::Errno;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn send(socket: &UnixStream) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [socket.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(socket, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL)
    }

    #[test]
    fn socket_that_refuses_descriptors_takes_none_accepted_or_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        if !refuse_descriptors(&listener) {
            eprintln!("SKIPPED: the kernel cannot refuse descriptors (before Linux 6.16)");
            return;
        }
        assert_eq!(send(&client), Ok(1), "it had connected before");
        let client = UnixStream::connect(&path).unwrap();
        assert_eq!(send(&client), Err(Errno::PERM));
        let (_before, _accepted) = (listener.accept().unwrap(), listener.accept().unwrap());
        assert_eq!(send(&client), Err(Errno::PERM));
        assert_eq!(rustix::net::send(&client, b"x", SendFlags::NOSIGNAL), Ok(1));
    }
}
