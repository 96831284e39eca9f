//! Model checks of accesses against those who change what they see: nothing is accessed after its
//! unmap or a quiesce has returned, an unmap that fails changes nothing, and no write is missing
//! in the dirty log.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use shuttle::future::block_on;
use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::{Arc, Mutex, lock, thread};

use crate::test_device::TestDevice;
use crate::{Backing, DIRECT, Delay, Errno, Listener, MapOwner, MapRequest, Marks, Perm, Space};

const OWNER: MapOwner = MapOwner(1);
/// Without limit: time does not pass in a model.
const LONG: Duration = Duration::MAX;
const LARGE: usize = DIRECT + 1;

/// A space with one mapping of a client's memory.
fn mapped() -> (TestDevice, Arc<OwnedFd>) {
    let memory = memfd_create("model", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&memory, 2 * DIRECT as u64).expect("size");
    let space = TestDevice::new();
    map(&space, &memory);
    (space, Arc::new(memory))
}

fn map(space: &TestDevice, memory: &OwnedFd) {
    let fd = memory.try_clone().expect("a descriptor");
    let perm = Perm::READ | Perm::WRITE;
    let backing = Backing::File { fd, offset: 0 };
    space.map(OWNER, MapRequest { iova: 0, size: 2 * DIRECT as u64, perm, backing }).expect("maps");
}

