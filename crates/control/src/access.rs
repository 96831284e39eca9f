//! Who may use the API: peers are known by the credentials that the kernel vouches for.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getgrouplist, getuid};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use vfiod_quota::User as Payer;

use crate::places::Peer;

/// Who a peer is, and if it may not use the API, how it is called.
pub(crate) struct Identified {
    pub(crate) peer: Peer,
    pub(crate) refused: Option<String>,
}

/// Users and groups who may: these, root, and the daemon's own user.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    users: Vec<u32>,
    groups: Vec<u32>,
    /// Root and the daemon's own user.
    operators: [u32; 2],
}

impl Access {
    pub(crate) fn new(users: Vec<u32>, groups: Vec<u32>) -> Self {
        Self { users, groups, operators: [0, getuid().as_raw()] }
    }

    /// Who the peer of a connection is, the connection of this number.
    pub(crate) fn identify(&self, stream: &UnixStream, connection: u64) -> Identified {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                let peer = Peer::User(Payer::Connection(connection));
                return Identified { peer, refused: Some(format!("an unknown peer ({error})")) };
            }
        };
        let user = Payer::of(Some(peer.uid()), connection);
        let who = if self.operators.contains(&peer.uid()) { Peer::Operator } else { Peer::User };
        Identified { peer: who(user), refused: (!self.allows(&peer)).then(|| describe(&peer)) }
    }

    fn allows(&self, peer: &UCred) -> bool {
        self.operators.contains(&peer.uid())
            || self.users.contains(&peer.uid())
            || self.groups.contains(&peer.gid())
            || (!self.groups.is_empty() && self.is_member(peer))
    }

    /// Whether the peer's user belongs to one of the groups by the system's account database:
    /// credentials of a socket have the primary group only.
    fn is_member(&self, peer: &UCred) -> bool {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid())) else { return false };
        let Ok(name) = CString::new(user.name) else { return false };
        let groups = getgrouplist(&name, Gid::from_raw(peer.gid())).unwrap_or_default();
        groups.iter().any(|group| self.groups.contains(&group.as_raw()))
    }
}

/// Loads what looks up accounts, which may be libraries that the system's configuration names: a
/// sandboxed process cannot load them any more.
pub fn load_accounts() {
    if let Ok(Some(user)) = User::from_uid(getuid())
        && let Ok(name) = CString::new(user.name)
    {
        let _ = getgrouplist(&name, user.gid);
    }
}

fn describe(peer: &UCred) -> String {
    let pid = peer.pid().map_or_else(String::new, |pid| format!("process {pid}, "));
    format!("{pid}uid {}, gid {}", peer.uid(), peer.gid())
}
