//! Open: reset and `open_device` for the first, `open` for each; undone where it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use vfiod_core::{Credentials, DeviceSpec, Errno, OpenPolicy, Owner, OwnerIdentity, StatePolicy};

use crate::rig::{Fault, REGISTERS, Rig, Slot, errno, open, owner, spec};

#[test]
fn first_and_further_open_last_and_other_release() {
    let rig = Rig::with_events();
    let a = rig.multi("a");
    let first = open(&a).unwrap();
    assert_eq!(
        rig.journal.take(),
        [
            "a.reset Open",
            "event: a reset Open",
            "a.open_device",
            "event: a in use",
            "a.open me",
            "event: a opened, 1"
        ]
    );
    let second = open(&a).unwrap();
    assert_ne!(first.id(), second.id());
    assert_eq!(rig.journal.take(), ["a.open me", "event: a opened, 2"]);
    assert_eq!(a.device().status().files.len(), 2);
    drop(first);
    assert_eq!(rig.journal.take(), ["a.release", "event: a released, 1"]);
    drop(second);
    assert_eq!(
        rig.journal.take(),
        ["a.release", "event: a released, 0", "a.close_device", "event: a idle"]
    );
    assert_eq!(a.device().status().files, []);
}

#[test]
fn retained_state_is_not_reset() {
    let rig = Rig::new();
    let spec = DeviceSpec { state: StatePolicy::Retain, ..spec("a") };
    let a = rig.add(spec, rig.probe("a"));
    for _ in 0..2 {
        drop(open(&a).unwrap());
        assert_eq!(
            rig.journal.take(),
            ["a.open_device", "a.open me", "a.release", "a.close_device"]
        );
    }
}

#[test]
fn single_open_refuses_a_second_file_of_anybody() {
    let rig = Rig::new();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    rig.journal.take();
    assert_eq!(errno(open(&a)), Errno::INVAL);
    assert_eq!(errno(a.device().open(owner("you"))), Errno::INVAL);
    assert!(rig.journal.take().is_empty(), "the device was not bothered");
    drop(file);
    a.device().open(owner("you")).unwrap();
}

#[test]
fn multi_open_is_for_one_owner_at_a_time() {
    let rig = Rig::new();
    let a = rig.multi("a");
    let peer = |pidfd_inode| Owner::new(OwnerIdentity::Process { pidfd_inode });
    let mine = a.device().open(owner("me")).unwrap();
    assert_eq!(errno(a.device().open(owner("you"))), Errno::BUSY);
    assert_eq!(errno(a.device().open(peer(1))), Errno::BUSY);
    let also_mine = a.device().open(owner("me")).unwrap();
    drop(mine);
    assert_eq!(errno(a.device().open(owner("you"))), Errno::BUSY);
    drop(also_mine);
    drop(a.device().open(owner("you")).unwrap());
    assert_eq!(OpenPolicy::default(), OpenPolicy::Single);
}

/// Every step of a first open fails in turn; nothing but what had succeeded is undone, and the
/// next open works.
#[test]
fn a_failed_first_open_is_undone_step_by_step() {
    let steps: [(&str, &[&str]); 3] = [
        ("a.reset", &["a.reset Open"]),
        ("a.open_device", &["a.reset Open", "a.open_device"]),
        ("a.open", &["a.reset Open", "a.open_device", "a.open me", "a.close_device"]),
    ];
    for (step, expected) in steps {
        for policy in [OpenPolicy::Single, OpenPolicy::Multi] {
            let rig = Rig::new();
            let a = rig.add(DeviceSpec { open: policy, ..spec("a") }, rig.probe("a"));
            rig.journal.fault(step, Fault::Fail(Errno::NOSPC));
            assert_eq!(errno(open(&a)), Errno::NOSPC, "{step}");
            assert_eq!(rig.journal.take(), expected);
            assert_eq!(a.device().status().files, []);
            drop(a.device().open(owner("you")).unwrap());
            let expected =
                ["a.reset Open", "a.open_device", "a.open you", "a.release", "a.close_device"];
            assert_eq!(rig.journal.take(), expected, "after {step}");
        }
    }
}

#[test]
fn a_failed_further_open_leaves_the_others_alone() {
    let rig = Rig::with_events();
    let a = rig.multi("a");
    let first = open(&a).unwrap();
    rig.journal.take();
    rig.journal.fault("a.open", Fault::Fail(Errno::MFILE));
    assert_eq!(errno(open(&a)), Errno::MFILE);
    assert_eq!(rig.journal.take(), ["a.open me"]);
    let left = a.device().status().files;
    assert_eq!(
        left.iter().map(|file| (file.id, &file.owner)).collect::<Vec<_>>(),
        [(first.id(), &owner("me"))]
    );
    drop(first);
    assert_eq!(
        rig.journal.take(),
        ["a.release", "event: a released, 0", "a.close_device", "event: a idle"]
    );
}

#[test]
fn a_failed_open_device_leaves_the_set_idle() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let (a, b) = (rig.member("a", &slot), rig.member("b", &slot));
    rig.journal.fault("a.open_device", Fault::Fail(Errno::NOMEM));
    assert_eq!(errno(open(&a)), Errno::NOMEM);
    // If `a` still counted as open, the set's reset of `b` would not come.
    rig.journal.fault("b.close_device", Fault::Panic);
    drop(open(&b).unwrap());
    assert_eq!(rig.journal.count("b.reset Set"), 1);
}

