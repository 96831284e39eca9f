//! Who is at the other end of a connection, as the kernel reports it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Once, OnceLock};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use rustix::io::Errno;
use vfiod_core::{ConnectionId, Credentials, Owner, OwnerIdentity};
use vfiod_quota::User;

use crate::outgoing::Outgoing;

/// The owner of the files of a connection: the process that connected, by its pidfd, or where
/// that tells processes apart only while they live (before Linux 6.9), or it has ended and the
/// kernel does not know it any more (before 6.16), this connection. The process id is 0 for a
/// client outside our pid namespace.
///
/// The pidfd is asked for only when the owner is compared with another: it costs more than all of
/// a message. When that is makes no difference, as the kernel notes the process at the connect.
///
/// # Errors
/// Those of `getsockopt` for the credentials.
pub(crate) fn owner(outgoing: &Arc<Outgoing>, connection: ConnectionId) -> Result<Owner, Errno> {
    let credentials = credentials(outgoing.socket())?;
    // Weak: records of events keep owners, and must not keep the socket open. Whoever has the
    // file has the socket, too ([`crate::opened::Opened`]).
    let outgoing = Arc::downgrade(outgoing);
    let identity = move || {
        let process = outgoing.upgrade().and_then(|outgoing| process(outgoing.socket().as_fd()));
        process.unwrap_or(OwnerIdentity::Connection(connection))
    };
    Ok(Owner::deferred(identity).with_credentials(credentials))
}

fn credentials(socket: &impl AsFd) -> Result<Credentials, Errno> {
    let peer = getsockopt(socket, PeerCredentials)
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    Ok(Credentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() })
}

/// Whom a connection counts for that has just been accepted; see [`User::or_unnamed`].
///
/// # Errors
/// Those of `getsockopt` for the credentials.
pub(crate) fn user_of(socket: &impl AsFd) -> Result<User, Errno> {
    Ok(User::of(Some(credentials(socket)?.uid), 0).or_unnamed())
}

/// Whom a connection counts for.
pub(crate) fn user(owner: &Owner, connection: u64) -> User {
    User::of(owner.credentials().map(|peer| peer.uid), connection)
}

/// The process that connected, if the kernel gives its pidfds an inode each (pidfs).
fn process(socket: BorrowedFd<'_>) -> Option<OwnerIdentity> {
    /// `PID_FS_MAGIC` of the kernel's `linux/magic.h`.
    const PID_FS_MAGIC: rustix::fs::FsWord = 0x5049_4446;
    let pidfd = match getsockopt(&socket, PeerPidfd) {
        Ok(pidfd) => pidfd,
        Err(errno) => {
            // Before Linux 6.5.
            if errno == nix::Error::ENOPROTOOPT {
                warn_of_strangers();
            }
            return None;
        }
    };
    // The same for every pidfd of this kernel.
    static PIDFS: OnceLock<bool> = OnceLock::new();
    let is_pidfs = || rustix::fs::fstatfs(&pidfd).is_ok_and(|fs| fs.f_type == PID_FS_MAGIC);
    if !PIDFS.get_or_init(is_pidfs) {
        warn_of_strangers();
        return None;
    }
    let pidfd_inode = rustix::fs::fstat(&pidfd).ok()?.st_ino;
    Some(OwnerIdentity::Process { pidfd_inode })
}

/// Says once what this kernel cannot do.
fn warn_of_strangers() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        tracing::warn!(
            "the kernel does not tell client processes apart (before Linux 6.9): each connection is an \
             owner of its own, and two of one process cannot open one device or reset a set"
        );
    });
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::closer::Closer;
    use crate::pool::LINGER;
    use crate::transport::Socket;

    /// A connection of this process to itself: the client's end is kept for as long as the other.
    fn connection(number: u64) -> (Arc<Outgoing>, Owner, std::os::fd::OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        let outgoing =
            Arc::new(Outgoing::new(Socket::new(ours, LINGER, Closer::new("x")).unwrap()));
        let owner = owner(&outgoing, ConnectionId(number)).unwrap();
        (outgoing, owner, theirs)
    }

    #[test]
    fn owner_stays_the_same_whenever_its_connection_ends() {
        let (first, second) = (connection(1), connection(2));
        let known = process(first.0.socket().as_fd());
        // Before Linux 6.9, they are two owners.
        assert_eq!(first.1 == second.1, known.is_some());
        let before = first.1.identity().clone();
        drop(first.0);
        assert_eq!(*first.1.identity(), before);
        assert_eq!(first.1.credentials().map(|peer| peer.pid), Some(std::process::id() as i32));
    }

    #[test]
    fn connections_of_one_account_are_one_user_unless_the_kernel_cannot_name_it() {
        let owner = |uid| {
            let identity = || OwnerIdentity::Connection(ConnectionId(1));
            Owner::deferred(identity).with_credentials(Credentials { pid: 1, uid, gid: 0 })
        };
        assert_eq!(user(&owner(0), 1), User::Account(0));
        assert_eq!(user(&owner(1000), 1), user(&owner(1000), 2));
        let nobody = vfiod_quota::overflow_uid();
        assert_ne!(
            user(&owner(nobody), 1),
            user(&owner(nobody), 2),
            "clients that the kernel cannot name are one user"
        );
    }

    #[test]
    fn owner_does_not_keep_its_socket_open() {
        let (outgoing, owner, _client) = connection(3);
        drop(outgoing);
        assert_eq!(*owner.identity(), OwnerIdentity::Connection(ConnectionId(3)));
        assert_ne!(owner, connection(4).1);
    }
}
