//! Register: `init`, join the set, become visible; undone in reverse.

use std::sync::Arc;

use vfiod_core::{DeviceSpec, Errno, SetId};

use crate::rig::{Fault, Rig, Slot, errno, open, spec};

#[test]
fn registered_device_is_described_then_initialised_then_visible() {
    let rig = Rig::with_events();
    let registration = rig.registry.register(spec("a"), Box::new(rig.probe("a"))).unwrap();
    assert_eq!(
        rig.journal.take(),
        ["a.describe", "a.init", "event: set a created", "event: a registered"]
    );
    let found = rig.registry.find("a").unwrap();
    assert_eq!(found.id(), registration.device().id());
    assert_eq!(rig.registry.get(found.id()).unwrap().name(), "a");
    assert_eq!(rig.registry.devices().len(), 1);
    drop(registration);
    assert_eq!(rig.journal.take(), ["a.drop", "event: a unregistered", "event: set a gone"]);
    assert!(rig.registry.find("a").is_none());
    assert!(rig.registry.get(found.id()).is_none());
    assert!(rig.registry.devices().is_empty());
}

#[test]
fn bad_name_and_name_in_use_are_refused() {
    let rig = Rig::new();
    let long = "n".repeat(256);
    for bad in ["", "a\nb", "\u{1b}[31mred", "a\u{202e}b", "\u{9b}1m", &long] {
        let refused = rig.registry.register(spec(bad), Box::new(rig.probe("a")));
        assert_eq!(errno(refused), Errno::INVAL, "{bad:?}");
    }
    assert!(rig.journal.take().iter().all(|line| line == "a.drop"), "refused before describe");
    for good in ["disk 1", "Gerät", "it's \"x\"\\", &long[..255]] {
        vfiod_core::check_device_name(good).unwrap();
    }
    let first = rig.single("a");
    let refused = rig.registry.register(spec("a"), Box::new(rig.probe("b")));
    assert_eq!(errno(refused), Errno::EXIST);
    assert_eq!(rig.journal.take(), ["b.describe", "b.drop"], "refused before init");
    let id = first.device().id();
    drop(first);
    let again = rig.single("a");
    assert_ne!(again.device().id(), id, "numbers are never used twice");
}

#[test]
fn a_failed_init_leaves_nothing_behind() {
    for (fault, expected) in [(Fault::Fail(Errno::NOSPC), Errno::NOSPC), (Fault::Panic, Errno::IO)]
    {
        let rig = Rig::with_events();
        let slot = Arc::new(Slot("slot"));
        rig.journal.fault("a.init", fault);
        let spec = DeviceSpec { set: Some(SetId::of(&slot)), ..spec("a") };
        let refused = rig.registry.register(spec.clone(), Box::new(rig.probe("a")));
        assert_eq!(errno(refused), expected);
        assert_eq!(rig.journal.take(), ["a.describe", "a.init", "a.drop"]);
        assert!(rig.registry.find("a").is_none());
        assert!(rig.registry.devices().is_empty());
        drop(spec);
        assert_eq!(Arc::strong_count(&slot), 1, "no set holds the id");
        let again = rig.single("a");
        drop(open(&again).unwrap());
    }
}

#[test]
fn device_that_panics_in_describe_is_refused() {
    let rig = Rig::new();
    rig.journal.fault("a.describe", Fault::Panic);
    assert_eq!(errno(rig.registry.register(spec("a"), Box::new(rig.probe("a")))), Errno::IO);
    assert_eq!(rig.journal.take(), ["a.describe", "a.drop"]);
    let _again = rig.single("a");
}

#[test]
fn panic_in_drop_is_contained() {
    let rig = Rig::new();
    rig.journal.fault("a.init", Fault::Fail(Errno::NOMEM));
    rig.journal.fault("a.drop", Fault::Panic);
    assert_eq!(errno(rig.registry.register(spec("a"), Box::new(rig.probe("a")))), Errno::NOMEM);
    rig.journal.fault("a.drop", Fault::Panic);
    drop(rig.single("a"));
    let _again = rig.single("a");
}

#[test]
fn devices_are_listed_by_number() {
    let rig = Rig::new();
    let names = ["d", "c", "b", "a"];
    let mut registrations: Vec<_> = names.iter().map(|name| rig.single(name)).collect();
    let listed: Vec<_> = rig.registry.devices().iter().map(|d| d.name().to_owned()).collect();
    assert_eq!(listed, names);
    drop(registrations.remove(1));
    let listed: Vec<_> = rig.registry.devices().iter().map(|d| d.name().to_owned()).collect();
    assert_eq!(listed, ["d", "b", "a"]);
}

#[test]
fn set_exists_while_it_has_members() {
    let rig = Rig::with_events();
    let slot = Arc::new(Slot("slot 1"));
    let register = |name| {
        let spec = DeviceSpec { set: Some(SetId::of(&slot)), ..spec(name) };
        rig.registry.register(spec, Box::new(rig.probe(name))).unwrap()
    };
    for _ in 0..2 {
        let a = register("a");
        let b = register("b");
        assert_eq!(a.device().set_name(), "slot 1");
        assert_eq!(rig.journal.count("event: set slot 1 created"), 1);
        assert!(Arc::strong_count(&slot) > 1, "the set holds its id");
        drop(a);
        assert_eq!(rig.journal.count("event: set slot 1 gone"), 0);
        let c = register("c");
        drop(b);
        assert_eq!(rig.journal.count("event: set slot 1 gone"), 0);
        drop(c);
        assert_eq!(rig.journal.count("event: set slot 1 gone"), 1);
        assert_eq!(rig.journal.count("event: set slot 1 created"), 1, "the second time anew");
        rig.journal.take();
        assert_eq!(Arc::strong_count(&slot), 1);
    }
}

#[test]
fn sets_are_told_apart_by_object_not_by_name() {
    let rig = Rig::with_events();
    let (one, two) = (Arc::new(Slot("slot")), Arc::new(Slot("slot")));
    let (id, same) = (SetId::of(&one), SetId::of(&one));
    assert_eq!(id, same);
    assert_ne!(id, SetId::of(&two));
    let spec_of = |name, set| DeviceSpec { set: Some(set), ..spec(name) };
    let _a = rig.registry.register(spec_of("a", id), Box::new(rig.probe("a"))).unwrap();
    let _b = rig.registry.register(spec_of("b", same), Box::new(rig.probe("b"))).unwrap();
    let other = spec_of("c", SetId::of(&two));
    let _c = rig.registry.register(other, Box::new(rig.probe("c"))).unwrap();
    assert_eq!(rig.journal.count("event: set slot created"), 2);
}

#[test]
fn observer_that_panics_gets_the_next_events_all_the_same() {
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = told.clone();
    let observer = move |_: &vfiod_core::Event<'_>| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        panic!("observer");
    };
    let registry = vfiod_core::Registry::with_observer(Arc::new(observer));
    let rig = Rig { registry, ..Rig::new() };
    drop(open(&rig.single("a")).unwrap());
    // Created, registered, reset, in use, opened, released, idle, unregistered, gone.
    assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 9);
}