#[test]
fn members_of_a_set_are_opened_and_closed_independently() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let (a, b) = (rig.member("a", &slot), rig.member("b", &slot));
    let (fa, fb) = (open(&a).unwrap(), open(&b).unwrap());
    drop(fa);
    drop(fb);
    let expected = [
        "a.open_device",
        "a.open me",
        "b.open_device",
        "b.open me",
        "a.release",
        "a.close_device",
        "b.release",
        "b.close_device",
    ];
    assert_eq!(rig.journal.take(), expected);
}

/// A user by account; the name tells connections of one account apart.
fn user(name: &str, uid: u32) -> Owner {
    owner(name).with_credentials(Credentials { pid: 0, uid, gid: uid })
}

#[test]
fn retained_state_is_reset_for_another_user() {
    let rig = Rig::new();
    let spec = DeviceSpec { state: StatePolicy::Retain, ..spec("a") };
    let a = rig.add(spec, rig.probe("a"));
    let resets = |user| {
        rig.journal.take();
        drop(a.device().open(user).unwrap());
        rig.journal.count("a.reset Open")
    };
    assert_eq!(resets(user("first", 1000)), 0, "the state of power-on is nobody's");
    assert_eq!(resets(user("second", 1000)), 0, "another process of the same user");
    assert_eq!(resets(user("first", 1001)), 1);
    assert_eq!(resets(user("first", 1000)), 1, "what it had left was reset");
    // The kernel reports this number for every account that it cannot name.
    assert_eq!(resets(user("first", 65534)), 1);
    assert_eq!(resets(user("second", 65534)), 1, "it may be anybody");
    assert_eq!(resets(owner("first")), 1, "of whom nothing is known");
}

/// Counts lines of the log that say that a retained state was reset.
struct Resets(Arc<AtomicUsize>);

impl tracing::field::Visit for Resets {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let is_reset = field.name() == "message" && format!("{value:?}").contains("another user's");
        self.0.fetch_add(usize::from(is_reset), Ordering::SeqCst);
    }
}

impl<S: tracing::Subscriber> Layer<S> for Resets {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::INFO {
            event.record(&mut Self(self.0.clone()));
        }
    }
}

#[test]
fn users_who_take_turns_at_a_retained_state_do_not_fill_the_log() {
    const TURNS: u32 = 20_000;
    let rig = Rig::new();
    let spec = DeviceSpec { state: StatePolicy::Retain, ..spec("a") };
    let a = rig.add(spec, rig.probe("a"));
    let lines = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let log = tracing_subscriber::registry().with(Resets(lines.clone()));
    tracing::subscriber::with_default(log, || {
        for turn in 0..TURNS {
            drop(a.device().open(user("x", turn % 2)).unwrap());
        }
    });
    rig.journal.take();
    let lines = lines.load(Ordering::SeqCst);
    // Twenty in each second of which there was a part.
    let most = 20 * (start.elapsed().as_secs() as usize + 2);
    assert!((1..=most).contains(&lines), "{lines} lines");
}

/// The device is busy with a reset that its user has asked for; a second open of it waits, and gives up
/// after some time. An open of the neighbour that were held up would take as long.
#[test]
fn open_of_a_busy_device_does_not_hold_up_its_neighbour() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let (entered, is_inside) = channel();
    let (release, released) = channel::<()>();
    let mut probe = rig.probe("a");
    probe.on_reset = Box::new(move |_| {
        entered.send(()).unwrap();
        // Until the test drops the sender.
        let _ = released.recv();
    });
    let (a, b) = (rig.join(&slot, probe), rig.member("b", &slot));
    let file = open(&a).unwrap();
    let timed_open = |device| {
        let start = Instant::now();
        let result = open(device).map(drop);
        (result, start.elapsed())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| file.reset().unwrap());
        is_inside.recv().unwrap();
        // A machine that stands still for so long looks the same, but not again and again.
        let is_held_up = || {
            let second = scope.spawn(|| timed_open(&a));
            let mut longest = Duration::ZERO;
            while !second.is_finished() {
                let (result, time) = timed_open(&b);
                longest = longest.max(time);
                if let Err(error) = result {
                    assert_eq!(error.errno(), Errno::BUSY);
                    longest = Duration::MAX;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let (result, waited) = second.join().unwrap();
            assert_eq!(errno(result), Errno::BUSY);
            longest > waited / 2
        };
        assert!((0..3).any(|_| !is_held_up()), "the neighbour is held up");
        drop(release);
    });
    drop(open(&a).expect("it is busy no more"));
}

/// Threads that call a device again and again, each call 2 ms long, let a further open have its turn.
#[test]
fn device_that_others_keep_busy_can_be_opened() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    probe.on_read = Box::new(|| sleep(Duration::from_millis(2)));
    let a = rig.add(DeviceSpec { open: OpenPolicy::Multi, ..spec("a") }, probe);
    let (calls, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let files = [(); 3].map(|()| open(&a).unwrap());
    std::thread::scope(|scope| {
        for file in files {
            let (calls, stop) = (&calls, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    file.read(REGISTERS, 0, &mut [0; 4]).unwrap();
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        while calls.load(Ordering::SeqCst) < 10 {
            sleep(Duration::from_millis(1));
        }
        let before = calls.load(Ordering::SeqCst);
        let opened = open(&a).map(drop);
        let during = calls.load(Ordering::SeqCst) - before;
        stop.store(true, Ordering::SeqCst);
        opened.unwrap();
        assert!(during < 100, "{during} calls of others came first");
    });
}
