//! Release: the file's windows and eventfds go, `close_device` after the last, and the set's
//! reset when a member needs it and none is open.

use std::sync::Arc;

use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Errno, IrqIndex};

use crate::rig::{Fault, REGISTERS, Rig, Slot, errno, open, owner};

fn eventfd() -> std::os::fd::OwnedFd {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

#[test]
fn eventfds_go_with_the_file_that_set_them_up() {
    let rig = Rig::new();
    let probe = rig.probe("a");
    let context = probe.context.clone();
    let spec =
        vfiod_core::DeviceSpec { open: vfiod_core::OpenPolicy::Multi, ..crate::rig::spec("a") };
    let a = rig.add(spec, probe);
    let context = context.lock().unwrap().clone().unwrap();
    let (one, two) = (open(&a).unwrap(), open(&a).unwrap());
    let set = |file: &vfiod_core::File, index: u32| {
        let fds = IrqData::EventFds(vec![Some(eventfd())]);
        file.set_irqs(IrqIndex(index), 0, 1, IrqAction::Trigger, fds).unwrap();
    };
    set(&one, 1);
    set(&two, 2);
    assert!(context.irqs().is_enabled(IrqIndex(1)) && context.irqs().is_enabled(IrqIndex(2)));
    drop(one);
    assert!(!context.irqs().is_enabled(IrqIndex(1)), "gone with its file");
    assert!(context.irqs().is_enabled(IrqIndex(2)), "the other's stays");
    drop(two);
    assert!(!context.irqs().is_enabled(IrqIndex(2)));
}

#[test]
fn release_of_a_file_is_called_when_its_eventfds_are_gone() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    let context = probe.context.clone();
    let (seen, sees) = std::sync::mpsc::channel();
    probe.on_release = Box::new(move || {
        let context = context.lock().unwrap();
        seen.send(context.as_ref().unwrap().irqs().is_enabled(IrqIndex(1))).unwrap();
    });
    let a = rig.add(crate::rig::spec("a"), probe);
    let file = open(&a).unwrap();
    let fds = IrqData::EventFds(vec![Some(eventfd())]);
    file.set_irqs(IrqIndex(1), 0, 1, IrqAction::Trigger, fds).unwrap();
    drop(file);
    assert_eq!(sees.try_recv(), Ok(false), "an eventfd is set up during the release");
}

#[test]
fn a_panic_in_release_or_close_does_not_stop_the_rest() {
    let rig = Rig::with_events();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    rig.journal.take();
    rig.journal.fault("a.release", Fault::Panic);
    rig.journal.fault("a.close_device", Fault::Panic);
    drop(file);
    assert_eq!(
        rig.journal.take(),
        [
            "a.release",
            "event: a failed",
            "event: a released, 0",
            "a.close_device",
            "event: a failed",
            "event: a idle",
            "a.reset Set",
            "event: a reset Set"
        ]
    );
    assert!(!a.device().status().failed, "its own set was reset");
    drop(open(&a).unwrap());
}

#[test]
fn the_set_is_reset_when_a_member_needs_it_and_none_is_open() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let (a, b) = (rig.member("a", &slot), rig.member("b", &slot));
    let (fa, fb) = (open(&a).unwrap(), open(&b).unwrap());
    rig.journal.fault("a.read", Fault::Panic);
    assert_eq!(errno(fa.read(REGISTERS, 0, &mut [0; 4])), Errno::IO);
    rig.journal.take();
    drop(fa);
    assert_eq!(rig.journal.take(), ["a.release", "a.close_device"], "b is still open");
    assert!(a.device().status().failed);
    drop(fb);
    assert_eq!(rig.journal.take(), ["b.release", "b.close_device", "a.reset Set"]);
    assert!(!a.device().status().failed);
    let idle = open(&b).unwrap();
    drop(idle);
    assert_eq!(rig.journal.count("a.reset Set"), 0, "once is enough");
}

#[test]
fn a_set_reset_that_fails_is_tried_again() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let (a, b) = (rig.member("a", &slot), rig.member("b", &slot));
    rig.journal.fault("a.close_device", Fault::Panic);
    rig.journal.fault("a.reset", Fault::Fail(Errno::TIMEDOUT));
    drop(open(&a).unwrap());
    assert!(a.device().status().failed);
    assert!(!b.device().status().failed);
    drop(open(&b).unwrap());
    assert!(!a.device().status().failed);
    assert_eq!(rig.journal.count("a.reset Set"), 2);
}

#[test]
fn a_member_that_recovered_by_itself_keeps_its_state() {
    let rig = Rig::new();
    let slot = Arc::new(Slot("slot"));
    let (a, b) = (rig.member("a", &slot), rig.member("b", &slot));
    let fb = open(&b).unwrap();
    let fa = open(&a).unwrap();
    rig.journal.fault("a.close_device", Fault::Panic);
    drop(fa);
    let fa = open(&a).unwrap();
    assert_eq!(rig.journal.count("a.reset Open"), 1, "retained state is lost in the error state");
    drop(fa);
    drop(fb);
    assert_eq!(rig.journal.count("a.reset Set"), 0, "sound again: nothing to do for the set");
    drop(a.device().open(owner("you")).unwrap());
}

#[test]
fn space_of_a_device_serves_the_next_user_only_if_nobody_else_has_used_it() {
    let rig = Rig::new();
    let (a, b) = (rig.multi("a"), rig.multi("b"));
    let kept = open(&a).unwrap().space().unwrap();
    let file = open(&a).unwrap();
    assert!(!file.space().unwrap().is(&kept), "the last user has kept it");
    let of_b = open(&b).unwrap();
    of_b.join_space(a.device().id(), file.id()).unwrap();
    drop(file);
    let file = open(&a).unwrap();
    assert!(!file.space().unwrap().is(&of_b.space().unwrap()), "another device has joined it");
    file.space().unwrap().start_dirty_log();
    drop(file);
    let file = open(&a).unwrap();
    assert!(!file.space().unwrap().is_dirty_log_on(), "the last user's log is on");
    drop((file, of_b));
    assert!(!open(&b).unwrap().space().unwrap().is_dirty_log_on(), "it has its own space again");
}
