//! Unregister: no new opens, ask again and again, revoke at the deadline, leave the set.

use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::time::Duration;

use vfiod_core::dma::{Backing, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Errno, IrqIndex, Link, ResetCause};

use crate::rig::{Journal, REGISTERS, Rig, Slot, errno, open, spec};

const REQ: IrqIndex = IrqIndex(4);

#[test]
fn unregister_of_an_unused_device_asks_no_user() {
    let rig = Rig::with_events();
    let a = rig.single("a");
    a.unregister(None);
    assert_eq!(rig.journal.take(), ["a.drop", "event: a unregistered", "event: set a gone"]);
}

#[test]
fn unregister_asks_until_the_last_file_is_released() {
    let rig = Rig::with_events();
    let mut probe = rig.probe("a");
    let (asked, requests) = channel();
    probe.request = Some(true);
    probe.on_request = Box::new(move |n| asked.send(n).unwrap());
    let a = rig.add(spec("a"), probe);
    let device = a.device().clone();
    let file = open(&a).unwrap();
    rig.journal.take();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| a.unregister(None));
        assert_eq!(requests.recv().unwrap(), 0);
        assert_eq!(errno(device.open(crate::rig::owner("me"))), Errno::NODEV, "no new opens");
        assert!(rig.registry.find("a").is_none(), "no longer visible");
        let taken = rig.registry.register(spec("a"), Box::new(rig.probe("b")));
        assert_eq!(errno(taken), Errno::EXIST, "the name is in use until the end");
        file.read(REGISTERS, 0, &mut [0; 4]).unwrap();
        assert_eq!(requests.recv().unwrap(), 1);
        assert_eq!(requests.recv().unwrap(), 2);
        assert!(!waiting.is_finished());
        drop(file);
    });
    let journal = rig.journal.take();
    let end = journal.iter().position(|line| line == "a.release").unwrap();
    assert_eq!(
        journal[end..],
        [
            "a.release",
            "event: a released, 0",
            "a.close_device",
            "event: a idle",
            "a.drop",
            "event: a unregistered",
            "event: set a gone"
        ]
    );
    assert!(device.status().leaving);
    assert_eq!(errno(device.open(crate::rig::owner("me"))), Errno::NODEV);
}

#[test]
fn unregister_revokes_the_files_at_its_deadline() {
    let rig = Rig::with_events();
    let a = rig.multi("a");
    let (one, two) = (open(&a).unwrap(), open(&a).unwrap());
    rig.journal.take();
    a.unregister(Some(Duration::from_millis(10)));
    let journal = rig.journal.take();
    let revoked = journal.iter().position(|line| line == "event: a revoked").unwrap();
    assert_eq!(journal[0], "event: a requested 0");
    assert_eq!(
        journal[revoked..],
        [
            "event: a revoked",
            "event: a revoked",
            "a.release",
            "event: a released, 1",
            "a.release",
            "event: a released, 0",
            "a.close_device",
            "event: a idle",
            "a.drop",
            "event: a unregistered",
            "event: set a gone"
        ]
    );
    assert!(one.is_revoked() && two.is_revoked());
    drop((one, two));
    assert!(rig.journal.take().is_empty(), "released once");
}

#[test]
fn every_operation_of_a_revoked_file_fails_with_enodev() {
    let rig = Rig::new();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    drop(a);
    rig.journal.take();
    assert_eq!(errno(file.read(REGISTERS, 0, &mut [0; 4])), Errno::NODEV);
    assert_eq!(errno(file.write(REGISTERS, 0, &[0; 4])), Errno::NODEV);
    assert_eq!(errno(file.read(REGISTERS, 0x1000, &mut [0; 4])), Errno::NODEV);
    assert_eq!(errno(file.region(REGISTERS)), Errno::NODEV);
    assert_eq!(errno(file.irq(IrqIndex(0))), Errno::NODEV);
    assert_eq!(errno(file.reset()), Errno::NODEV);
    assert_eq!(errno(file.set_irqs(REQ, 0, 0, IrqAction::Trigger, IrqData::None)), Errno::NODEV);
    assert_eq!(errno(file.dma_unmap(0, 4096, Duration::ZERO)), Errno::NODEV);
    assert_eq!(errno(file.dma_unmap_all(Duration::ZERO)), Errno::NODEV);
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    let backing = Backing::File { fd, offset: 0 };
    let request = MapRequest { iova: 0, size: 4096, perm: Perm::READ, backing };
    assert_eq!(errno(file.dma_map(request)), Errno::NODEV);
    assert_eq!(errno(file.feature_probe(1)), Errno::NODEV);
    assert_eq!(errno(file.feature_get(1, &[])), Errno::NODEV);
    assert_eq!(errno(file.feature_set(1, &[])), Errno::NODEV);
    assert_eq!(errno(file.doorbells(REGISTERS)), Errno::NODEV);
    assert_eq!(errno(file.ring(REGISTERS, 0)), Errno::NODEV);
    assert!(rig.journal.take().is_empty(), "the device was not bothered");
    assert_eq!(file.description().regions.len(), 1, "what it had is still known");
}

