//! What the checker plays through: a few tasks each, small enough to find their worst orders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfiod_sync::model::{check_every_order, join_all, spawn};

use super::witness::{Ledger, Witness, owner};
use crate::event::Event;
use crate::sync::thread;
use crate::{
    DeviceRef, DeviceSpec, Errno, File, OpenPolicy, RegionIndex, Registration, Registry, Result,
    SetId, StatePolicy,
};

pub(super) const NOW: Option<Duration> = Some(Duration::ZERO);
const SOON: Option<Duration> = Some(Duration::from_secs(1));

fn spec(name: &str, ledger: &Arc<Ledger>) -> DeviceSpec {
    DeviceSpec {
        id: None,
        name: name.to_owned(),
        set: Some(SetId::of(ledger)),
        open: OpenPolicy::Multi,
        state: StatePolicy::Retain,
        location: None,
        token: None,
    }
}

pub(super) fn register(
    registry: &Registry,
    ledger: &Arc<Ledger>,
    device: Witness,
    name: &str,
) -> Registration {
    registry.register(spec(name, ledger), Box::new(device)).expect("registers")
}

pub(super) fn open(device: &DeviceRef) -> Result<File> {
    device.open(owner())
}

/// Unregisters what is left; nothing may hold the set's identity any more.
pub(super) fn finish(ledger: &Arc<Ledger>, registrations: impl IntoIterator<Item = Registration>) {
    for registration in registrations {
        registration.unregister(None);
    }
    ledger.finish();
    assert_eq!(Arc::strong_count(ledger), 1, "the set, or a device, was left behind");
}

/// Two users open and drop one device.
pub(crate) fn two_users_of_one_device() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    join_all([0; 2].map(|_| {
        let device = a.device().clone();
        spawn(move || {
            let file = open(&device).expect("opens");
            file.read(RegionIndex(0), 0, &mut [0; 4]).expect("reads");
            drop(file);
        })
    }));
    finish(&ledger, [a]);
}

/// Two members of a set, a user each, one of them twice.
pub(crate) fn two_members_of_one_set() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let names = ["a", "b"];
    let members = names.map(|n| register(&registry, &ledger, Witness::new(n, &ledger), n));
    join_all([(0, 2), (1, 1)].map(|(member, times)| {
        let device: DeviceRef = members[member].device().clone();
        spawn(move || (0..times).for_each(|_| drop(open(&device).expect("opens"))))
    }));
    finish(&ledger, members);
}

/// Two users, of whom one at a time meets a failure: of `open`, then of `open_device`.
pub(crate) fn opens_that_fail() {
    for fails in [vec!["open"], vec!["open_device"], vec!["open", "open_device"]] {
        let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
        let device = Witness::new("a", &ledger).failing(fails);
        let a = register(&registry, &ledger, device, "a");
        join_all([0; 2].map(|_| {
            let device = a.device().clone();
            spawn(move || match open(&device) {
                Ok(file) => drop(file),
                Err(error) => assert_eq!(error.errno(), Errno::NOSPC),
            })
        }));
        drop(open(a.device()));
        finish(&ledger, [a]);
    }
}

/// A user that lets go when asked, and tries again.
pub(crate) fn unregister_waits_for_the_user() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let user = {
        let (device, ledger) = (a.device().clone(), ledger.clone());
        spawn(move || {
            let first = open(&device);
            let asked = ledger.asked();
            let second = open(&device);
            if asked && second.is_ok() {
                ledger.violation("opened after unregister began");
            }
            for refused in [&first, &second].into_iter().filter_map(|open| open.as_ref().err()) {
                assert_eq!(refused.errno(), Errno::NODEV);
            }
        })
    };
    let device = a.device().clone();
    a.unregister(None);
    assert_eq!(open(&device).expect_err("is gone").errno(), Errno::NODEV);
    join_all([user]);
    drop(device);
    finish(&ledger, []);
}

/// Users whose files are taken away: while they open, use and drop them.
fn revoke(deadline: Option<Duration>) {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let users = [0; 2].map(|_| {
        let device = a.device().clone();
        spawn(move || match open(&device) {
            Ok(file) => {
                if let Err(error) = file.read(RegionIndex(0), 0, &mut [0; 4]) {
                    assert_eq!(error.errno(), Errno::NODEV);
                    assert!(file.is_revoked());
                }
            }
            Err(error) => assert_eq!(error.errno(), Errno::NODEV),
        })
    });
    a.unregister(deadline);
    join_all(users);
    finish(&ledger, []);
}

pub(crate) fn files_are_revoked_at_once() {
    revoke(NOW);
}

pub(crate) fn files_are_revoked_at_the_deadline() {
    revoke(SOON);
}

/// Members of one id come and go: while two are there, they are in one set.
pub(crate) fn sets_come_and_go() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let first = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let names = ["b", "c"];
    let tasks = names.map(|name| {
        let (registry, ledger) = (registry.clone(), ledger.clone());
        spawn(move || {
            let mine = register(&registry, &ledger, Witness::new(name, &ledger), name);
            let others = registry.devices();
            let set = &mine.device().registered.set;
            for other in others {
                // It may have left since; then it was in another set, or in this.
                let mut guard = other.registered.set.lock();
                if guard.find(&other.registered).is_some_and(|member| !member.leaving)
                    && !Arc::ptr_eq(&other.registered.set, set)
                {
                    ledger.violation("two live sets of one id");
                }
            }
            drop(open(mine.device()).expect("opens"));
        })
    });
    drop(first);
    join_all(tasks);
    finish(&ledger, []);
}

