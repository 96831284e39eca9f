//! Sockets that a process leaves, and the next one takes over. The keeper is that of a whole process: one test.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use vfiod_sockets::{Keeper, LeftSocket, NamedSocket, Site, SocketAccess, close_left, keep_by};

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<u64, Entry>>>);

/// A socket and its record.
type Entry = (OwnedFd, Vec<u8>);

impl Keeper for Kept {
    fn keep(&self, socket: BorrowedFd<'_>, record: &[u8]) -> Option<u64> {
        let mut kept = self.0.lock().unwrap();
        let number = kept.keys().next_back().map_or(0, |last| last + 1);
        kept.insert(number, (socket.try_clone_to_owned().unwrap(), record.to_vec()));
        Some(number)
    }

    fn forget(&self, number: u64) {
        self.0.lock().unwrap().remove(&number).unwrap();
    }
}

impl Kept {
    /// What the next process begins with.
    fn next_process(&self) {
        let left = |(number, (socket, record)): (&u64, &Entry)| LeftSocket {
            number: *number,
            socket: socket.try_clone().unwrap(),
            record: record.clone(),
        };
        // Not locked while some are forgotten.
        let left = self.0.lock().unwrap().iter().map(left).collect();
        keep_by(Box::new(self.clone()), left);
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Ends as a process that is killed does: nothing is removed.
fn die(socket: NamedSocket) {
    std::mem::forget(socket);
}

fn prepare(path: &Path, mode: u32) -> NamedSocket {
    let access = SocketAccess { mode: Some(mode), ..SocketAccess::default() };
    NamedSocket::prepare(path, access, Site::Free).unwrap()
}

/// Whether the socket accepts a client that has connected, among those that only looked whether anybody listens.
fn serves(socket: &NamedSocket, client: &mut UnixStream) -> bool {
    let listener = UnixListener::from(socket.as_fd().try_clone_to_owned().unwrap());
    client.write_all(b"x").unwrap();
    let mut accepted = std::iter::from_fn(|| listener.accept().ok());
    accepted.any(|(mut accepted, _)| accepted.read_exact(&mut [0]).is_ok())
}

fn names(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn socket_that_a_process_left_is_taken_over_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    let kept = Kept::default();
    kept.next_process();

    // Published: a client that has connected meanwhile is served, and the name goes at the end.
    let mut socket = prepare(&path, 0o600);
    socket.publish().unwrap();
    die(socket);
    let mut client = UnixStream::connect(&path).unwrap();
    kept.next_process();
    let mut socket = prepare(&path, 0o600);
    socket.publish().unwrap();
    assert!(serves(&socket, &mut client));
    assert_eq!((kept.count(), names(directory.path())), (1, 1));
    drop(socket);
    assert_eq!((kept.count(), names(directory.path())), (0, 0));

    // Not published yet.
    die(prepare(&path, 0o600));
    kept.next_process();
    let mut socket = prepare(&path, 0o600);
    assert!(!path.exists());
    socket.publish().unwrap();
    assert!(serves(&socket, &mut UnixStream::connect(&path).unwrap()));
    assert_eq!((kept.count(), names(directory.path())), (1, 1));

    // To be taken over with another mode: a new one, and nobody waits at the old one.
    die(socket);
    kept.next_process();
    let mut socket = prepare(&path, 0o666);
    socket.publish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    assert!(serves(&socket, &mut UnixStream::connect(&path).unwrap()));
    assert_eq!((kept.count(), names(directory.path())), (1, 1));

    // Died amid a change: the one that has the name counts.
    die(prepare_beside(&path, 0o666));
    die(socket);
    let mut client = UnixStream::connect(&path).unwrap();
    kept.next_process();
    let socket = prepare(&path, 0o666);
    assert!(serves(&socket, &mut client));
    assert_eq!((kept.count(), names(directory.path())), (1, 1));

    // Somebody has removed its name: a new one.
    die(socket);
    std::fs::remove_file(&path).unwrap();
    kept.next_process();
    let mut socket = prepare(&path, 0o666);
    socket.publish().unwrap();
    assert!(serves(&socket, &mut UnixStream::connect(&path).unwrap()));
    assert_eq!(kept.count(), 1);

    // A trial takes nothing over. What nobody has taken over is closed.
    die(socket);
    kept.next_process();
    let access = SocketAccess::default();
    drop(NamedSocket::prepare(&path, access, Site::Trial));
    assert_eq!(names(directory.path()), 1);
    close_left();
    assert_eq!((kept.count(), names(directory.path())), (0, 0));

    // What is no record, or no listening socket, is forgotten.
    let socket = prepare(&path, 0o600);
    let record = kept.0.lock().unwrap().values().next().unwrap().1.clone();
    drop(socket);
    let (stream, _other) = UnixStream::pair().unwrap();
    kept.keep(stream.as_fd(), &record);
    let listener = UnixListener::bind(&path).unwrap();
    kept.keep(listener.as_fd(), b"no record");
    kept.next_process();
    assert_eq!(kept.count(), 0);
}

/// A socket for a path at which one listens already.
fn prepare_beside(path: &Path, mode: u32) -> NamedSocket {
    let access = SocketAccess { mode: Some(mode), ..SocketAccess::default() };
    NamedSocket::prepare(path, access, Site::OwnUntilPublished).unwrap()
}
