//! The same for DMA and interrupts: accesses against unmaps, triggers against their setting up.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::scenarios::check;
use crate::dma::{Backing, DIRECT, DmaSpace, MapRequest, Perm};
use crate::irq::{IrqAction, IrqData, IrqFlags, IrqIndex, IrqInfo, IrqSet};
use crate::sync::thread;
use crate::{Errno, FileId};

const FILE: FileId = FileId(1);
const LONG: Duration = Duration::from_secs(3600);
const LARGE: usize = DIRECT + 1;

/// A space with one window over a client's memory.
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
    space.map(FILE, MapRequest { iova: 0, size: 2 * DIRECT as u64, perm, backing }).expect("maps");
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
        thread::spawn(move || {
            if let Err(error) = space.write(0, &vec![0x55; len]) {
                assert_eq!(error.errno(), Errno::FAULT);
            }
        })
    });
    reuse(&space, &memory);
    devices.into_iter().for_each(|device| device.join().expect("a device panicked"));
    untouched(&memory);
}

/// Two accesses that copy under the lock, and an unmap.
pub(crate) fn small_access_against_unmap() {
    access_against_unmap(64);
}

/// Two accesses that pin, and an unmap.
pub(crate) fn large_access_against_unmap() {
    access_against_unmap(LARGE);
}

/// A pin held for a while, and an unmap.
pub(crate) fn pin_against_unmap() {
    let (space, memory) = mapped();
    let device = thread::spawn({
        let space = space.clone();
        move || {
            if let Ok(pinned) = space.pin(0, 64, Perm::WRITE) {
                thread::yield_now();
                pinned.write(0, &[0x55; 64]).expect("pinned");
            }
        }
    });
    reuse(&space, &memory);
    device.join().expect("the device panicked");
    untouched(&memory);
}

/// An unmap that may fail, and the end of the file that mapped.
pub(crate) fn busy_unmap_against_the_files_end() {
    let (space, _memory) = mapped();
    let device = thread::spawn({
        let space = space.clone();
        move || drop(space.pin(0, 64, Perm::WRITE).map(|_pinned| thread::yield_now()))
    });
    let client = thread::spawn({
        let space = space.clone();
        move || {
            if let Err(error) = space.unmap(0, u64::MAX, Duration::ZERO) {
                assert_eq!(error.errno(), Errno::BUSY);
            }
        }
    });
    space.drop_file(FILE);
    client.join().expect("the client panicked");
    device.join().expect("the device panicked");
    assert!(space.is_empty(), "a window of a file that has gone was left behind");
}

const LINE: IrqIndex = IrqIndex(0);

fn armed() -> (Arc<IrqSet>, Arc<OwnedFd>) {
    let flags = IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED;
    let irqs = IrqSet::new(&[IrqInfo { flags, count: 1 }]);
    let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
    let data = IrqData::EventFds(vec![fd.try_clone().ok()]);
    irqs.set(FILE, LINE, 0, 1, IrqAction::Trigger, data).expect("sets up");
    (Arc::new(irqs), Arc::new(fd))
}

/// Signals since the last call.
fn seen(fd: &OwnedFd) -> u64 {
    let mut counter = [0; 8];
    rustix::io::read(fd, &mut counter).map_or(0, |_| u64::from_ne_bytes(counter))
}

/// A trigger, and a client that disables.
pub(crate) fn trigger_against_disable() {
    let (irqs, fd) = armed();
    let device = thread::spawn({
        let irqs = irqs.clone();
        move || drop(irqs.trigger(LINE, 0))
    });
    irqs.set(FILE, LINE, 0, 0, IrqAction::Trigger, IrqData::None).expect("disables");
    seen(&fd);
    device.join().expect("the device panicked");
    assert_eq!(seen(&fd), 0, "a signal after the eventfd was taken away");
}

/// Two edges of a line that masks itself: one signal, and one more after each unmask that finds
/// one pending.
pub(crate) fn edges_of_an_automasked_line() {
    let (irqs, fd) = armed();
    let devices = [0; 2].map(|_| {
        let irqs = irqs.clone();
        thread::spawn(move || drop(irqs.trigger(LINE, 0)))
    });
    devices.into_iter().for_each(|device| device.join().expect("a device panicked"));
    assert_eq!(seen(&fd), 1, "not one signal before the unmask");
    irqs.set(FILE, LINE, 0, 1, IrqAction::Unmask, IrqData::None).expect("unmasks");
    assert_eq!(seen(&fd), 1, "not one signal after it");
}

/// A line raised while the client unmasks: the signal comes, in whatever order.
pub(crate) fn level_against_unmask() {
    let (irqs, fd) = armed();
    irqs.set(FILE, LINE, 0, 1, IrqAction::Mask, IrqData::None).expect("masks");
    let device = thread::spawn({
        let irqs = irqs.clone();
        move || irqs.set_level(LINE, 0, true).expect("raises")
    });
    irqs.set(FILE, LINE, 0, 1, IrqAction::Unmask, IrqData::None).expect("unmasks");
    device.join().expect("the device panicked");
    assert_eq!(seen(&fd), 1, "not one signal");
}

macro_rules! checks {
    ($($scenario:ident: $rounds:literal,)*) => {
        mod checks {
            $(#[test]
            fn $scenario() {
                super::check(super::$scenario, $rounds);
            })*
        }
    };
}

checks! {
    small_access_against_unmap: 1000,
    large_access_against_unmap: 300,
    pin_against_unmap: 1000,
    busy_unmap_against_the_files_end: 1000,
    trigger_against_disable: 1000,
    edges_of_an_automasked_line: 1000,
    level_against_unmask: 1000,
}
