//! The memory that a device shares with its clients belongs to one opening.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vfiod_core::ids::Credentials;
use vfiod_core::memory::SharedMemory;
use vfiod_core::{
    Context, DeviceSpec, Errno, File, Owner, Region, RegionIndex, Registration, StatePolicy,
};

use crate::rig::{Rig, errno, open, owner, spec};

const MEMORY: RegionIndex = RegionIndex(1);

/// A device with a page of shared memory.
fn sharing(rig: &Rig, state: StatePolicy) -> (Registration, Context) {
    let mut probe = rig.probe("a");
    probe.description.regions.push(Region::memory(4096));
    let context = probe.context.clone();
    let registration = rig.add(DeviceSpec { state, ..spec("a") }, probe);
    let context = context.lock().unwrap().clone().unwrap();
    (registration, context)
}

/// What a client keeps of the memory when it leaves: the descriptor, which it can map.
struct Mapped {
    fd: OwnedFd,
    offset: u64,
}

impl Mapped {
    fn by(file: &File) -> Self {
        let memory = file.shared_memory(MEMORY).unwrap().unwrap();
        Self { fd: memory.fd().try_clone_to_owned().unwrap(), offset: memory.offset() }
    }

    fn put(&self, bytes: &[u8]) {
        rustix::io::pwrite(&self.fd, bytes, self.offset).unwrap();
    }

    fn get(&self) -> [u8; 4] {
        let mut bytes = [0; 4];
        rustix::io::pread(&self.fd, &mut bytes, self.offset).unwrap();
        bytes
    }
}

fn read(file: &File) -> [u8; 4] {
    let mut bytes = [0; 4];
    file.read(MEMORY, 0, &mut bytes).unwrap();
    bytes
}

fn user(uid: u32) -> Owner {
    owner("client").with_credentials(Credentials { pid: 1, uid, gid: 1 })
}

#[test]
fn client_that_left_neither_sees_nor_changes_what_its_successors_device_has() {
    let rig = Rig::new();
    let (device, context) = sharing(&rig, StatePolicy::Reset);
    let first = open(&device).unwrap();
    first.write(MEMORY, 0, b"mine").unwrap();
    let left = Mapped::by(&first);
    assert_eq!(left.get(), *b"mine");
    drop(first);

    let second = open(&device).unwrap();
    assert_eq!(read(&second), [0; 4], "the memory is new");
    second.write(MEMORY, 0, b"next").unwrap();
    assert_eq!(left.get(), *b"mine", "the first sees nothing of it");
    left.put(b"evil");
    assert_eq!(read(&second), *b"next", "and changes nothing of it");
    let memory: Arc<SharedMemory> = context.shared_memory(MEMORY.0).unwrap();
    let mut bytes = [0; 4];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, *b"next", "nor of what the device reads");
    assert_eq!(Mapped::by(&second).get(), *b"next");
}

#[test]
fn memory_that_the_device_has_kept_from_an_opening_is_of_no_use_in_the_next() {
    let rig = Rig::new();
    let (device, context) = sharing(&rig, StatePolicy::Reset);
    assert_eq!(errno(context.shared_memory(MEMORY.0)), Errno::NODEV, "not open");
    let file = open(&device).unwrap();
    let kept = context.shared_memory(MEMORY.0).unwrap();
    kept.write(0, b"mine").unwrap();
    assert_eq!(errno(context.shared_memory(0)), Errno::INVAL, "region 0 shares nothing");
    drop(file);
    assert_eq!(errno(kept.write(0, b"late")), Errno::NODEV);
    assert_eq!(errno(context.shared_memory(MEMORY.0)), Errno::NODEV, "closed");
    let file = open(&device).unwrap();
    assert_eq!(errno(kept.write(0, b"late")), Errno::NODEV);
    assert_eq!(read(&file), [0; 4]);
}

#[test]
fn retained_memory_is_there_again_for_the_same_user_and_new_for_another() {
    let rig = Rig::new();
    let (device, context) = sharing(&rig, StatePolicy::Retain);
    let open = |uid| device.device().open(user(uid)).unwrap();
    let first = open(1000);
    first.write(MEMORY, 0, b"mine").unwrap();
    let left = Mapped::by(&first);
    let kept = context.shared_memory(MEMORY.0).unwrap();
    drop(first);
    let again = open(1000);
    assert_eq!(read(&again), *b"mine");
    assert_eq!(left.get(), *b"mine");
    drop(again);
    let other = open(1001);
    assert_eq!(read(&other), [0; 4]);
    left.put(b"evil");
    assert_eq!(read(&other), [0; 4]);
    assert_eq!(errno(kept.write(0, b"late")), Errno::NODEV);
    drop(other);
    assert_eq!(read(&open(1000)), [0; 4], "what the first had is gone");
}

#[test]
fn reset_zeroes_shared_memory_and_clients_keep_their_mapping() {
    let rig = Rig::new();
    let (device, _) = sharing(&rig, StatePolicy::Reset);
    let file = open(&device).unwrap();
    let mapped = Mapped::by(&file);
    mapped.put(b"mine");
    assert_eq!(read(&file), *b"mine");
    file.reset().unwrap();
    assert_eq!((read(&file), mapped.get()), ([0; 4], [0; 4]));
    mapped.put(b"more");
    assert_eq!(read(&file), *b"more");
}
