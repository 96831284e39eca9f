//! Who may use the API: peers are known by the credentials that the kernel vouches for.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, getgrouplist, getuid};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use vfiod_quota::{User as Payer, overflow_gid, overflow_uid};

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
        let is_allowed = self.allows(peer.uid(), peer.gid());
        Identified { peer: who(user), refused: (!is_allowed).then(|| describe(&peer)) }
    }

    /// Whether an account may. One that the kernel cannot name may not, as every other one of these would
    /// be the same: also where the daemon runs as nobody.
    fn allows(&self, uid: u32, gid: u32) -> bool {
        if uid == overflow_uid() {
            return false;
        }
        self.operators.contains(&uid)
            || self.users.contains(&uid)
            || (gid != overflow_gid() && self.groups.contains(&gid))
            || (!self.groups.is_empty() && self.is_member(uid, gid))
    }

    /// Whether a user belongs to one of the groups by the system's account database: credentials of a
    /// socket have the primary group only.
    fn is_member(&self, uid: u32, gid: u32) -> bool {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
        let Ok(name) = CString::new(user.name) else { return false };
        // The function adds the group that it is given.
        let gid = if gid == overflow_gid() { user.gid } else { Gid::from_raw(gid) };
        let groups = getgrouplist(&name, gid).unwrap_or_default();
        groups.iter().any(|group| self.groups.contains(&group.as_raw()))
    }
}

/// Loads what looks up accounts, which may be libraries that the system's configuration names: a
/// sandboxed process cannot load them any more.
pub fn load_accounts() {
    let _ = (overflow_uid(), overflow_gid());
    if let Ok(Some(user)) = User::from_uid(getuid())
        && let Ok(name) = CString::new(user.name)
    {
        let _ = getgrouplist(&name, user.gid);
    }
}

fn describe(peer: &UCred) -> String {
    let pid = peer.pid().map_or_else(String::new, |pid| format!("process {pid}, "));
    let nobody =
        if peer.uid() == overflow_uid() { " (nobody: it has no account here)" } else { "" };
    format!("{pid}uid {}{nobody}, gid {}", peer.uid(), peer.gid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_that_the_kernel_cannot_name_may_not_use_the_api() {
        let (nobody, nogroup) = (overflow_uid(), overflow_gid());
        let mut access = Access::new(vec![1000, nobody], vec![2000, nogroup]);
        assert!(access.allows(1000, 1) && access.allows(0, 0) && access.allows(7, 2000));
        assert!(!access.allows(nobody, 2000), "it may be anybody");
        assert!(!access.allows(7, nogroup), "it may be any group");
        access.operators = [0, nobody];
        assert!(!access.allows(nobody, 1), "it is not known to be the daemon's user");
    }
}
