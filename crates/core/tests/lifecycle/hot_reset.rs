//! Hot reset: the whole set at once, for who holds all of it that is open.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vfiod_core::{DeviceSpec, Errno, InUse};

use crate::rig::{Fault, REGISTERS, Rig, Slot, errno, open, owner, spec};

#[test]
fn hot_reset_resets_every_member_open_or_not() {
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
fn hot_reset_is_refused_while_another_owner_has_a_member() {
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
fn hot_reset_of_a_member_that_does_not_quiesce_is_abandoned() {
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

#[test]
fn a_file_of_another_owner_proves_what_its_holder_may_reset() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let members = ["a", "b", "c"].map(|name| rig.member(name, &slot));
    let stranger = rig.single("stranger");
    let mine = open(&members[0]).unwrap();
    let [b, c] = [1, 2].map(|at: usize| members[at].device().open(owner("you")).unwrap());
    let elsewhere = stranger.device().open(owner("you")).unwrap();
    rig.journal.take();
    for proof in [&[][..], &[&b], &[&c], &[&b, &elsewhere], &[&mine]] {
        assert_eq!(errno(mine.reset_set_with(proof)), Errno::INVAL);
    }
    assert!(rig.journal.take().is_empty(), "nothing was reset");
    mine.reset_set_with(&[&elsewhere, &c, &b]).unwrap();
    assert_eq!(rig.journal.take(), ["a.reset Set", "b.reset Set", "c.reset Set"]);
    // A file that was taken away is worth nothing, though its holder still has it.
    members[1].device().revoke(b.id()).unwrap();
    let again = members[1].device().open(owner("they")).unwrap();
    assert_eq!(errno(mine.reset_set_with(&[&b, &c])), Errno::INVAL);
    drop(again);
    mine.reset_set_with(&[&c]).unwrap();
}

#[test]
fn operator_resets_an_idle_set_and_one_in_use_only_if_forced() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let [a, b] = ["a", "b"].map(|name| rig.member(name, &slot));
    a.device().reset_set(InUse::Refuse).unwrap();
    assert_eq!(rig.journal.take(), ["a.reset Set", "b.reset Set"]);

    let file = open(&b).unwrap();
    rig.journal.take();
    let error = a.device().reset_set(InUse::Refuse).unwrap_err();
    assert_eq!(error.errno(), Errno::BUSY);
    assert!(error.to_string().contains("b of the set is in use by me"), "{error}");
    assert!(rig.journal.take().is_empty(), "nothing was reset");
    let seen = a.device().set_members();
    let seen: Vec<_> = seen.iter().map(|m| (m.device.name(), m.owned, m.allowed)).collect();
    assert_eq!(seen, [("a", false, true), ("b", false, false)]);

    a.device().reset_set(InUse::Reset).unwrap();
    assert_eq!(rig.journal.take(), ["a.reset Set", "b.reset Set"]);
    file.read(REGISTERS, 0, &mut [0; 4]).unwrap();

    let gone = a.device().clone();
    drop(a);
    assert_eq!(errno(gone.reset_set(InUse::Reset)), Errno::NODEV);
    assert!(gone.set_members().is_empty());
}

#[test]
fn after_a_failure_the_set_is_reset_when_its_last_member_closes() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let members = ["a", "b", "c"].map(|name| rig.member(name, &slot));
    let [a, c] = [0, 2].map(|at: usize| open(&members[at]).unwrap());
    rig.journal.fault("b.reset", Fault::Panic);
    assert_eq!(errno(a.reset_set()), Errno::IO);
    rig.journal.take();
    drop(a);
    assert_eq!(rig.journal.take(), ["a.release", "a.close_device"]);
    drop(c);
    let closed = ["c.release", "c.close_device", "a.reset Set", "b.reset Set"];
    assert_eq!(rig.journal.take(), closed);
    assert!(members.iter().all(|member| !member.device().status().failed));
}

#[test]
fn reset_of_an_idle_set_that_failed_is_repaired_by_the_next_open() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let [a, b] = ["a", "b"].map(|name| rig.member(name, &slot));
    rig.journal.fault("b.reset", Fault::Fail(Errno::TIMEDOUT));
    assert_eq!(errno(a.device().reset_set(InUse::Refuse)), Errno::TIMEDOUT);
    assert!(a.device().status().failed && b.device().status().failed);
    for member in [&a, &b] {
        open(member).unwrap().read(REGISTERS, 0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn a_member_that_is_leaving_is_reset_like_the_others() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let a = rig.member("a", &slot);
    let mut probe = rig.probe("b");
    let (asked, was_asked) = channel();
    probe.request = Some(true);
    probe.on_request = Box::new(move |_| asked.send(()).unwrap_or_default());
    let set = Some(vfiod_core::SetId::of(&slot));
    let b = rig.add(DeviceSpec { set, ..spec("b") }, probe);
    let (fa, fb) = (open(&a).unwrap(), open(&b).unwrap());
    rig.journal.take();
    std::thread::scope(|scope| {
        scope.spawn(|| b.unregister(None));
        was_asked.recv().unwrap();
        fa.reset_set().unwrap();
        assert_eq!(rig.journal.count("b.reset Set"), 1);
        drop(fb);
    });
    // And one that has left is none of the set's business.
    rig.journal.take();
    fa.reset_set().unwrap();
    assert_eq!(rig.journal.take(), ["a.reset Set"]);
}
