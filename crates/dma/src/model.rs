//! Model checks of accesses against unmaps: nothing is accessed after its unmap has returned, and
//! an unmap that fails changes nothing.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::{Arc, thread};

use crate::{Backing, DIRECT, DmaSpace, Errno, MapOwner, MapRequest, Perm};

const OWNER: MapOwner = MapOwner(1);
const LONG: Duration = Duration::from_secs(3600);
const LARGE: usize = DIRECT + 1;

/// A space with one mapping of a client's memory.
fn mapped() -> (DmaSpace, Arc<OwnedFd>) {
    let memory = memfd_create("model", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&memory, 2 * DIRECT as u64).expect("size");
    let space = DmaSpace::new();
    map(&space, &memory);
    (space, Arc::new(memory))
}

fn map(space: &DmaSpace, memory: &OwnedFd) {
    let fd = memory.try_clone().expect("a descriptor");
    let perm = Perm::READ | Perm::WRITE;
    let backing = Backing::File { fd, offset: 0 };
    space.map(OWNER, MapRequest { iova: 0, size: 2 * DIRECT as u64, perm, backing }).expect("maps");
}

/// The client takes its memory back and uses it for something else.
fn reuse(space: &DmaSpace, memory: &OwnedFd) {
    space.unmap(0, u64::MAX, LONG).expect("unmaps");
    rustix::io::pwrite(memory, &[0xaa; LARGE], 0).expect("writes");
}

/// Whether the memory is as the client left it.
fn untouched(memory: &OwnedFd) {
    let mut bytes = [0; LARGE];
    rustix::io::pread(memory, &mut bytes, 0).expect("reads");
    assert!(bytes.iter().all(|byte| *byte == 0xaa), "written after the unmap returned");
}

fn access_against_unmap(len: usize) {
    let (space, memory) = mapped();
    let devices = [0; 2].map(|_| {
        let space = space.clone();
        spawn(move || {
            if let Err(error) = space.write(0, &vec![0x55; len]) {
                assert_eq!(error.errno(), Errno::FAULT);
            }
        })
    });
    reuse(&space, &memory);
    join_all(devices);
    untouched(&memory);
}

/// Two accesses that copy under the lock, and an unmap.
fn small_access_against_unmap() {
    access_against_unmap(64);
}

/// Two accesses that pin, and an unmap.
fn large_access_against_unmap() {
    access_against_unmap(LARGE);
}

/// A pin held for a while, and an unmap.
fn pin_against_unmap() {
    let (space, memory) = mapped();
    let device = spawn({
        let space = space.clone();
        move || {
            if let Ok(pinned) = space.pin(0, 64, Perm::WRITE) {
                thread::yield_now();
                pinned.write(0, &[0x55; 64]).expect("pinned");
            }
        }
    });
    reuse(&space, &memory);
    join(device);
    untouched(&memory);
}

/// An unmap that may fail, and the end of the owner.
fn busy_unmap_against_the_owners_end() {
    let (space, _memory) = mapped();
    let device = spawn({
        let space = space.clone();
        move || drop(space.pin(0, 64, Perm::WRITE).map(|_pinned| thread::yield_now()))
    });
    let client = spawn({
        let space = space.clone();
        move || {
            if let Err(error) = space.unmap(0, u64::MAX, Duration::ZERO) {
                assert_eq!(error.errno(), Errno::BUSY);
            }
        }
    });
    space.drop_owner(OWNER);
    join(client);
    join(device);
    assert!(space.is_empty(), "a mapping of an owner that has ended was left behind");
}

vfiod_sync::checks! {
    small_access_against_unmap: 1000,
    large_access_against_unmap: 300,
    pin_against_unmap: 1000,
    busy_unmap_against_the_owners_end: 1000,
}