/// The client takes its memory back and uses it for something else.
fn reuse(space: &TestDevice, memory: &OwnedFd) {
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

/// A device that is moved to another space while it accesses memory; then the old space's client
/// takes its memory back.
fn move_against_accesses() {
    let (old, memory) = mapped();
    let (attachment, old) = (old.attachment().clone(), old.space());
    let device = spawn({
        let attachment = attachment.clone();
        move || {
            // Not mapped in the new space.
            if let Err(error) = block_on(attachment.write(0, &[0x55; LARGE])) {
                assert_eq!(error.errno(), Errno::FAULT);
            }
        }
    });
    let slow_device = spawn({
        let attachment = attachment.clone();
        move || {
            let mut batch = attachment.batch().expect("attached");
            if let Ok(span) = batch.translate(0, 64, Perm::WRITE) {
                (0..16).for_each(|_| thread::yield_now());
                span.write(0, &[0x55; 64]).expect("still mapped");
            }
        }
    });
    assert!(attachment.attach(&Space::new()).is_some_and(|space| space.is(&old)));
    old.unmap(0, u64::MAX, LONG).expect("unmaps");
    rustix::io::pwrite(&*memory, &[0xaa; LARGE], 0).expect("writes");
    join_all([device, slow_device]);
    untouched(&memory);
}

/// A device that is quiesced while it copies and holds.
fn quiesce_against_accesses() {
    let (space, memory) = mapped();
    let attachment = space.attachment().clone();
    let device = spawn({
        let attachment = attachment.clone();
        move || {
            if let Ok(hold) = attachment.hold(0, 64, Perm::WRITE) {
                thread::yield_now();
                hold.write(0, &[0x55; 64]).expect("held");
            }
            for len in [64, LARGE] {
                if let Err(error) = block_on(attachment.write(0, &vec![0x55; len])) {
                    assert_eq!(error.errno(), Errno::PERM);
                }
            }
        }
    });
    attachment.quiesce();
    block_on(attachment.idle());
    rustix::io::pwrite(&*memory, &[0xaa; LARGE], 0).expect("writes");
    join(device);
    untouched(&memory);
}

/// The client's copy of its first page, which it renews when the page is reported as written.
fn renew(space: &Space, memory: &OwnedFd, copy: &mut u8) {
    let mut bitmap = [0; 8];
    space.report_dirty(0, 4096, 4096, Marks::Clear, &mut bitmap).expect("reports");
    if bitmap[0] & 1 == 1 {
        *copy = first_byte(memory);
    }
}

fn first_byte(memory: &OwnedFd) -> u8 {
    let mut byte = [0];
    rustix::io::pread(memory, &mut byte, 0).expect("reads");
    byte[0]
}

/// A hold that ends while a task waits for the end of all.
fn end_of_hold_against_idle() {
    let (space, _memory) = mapped();
    let attachment = space.attachment().clone();
    let hold = attachment.hold(0, 64, Perm::WRITE).expect("holds");
    let device = spawn(move || drop(hold));
    block_on(attachment.idle());
    assert_eq!(attachment.in_flight(), 0);
    join(device);
}

/// A write that is logged, and reports that take the marks away.
fn write_against_dirty_reports(len: usize) {
    let (space, memory) = mapped();
    let (attachment, space) = (space.attachment().clone(), space.space());
    space.start_dirty_log();
    let device = spawn(move || {
        block_on(attachment.write(0, &vec![1; len])).expect("writes");
    });
    let mut copy = 0;
    renew(&space, &memory, &mut copy);
    renew(&space, &memory, &mut copy);
    join(device);
    renew(&space, &memory, &mut copy);
    assert_eq!(copy, first_byte(&memory), "a write was not reported");
}

/// A write that is copied under the lock, and reports.
fn small_write_against_dirty_reports() {
    write_against_dirty_reports(64);
}

/// A write that is copied without it, and reports.
fn large_write_against_dirty_reports() {
    write_against_dirty_reports(LARGE);
}

/// A writable hold, and an unmap that reports what was written.
fn hold_against_reporting_unmap() {
    let (space, memory) = mapped();
    let (attachment, space) = (space.attachment().clone(), space.space());
    space.start_dirty_log();
    let device = spawn(move || {
        if let Ok(hold) = attachment.hold(0, 64, Perm::WRITE) {
            hold.write(0, &[1; 64]).expect("held");
        }
    });
    let unmapping = space.start_unmap(0, 2 * DIRECT as u64).expect("begins");
    assert!(unmapping.wait(None));
    let mut bitmap = [0; 8];
    unmapping.finish_reporting(4096, &mut bitmap).expect("unmaps");
    let written = first_byte(&memory) == 1;
    join(device);
    assert_eq!(first_byte(&memory) == 1, written, "written after the unmap returned");
    assert_eq!(bitmap[0] & 1 == 1, written, "a write was not reported");
}

/// An unmap that is polled, and a hold that ends.
fn hold_against_polled_unmap() {
    let (space, memory) = mapped();
    let (attachment, space) = (space.attachment().clone(), space.space());
    let device = spawn(move || {
        if let Ok(hold) = attachment.hold(0, 64, Perm::WRITE) {
            thread::yield_now();
            hold.write(0, &[0x55; 64]).expect("held");
        }
    });
    let unmapping = space.start_unmap(0, 2 * DIRECT as u64).expect("begins");
    block_on(poll_fn(|cx| unmapping.poll_clear(cx)));
    unmapping.finish().expect("unmaps");
    rustix::io::pwrite(&*memory, &[0xaa; LARGE], 0).expect("writes");
    join(device);
    untouched(&memory);
}

/// Keeps the delays of unmaps for another thread to drop.
#[derive(Default)]
struct Shadow {
    translation: Mutex<bool>,
    delays: Mutex<Vec<Delay>>,
}

impl Listener for Shadow {
    fn unmapping(&self, _first: u64, _last: u64, delay: Delay) {
        lock(&self.delays).push(delay);
    }

    fn restored(&self, _first: u64, _last: u64) {}
}

/// A listener that gives up its translation on another thread.
fn listener_against_unmap() {
    let (space, _memory) = mapped();
    let space = space.space();
    let shadow = Arc::new(Shadow::default());
    *lock(&shadow.translation) = true;
    let listening = space.listen(shadow.clone());
    let owner = spawn({
        let shadow = shadow.clone();
        move || loop {
            let delays = std::mem::take(&mut *lock(&shadow.delays));
            if delays.is_empty() {
                thread::yield_now();
                continue;
            }
            *lock(&shadow.translation) = false;
            return;
        }
    });
    space.unmap(0, u64::MAX, LONG).expect("unmaps");
    assert!(!*lock(&shadow.translation), "unmapped before the listener let go");
    join(owner);
    drop(listening);
}

vfiod_sync::checks! {
    small_access_against_unmap: 1000,
    large_access_against_unmap: 300,
    pin_against_unmap: 1000,
    busy_unmap_against_the_owners_end: 1000,
    move_against_accesses: 1000,
    quiesce_against_accesses: 500,
    end_of_hold_against_idle: 500,
    small_write_against_dirty_reports: 500,
    large_write_against_dirty_reports: 500,
    hold_against_reporting_unmap: 1000,
    hold_against_polled_unmap: 1000,
    listener_against_unmap: 1000,
}