#[test]
fn dropping_a_registration_revokes_at_once_and_asks_nobody() {
    let rig = Rig::new();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    rig.journal.take();
    drop(a);
    assert_eq!(rig.journal.take(), ["a.release", "a.close_device", "a.drop"]);
    drop(file);
    assert!(rig.journal.take().is_empty());
}

#[test]
fn unregister_of_a_member_leaves_the_others_in_use() {
    let rig = Rig::with_events();
    let slot = Arc::new(Slot("slot"));
    let (a, b) = (rig.member("a", &slot), rig.member("b", &slot));
    let fa = open(&a).unwrap();
    let fb = open(&b).unwrap();
    drop(a);
    fb.read(REGISTERS, 0, &mut [0; 4]).unwrap();
    assert_eq!(errno(fa.read(REGISTERS, 0, &mut [0; 4])), Errno::NODEV);
    assert_eq!(rig.journal.count("event: set slot gone"), 0);
    // A newcomer takes the vacant place; the old file must not be mistaken for its.
    let c = rig.member("c", &slot);
    let fc = open(&c).unwrap();
    drop(fa);
    assert_eq!(c.device().status().files.len(), 1);
    drop(fc);
    drop((b, c));
    assert_eq!(rig.journal.count("event: set slot gone"), 1);
    drop(fb);
    assert_eq!(Arc::strong_count(&slot), 1);
}

#[test]
fn file_dropped_in_its_request_ends_the_wait() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    let held = std::sync::Mutex::new(None);
    let (asked, requests) = channel();
    probe.request = Some(true);
    probe.on_request = Box::new(move |_| asked.send(()).unwrap());
    let a = rig.add(spec("a"), probe);
    *held.lock().unwrap() = Some(open(&a).unwrap());
    std::thread::scope(|scope| {
        // A user that lets go when asked; elsewhere, as `request` runs with the device locked.
        let held = &held;
        scope.spawn(move || {
            requests.recv().unwrap();
            drop(held.lock().unwrap().take());
        });
        a.unregister(None);
    });
    assert_eq!(rig.journal.count("a.close_device"), 1);
}

/// Writes down that it was ended.
struct Connection(&'static str, Journal);

impl Link for Connection {
    fn end(&self) {
        self.1.write(self.0);
    }
}

#[test]
fn at_the_deadline_every_link_ends_before_the_first_file_is_released() {
    let rig = Rig::new();
    let a = rig.multi("a");
    let files = [open(&a).unwrap(), open(&a).unwrap()];
    let links =
        ["first link", "second link"].map(|name| Arc::new(Connection(name, rig.journal.clone())));
    for (file, link) in files.iter().zip(&links) {
        let link: Weak<Connection> = Arc::downgrade(link);
        file.set_link(link);
    }
    rig.journal.take();
    a.unregister(Some(Duration::ZERO));
    let journal = rig.journal.take();
    let expected = ["first link", "second link", "a.release", "a.release", "a.close_device"];
    assert_eq!(journal[..5], expected);
    assert!(files.iter().all(vfiod_core::File::is_revoked));
    // A link that is set later is ended at once.
    let late = Arc::new(Connection("late link", rig.journal.clone()));
    let weak: Weak<Connection> = Arc::downgrade(&late);
    files[0].set_link(weak);
    assert_eq!(rig.journal.take(), ["late link"]);
}

/// A request to a device that is busy is left out: the next one follows, or the deadline.
#[test]
fn request_to_a_busy_device_does_not_delay_the_deadline() {
    let rig = Rig::new();
    let (entered, is_inside) = channel();
    let (release, released) = channel::<()>();
    let mut probe = rig.probe("a");
    probe.request = Some(true);
    probe.on_reset = Box::new(move |cause| {
        if cause == ResetCause::Client {
            entered.send(()).unwrap();
            let _ = released.recv();
        }
    });
    let a = rig.add(spec("a"), probe);
    let file = open(&a).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| file.reset().unwrap());
        is_inside.recv().unwrap();
        let removal = scope.spawn(|| a.unregister(Some(Duration::from_millis(100))));
        // Revoked while the call is still inside, which the release then waits for.
        while !file.is_revoked() {
            std::thread::yield_now();
        }
        assert!(!removal.is_finished());
        drop(release);
    });
    assert_eq!(rig.journal.count("a.release"), 1);
}
