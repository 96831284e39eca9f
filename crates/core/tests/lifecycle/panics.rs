//! A panic in a callback is the device's own: the error state until a reset succeeds.

use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Errno, IrqIndex};

use crate::rig::{Fault, REGISTERS, Rig, errno, open};

#[test]
fn panic_in_any_step_of_open_fails_the_open_and_is_contained() {
    let steps: [(&str, &[&str]); 3] = [
        ("a.reset", &["a.reset Open", "event: a failed"]),
        (
            "a.open_device",
            &["a.reset Open", "event: a reset Open", "a.open_device", "event: a failed"],
        ),
        (
            "a.open",
            &[
                "a.reset Open",
                "event: a reset Open",
                "a.open_device",
                "event: a in use",
                "a.open me",
                "event: a failed",
                "a.close_device",
                "event: a idle",
                "a.reset Set",
                "event: a reset Set",
            ],
        ),
    ];
    for (step, expected) in steps {
        let rig = Rig::with_events();
        let a = rig.single("a");
        rig.journal.fault(step, Fault::Panic);
        assert_eq!(errno(open(&a)), Errno::IO, "{step}");
        assert_eq!(rig.journal.take(), expected, "{step}");
        assert_eq!(a.device().status().files, []);
        let file = open(&a).unwrap();
        file.read(REGISTERS, 0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn accesses_after_a_panic_fail_until_a_reset_succeeds() {
    let rig = Rig::with_events();
    let a = rig.multi("a");
    let file = open(&a).unwrap();
    rig.journal.take();
    rig.journal.fault("a.write", Fault::Panic);
    assert_eq!(errno(file.write(REGISTERS, 4, &[1])), Errno::IO);
    assert_eq!(rig.journal.take(), ["a.write 0x4 [1]", "event: a failed"]);
    assert!(a.device().status().failed);

    assert_eq!(errno(file.read(REGISTERS, 0, &mut [0; 4])), Errno::IO);
    assert_eq!(errno(file.write(REGISTERS, 0, &[0; 4])), Errno::IO);
    assert_eq!(errno(file.feature_probe(1)), Errno::IO);
    assert_eq!(errno(file.feature_get(1, &[])), Errno::IO);
    assert_eq!(errno(open(&a)), Errno::IO, "no further file");
    assert!(rig.journal.take().is_empty(), "the device is left alone");

    // What a client needs to come back works.
    file.region(REGISTERS).unwrap();
    file.set_irqs(IrqIndex(1), 0, 0, IrqAction::Trigger, IrqData::None).unwrap();

    rig.journal.fault("a.reset", Fault::Fail(Errno::TIMEDOUT));
    assert_eq!(errno(file.reset()), Errno::TIMEDOUT);
    rig.journal.fault("a.reset", Fault::Panic);
    assert_eq!(errno(file.reset()), Errno::IO);
    assert_eq!(errno(file.read(REGISTERS, 0, &mut [0; 4])), Errno::IO);
    file.reset().unwrap();
    file.read(REGISTERS, 0, &mut [0; 4]).unwrap();
    assert!(!a.device().status().failed);
}

#[test]
fn reset_that_fails_puts_the_device_into_the_error_state() {
    let rig = Rig::with_events();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    rig.journal.take();
    rig.journal.fault("a.reset", Fault::Fail(Errno::BUSY));
    assert_eq!(errno(file.reset()), Errno::BUSY);
    assert_eq!(rig.journal.take(), ["a.reset Client", "event: a failed"]);
    assert_eq!(errno(file.read(REGISTERS, 0, &mut [0; 4])), Errno::IO);
}

#[test]
fn a_device_that_panics_in_request_can_be_unregistered() {
    let rig = Rig::with_events();
    let mut probe = rig.probe("a");
    probe.request = Some(true);
    let a = rig.add(crate::rig::spec("a"), probe);
    let file = open(&a).unwrap();
    rig.journal.take();
    rig.journal.fault("a.request", Fault::Panic);
    a.unregister(Some(std::time::Duration::from_millis(1)));
    let journal = rig.journal.take();
    assert!(journal.contains(&"event: a failed".to_owned()), "{journal:?}");
    assert_eq!(journal.iter().filter(|line| *line == "a.release").count(), 1);
    assert_eq!(errno(file.read(REGISTERS, 0, &mut [0; 4])), Errno::NODEV);
}

#[test]
fn error_after_a_panic_has_the_message_of_the_panic() {
    use std::error::Error as _;
    let rig = Rig::new();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    rig.journal.fault("a.read", Fault::Panic);
    let error = file.read(REGISTERS, 0, &mut [0; 4]).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "panic: read was told to panic");
}