/// A device that makes another while it is being registered.
pub(crate) fn init_registers_another() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let (inner, child) = (registry.clone(), Witness::new("child", &ledger));
    let child_spec = spec("child", &ledger);
    let on_init = Box::new(move || {
        let child = inner.register(child_spec, Box::new(child)).expect("registers");
        drop(child);
    });
    let parent = Witness::new("a", &ledger).at_init(on_init);
    let looker = registry.clone();
    let user = spawn(move || drop(looker.devices().iter().map(open).collect::<Vec<_>>()));
    let a = register(&registry, &ledger, parent, "a");
    join_all([user]);
    finish(&ledger, [a]);
}

/// A member that panics, beside one that is used.
pub(crate) fn panics_stay_in_the_device() {
    for panics in [vec!["read"], vec!["release", "close_device"], vec!["open"]] {
        let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
        let bad = Witness::new("bad", &ledger).panicking(panics);
        let bad = register(&registry, &ledger, bad, "bad");
        let good = register(&registry, &ledger, Witness::new("good", &ledger), "good");
        let use_of = |registration: &Registration, sound: bool| {
            let device = registration.device().clone();
            spawn(move || {
                let result = open(&device).and_then(|f| f.read(RegionIndex(0), 0, &mut [0; 4]));
                if let Err(error) = result {
                    assert!(!sound && error.errno() == Errno::IO);
                }
            })
        };
        join_all([use_of(&bad, false), use_of(&good, true)]);
        let file = open(bad.device()).expect("is well again");
        file.read(RegionIndex(0), 0, &mut [0; 4]).expect("is well again");
        drop(file);
        finish(&ledger, [bad, good]);
    }
}

/// A user, and opens are barred if there is none.
pub(crate) fn bar_against_open() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let device = a.device().clone();
    let user = thread::spawn(move || open(&device));
    let barred = a.bar_opens_if_unused();
    if barred.is_ok() {
        assert!(a.device().status().files.is_empty(), "barred while open");
    }
    let file = user.join().expect("the user panicked");
    match (&barred, &file) {
        (Ok(()), Ok(_)) => panic!("barred while open"),
        (Ok(()), Err(error)) => assert_eq!(error.errno(), Errno::NODEV),
        // In use then; it may have been closed since.
        (Err(error), _) => assert_eq!(error.errno(), Errno::BUSY),
    }
    drop(file);
    finish(&ledger, [a]);
}

/// A user, and opens are paused if there is none.
pub(crate) fn pause_against_open() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let device = a.device().clone();
    let user = thread::spawn(move || open(&device));
    let paused = a.pause_opens_if_unused();
    if paused.is_ok() {
        assert!(a.device().status().files.is_empty(), "paused while open");
    }
    let file = user.join().expect("the user panicked");
    match (&paused, &file) {
        (Ok(_), Ok(_)) => panic!("opened while paused"),
        // Refused while paused; or the user was first, and may have closed the device since.
        (Ok(_), Err(error)) | (Err(error), _) => assert_eq!(error.errno(), Errno::BUSY),
    }
    drop((paused, file));
    drop(open(a.device()).expect("opens are allowed again"));
    finish(&ledger, [a]);
}

/// A device takes over the name and the set of one that is unregistered: in the order of the numbers
/// of their events, the first is gone before the second is there.
pub(crate) fn successor_of_the_same_name() {
    let events = Arc::<Mutex<BTreeMap<u64, &'static str>>>::default();
    let observer = {
        let events = events.clone();
        move |event: &Event<'_>| {
            let (subject, kind) = match event {
                Event::SetCreated(subject) => (subject, "set created"),
                Event::Registered(subject) => (subject, "registered"),
                Event::Unregistered(subject) => (subject, "unregistered"),
                Event::SetGone(subject) => (subject, "set gone"),
                _ => return,
            };
            events.lock().expect("not poisoned").insert(subject.number, kind);
        }
    };
    let registry = Registry::with_observer(Arc::new(observer));
    let ledger = Arc::<Ledger>::default();
    let first = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let successor = {
        let (registry, ledger) = (registry.clone(), ledger.clone());
        thread::spawn(move || {
            registry.register(spec("a", &ledger), Box::new(Witness::new("a", &ledger)))
        })
    };
    drop(first);
    let second = successor.join().expect("the successor panicked");
    let replaced = second.is_ok();
    finish(&ledger, second);
    let one = ["set created", "registered", "unregistered", "set gone"];
    let expected = if replaced { [one, one].concat() } else { one.to_vec() };
    let seen: Vec<_> = events.lock().expect("not poisoned").values().copied().collect();
    assert_eq!(seen, expected, "the order of events");
}

/// One user, and the registration is dropped: small enough to try every order.
pub(crate) fn smallest_race() {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let device = a.device().clone();
    let user = spawn(move || drop(open(&device)));
    drop(a);
    join_all([user]);
    finish(&ledger, []);
}

vfiod_sync::checks! {
    two_users_of_one_device: 2000,
    two_members_of_one_set: 2000,
    opens_that_fail: 2000,
    bar_against_open: 2000,
    pause_against_open: 2000,
    successor_of_the_same_name: 2000,
    unregister_waits_for_the_user: 2000,
    files_are_revoked_at_once: 2000,
    files_are_revoked_at_the_deadline: 2000,
    sets_come_and_go: 2000,
    init_registers_another: 1000,
    panics_stay_in_the_device: 1000,
}

/// In every order, up to a bound that keeps it to seconds.
#[test]
fn smallest_race_in_every_order() {
    check_every_order(smallest_race, 20_000);
}
