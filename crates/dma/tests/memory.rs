//! Clients map memory in as many pieces as they like: what a device does with it fails where there is no
//! memory for that, and the end of a client needs none.

#[path = "../../buffer/tests/scarce/mod.rs"]
mod scarce;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_dma::error::{Errno, Error, Result};
use vfiod_dma::{Attachment, Backing, Completion, DmaPeer, MapOwner, MapRequest, Perm, Space};

/// What everybody may have: `vfiod_buffer::SMALL`.
const SMALL: usize = 64 << 10;
const MIB: usize = 1 << 20;
const PIECES: u64 = 8192;
const ALL: Perm = Perm::READ.union(Perm::WRITE);
const MESSAGES: u64 = 1 << 40;

/// Completes whatever it is asked for.
struct Peer;

impl DmaPeer for Peer {
    fn start_read(&self, _iova: u64, _len: usize, completion: Completion<Vec<u8>>) {
        completion.complete(Err(Error::new(Errno::NOMEM, "no memory")));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Ok(()));
    }
}

/// Of a future that does not wait.
fn outcome<T>(future: impl Future<Output = Result<T>>) -> Result<T, Errno> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome.map_err(|error| error.errno()),
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn pieces_that_there_is_no_memory_for_fail_and_their_owner_can_go() {
    let space = Space::new();
    let device = Attachment::new(&space);
    device.set_bus_master(true);
    let file = memfd_create("pieces", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, PIECES).unwrap();
    let backing =
        |offset| Backing::File { fd: OwnedFd::try_clone(&file).expect("a descriptor"), offset };
    let [greedy, other] = [MapOwner(1), MapOwner(2)];
    for at in 0..PIECES {
        let request = MapRequest { iova: at, size: 1, perm: ALL, backing: backing(at) };
        space.map(greedy, request).unwrap();
    }
    let backing_of_other = backing(0);
    let request = MapRequest { iova: 1 << 30, size: 1, perm: ALL, backing: backing_of_other };
    space.map(other, request).unwrap();
    let messages = Backing::Peer(Arc::new(Peer));
    let request = MapRequest { iova: MESSAGES, size: MIB as u64, perm: ALL, backing: messages };
    space.map(greedy, request).unwrap();
    let mut bytes = vec![1; MIB];
    let len = PIECES as usize;

    let scarcity = scarce::begin(SMALL);
    assert_eq!(outcome(device.write(0, &bytes[..len])), Err(Errno::NOMEM));
    assert_eq!(outcome(device.read(0, &mut bytes[..len])), Err(Errno::NOMEM));
    let held = device.hold(0, len, Perm::READ).map(drop);
    assert_eq!(held.map_err(|error| error.errno()), Err(Errno::NOMEM));
    assert_eq!(outcome(device.write(MESSAGES, &bytes)), Err(Errno::NOMEM));
    // What is small works.
    assert_eq!(outcome(device.write(MESSAGES, &bytes[..100])), Ok(()));
    assert_eq!(outcome(device.write(7, &bytes[..100])), Ok(()));
    assert_eq!(space.try_snapshot().map(drop).map_err(|error| error.errno()), Err(Errno::NOMEM));
    let summary = space.summary(1);
    assert_eq!((summary.mappings, summary.first[0].iova), (PIECES as usize + 2, 0));
    space.drop_owner(greedy);
    assert_eq!(space.len(), 1);
    assert_eq!(outcome(device.write(1 << 30, &bytes[..1])), Ok(()));
    assert_eq!(space.unmap(1 << 30, 1, Duration::ZERO).map_err(|error| error.errno()), Ok(1));
    assert!(scarce::refused() >= 4);
    drop(scarcity);
}
