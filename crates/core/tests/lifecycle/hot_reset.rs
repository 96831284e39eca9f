//! Hot reset: the whole set at once, for who holds all of it that is open.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vfiod_core::Errno;

use crate::rig::{Fault, REGISTERS, Rig, Slot, errno, open, owner, spec};

#[test]
fn resets_every_member_open_or_not() {
    let rig = Rig::with_events();
    let slot = Arc::new(Slot("slot"));
    let members = ["a", "b", "c"].map(|name| rig.member(name, &slot));
    let (a, b) = (open(&members[0]).unwrap(), open(&members[1]).unwrap());
    rig.journal.fault("b.read", Fault::Panic);
    assert_eq!(errno(b.read(REGISTERS, 0, &mut [0; 4])), Errno::IO);
    rig.journal.take();
    a.reset_set().unwrap();
    assert_eq!(
        rig.journal.take(),
        [
            "a.reset Set",
            "event: a reset Set",
            "b.reset Set",
            "event: b reset Set",
            "c.reset Set",
            "event: c reset Set"
        ]
    );
    a.read(REGISTERS, 0, &mut [0; 4]).unwrap();
    b.read(REGISTERS, 0, &mut [0; 4]).unwrap();
}

#[test]
fn another_owner_stands_in_the_way() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let members = ["a", "b", "c"].map(|name| rig.member(name, &slot));
    let mine = open(&members[0]).unwrap();
    let yours = members[1].device().open(owner("you")).unwrap();
    rig.journal.take();
    assert_eq!(errno(mine.reset_set()), Errno::INVAL);
    assert!(rig.journal.take().is_empty(), "nothing was reset");
    let seen: Vec<_> = mine
        .set_members()
        .unwrap()
        .into_iter()
        .map(|member| (member.device.name().to_owned(), member.files, member.allowed))
        .collect();
    let expected = [("a", 1, true), ("b", 1, false), ("c", 0, true)];
    assert_eq!(seen, expected.map(|(name, files, allowed)| (name.to_owned(), files, allowed)));
    drop(yours);
    mine.reset_set().unwrap();
    assert_eq!(rig.journal.count("b.reset Set"), 1);
}

#[test]
fn a_failure_half_way_leaves_each_as_it_was_or_in_the_error_state() {
    for (fault, expected) in
        [(Fault::Fail(Errno::TIMEDOUT), Errno::TIMEDOUT), (Fault::Panic, Errno::IO)]
    {
        let rig = Rig::new();
        let slot = Arc::new(Slot("slot"));
        let members = ["a", "b", "c"].map(|name| rig.member(name, &slot));
        let files = members.each_ref().map(|member| open(member).unwrap());
        rig.journal.take();
        rig.journal.fault("b.reset", fault);
        assert_eq!(errno(files[0].reset_set()), expected);
        assert_eq!(rig.journal.take(), ["a.reset Set", "b.reset Set"]);
        let failed = members.each_ref().map(|member| member.device().status().failed);
        assert_eq!(failed, [true, true, false]);
        files[2].read(REGISTERS, 0, &mut [0; 4]).unwrap();
        files[0].reset().unwrap();
        files[0].read(REGISTERS, 0, &mut [0; 4]).unwrap();
        files[1].reset_set().unwrap();
        files[1].read(REGISTERS, 0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn a_member_that_does_not_come_to_rest_is_busy_and_the_others_go_on() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let a = rig.member("a", &slot);
    let mut probe = rig.probe("b");
    let (entered, inside) = channel();
    let (leave, left) = channel::<()>();
    probe.request = Some(true);
    let left = std::sync::Mutex::new(left);
    probe.on_request = Box::new(move |_| {
        // The device's lock is held as long as this takes.
        let _ = entered.send(());
        let _ = left.lock().unwrap().recv();
    });
    let set = Some(vfiod_core::SetId::of(&slot));
    let b = rig.add(vfiod_core::DeviceSpec { set, ..spec("b") }, probe);
    let (fa, fb) = (open(&a).unwrap(), open(&b).unwrap());
    rig.journal.take();
    std::thread::scope(|scope| {
        scope.spawn(|| b.unregister(None));
        inside.recv().unwrap();
        assert_eq!(errno(fa.reset_set()), Errno::BUSY);
        assert_eq!(rig.journal.count("a.reset Set"), 0);
        fa.read(REGISTERS, 0, &mut [0; 4]).unwrap();
        drop(leave);
        drop(fb);
    });
    fa.reset_set().unwrap();
}

#[test]
fn a_revoked_file_resets_nothing() {
    let rig = Rig::new();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    drop(a);
    assert_eq!(errno(file.reset_set()), Errno::NODEV);
    assert_eq!(errno(file.set_members()), Errno::NODEV);
}
