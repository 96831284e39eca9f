//! Listening sockets that outlive this process: a keeper has duplicates of them, and the next process of the
//! same server takes them over. Clients that connect between the two wait in the socket's queue.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::net::{AddressFamily, Shutdown, SocketType};
use vfiod_directories::{directory_of, remove_in};

use crate::named::{Identity, SocketAccess, identity};

/// Keeps listening sockets beyond the end of this process. It must not wait for clients.
pub trait Keeper: Send + Sync + 'static {
    /// Keeps a duplicate of a listening socket, with what the next process has to know of it. Returns the number
    /// that it is kept under; `None`: it is not kept.
    fn keep(&self, socket: BorrowedFd<'_>, record: &[u8]) -> Option<u64>;

    /// Closes the duplicate.
    fn forget(&self, number: u64);
}

/// What a keeper has of a process before this one.
#[derive(Debug)]
pub struct LeftSocket {
    /// The number that it is kept under.
    pub number: u64,
    /// The socket.
    pub socket: OwnedFd,
    /// What was kept with it.
    pub record: Vec<u8>,
}

struct Keeping {
    keeper: Box<dyn Keeper>,
    /// What nobody has taken over yet.
    left: Mutex<Vec<Left>>,
}

static KEEPING: OnceLock<Keeping> = OnceLock::new();

/// Has all sockets of this process kept that are made from now on, and lets [`crate::NamedSocket::prepare`] take over
/// those that were left. What is no socket of this crate is forgotten. The first keeper is that of the process.
pub fn keep_by(keeper: Box<dyn Keeper>, left: Vec<LeftSocket>) {
    let keeping = KEEPING.get_or_init(|| Keeping { keeper, left: Mutex::default() });
    for LeftSocket { number, socket, record } in left {
        let kept = Kept(number);
        // Otherwise it is dropped, and forgotten by that.
        if let Some(record) = Record::decode(&record).filter(|_| is_listening(&socket)) {
            let left = Left { record, socket, kept };
            keeping.left.lock().unwrap_or_else(PoisonError::into_inner).push(left);
        }
    }
}

/// Stops to listen at what was left and nobody has taken over, and removes its names.
pub fn close_left() {
    let Some(keeping) = KEEPING.get() else { return };
    let left = std::mem::take(&mut *keeping.left.lock().unwrap_or_else(PoisonError::into_inner));
    for left in left {
        let directory = directory_of(&left.record.path).to_owned();
        remove_in(&directory, move || left.close());
    }
}

/// Takes what was left of a path.
pub(crate) fn take_left(path: &Path) -> Vec<Left> {
    let Some(keeping) = KEEPING.get() else { return Vec::new() };
    let mut left = keeping.left.lock().unwrap_or_else(PoisonError::into_inner);
    left.extract_if(.., |left| left.record.path == path).collect()
}

/// Has a socket kept, if this process has a keeper.
pub(crate) fn keep(socket: BorrowedFd<'_>, record: &Record) -> Option<Kept> {
    KEEPING.get()?.keeper.keep(socket, &record.encode()).map(Kept)
}

/// A socket that is kept. Forgotten when this is dropped.
#[derive(Debug)]
pub(crate) struct Kept(u64);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(keeping) = KEEPING.get() {
            keeping.keeper.forget(self.0);
        }
    }
}

/// A socket of a process before this one. In this order: the last close is the keeper's.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) record: Record,
    pub(crate) socket: OwnedFd,
    pub(crate) kept: Kept,
}

impl Left {
    /// Where its file is: at its path, or still under its first name. `None`: nowhere.
    pub(crate) fn place(&self) -> Option<&Path> {
        let Record { path, first, identity: ours, .. } = &self.record;
        let places = [path.as_path(), first.as_path()];
        places.into_iter().find(|place| identity(place) == Ok(*ours))
    }

    /// Ends it: who connects is refused, and it has no name any more.
    pub(crate) fn close(self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        if let Some(place) = self.place()
            && let Err(error) = std::fs::remove_file(place)
        {
            tracing::warn!(path = %place.display(), %error, "cannot remove the socket");
        }
    }
}

fn is_listening(socket: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && rustix::net::sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && rustix::net::sockopt::socket_acceptconn(socket) == Ok(true)
}

/// What the next process has to know of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) path: PathBuf,
    /// Where it is before it is published.
    pub(crate) first: PathBuf,
    pub(crate) access: SocketAccess,
    pub(crate) identity: Identity,
}

impl Record {
    /// As text: paths have no NUL in them.
    fn encode(&self) -> Vec<u8> {
        let Self { path, first, access, identity: (device, inode) } = self;
        let number =
            |number: Option<u32>| number.map_or(String::new(), |number| number.to_string());
        let numbers = [number(access.mode), number(access.uid), number(access.gid)];
        let numbers = [numbers.join("\0"), device.to_string(), inode.to_string()].join("\0");
        let paths = [path, first].map(|path| path.as_os_str().as_bytes());
        [paths[0], paths[1], numbers.as_bytes()].join(&0)
    }

    /// `None`: it is none.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let fields: Vec<_> = bytes.split(|byte| *byte == 0).collect();
        let [path, first, mode, uid, gid, device, inode] = fields[..] else { return None };
        let path_of = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
        let optional = |bytes: &[u8]| match bytes {
            [] => Some(None),
            bytes => Some(Some(u32::try_from(number(bytes)?).ok()?)),
        };
        let access =
            SocketAccess { mode: optional(mode)?, uid: optional(uid)?, gid: optional(gid)? };
        let identity = (number(device)?, number(inode)?);
        Some(Self { path: path_of(path), first: path_of(first), access, identity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_read_as_it_was_written_or_not_at_all() {
        let access = SocketAccess { mode: Some(0o660), uid: None, gid: Some(u32::MAX) };
        let record = Record {
            path: "/run/a b.sock".into(),
            first: "/run/.a b.sock.1-2.new".into(),
            access,
            identity: (u64::MAX, 7),
        };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Some(record));
        for length in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Record::decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Record::decode(b"a\0b\0-1\0\0\x005\x006"), None);
        assert_eq!(Record::decode(b"a\0b\x004294967296\0\0\x005\x006"), None);
    }
}
