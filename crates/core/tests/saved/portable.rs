//! States without clients: for a file, and for whoever opens the device next.

use serde_json::{Value, json};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Errno, OpenPolicy, Owner, Saved};

use crate::rig::*;

fn text(rig: &Rig) -> Value {
    serde_json::to_value(rig.registration.device().save_portable().unwrap()).unwrap()
}

fn restore(rig: &Rig, text: &Value) -> vfiod_core::Result<()> {
    let saved: Saved = serde_json::from_value(text.clone()).unwrap();
    rig.registration.device().restore_portable(&saved)
}

fn writes(file: &vfiod_core::File) -> u8 {
    let mut byte = [0];
    file.read(REGION, 0, &mut byte).unwrap();
    byte[0]
}

#[test]
fn it_has_nothing_of_the_clients() {
    let Used { rig, files, signal } = used();
    rig.shared.take_calls();
    let expected = json!({
        "kind": "portable device", "version": 1,
        "state": {
            "interrupts": [{ "0": { "level": true } }],
            "device": { "kind": "counter", "version": 1, "state": { "writes": 1 } },
        },
    });
    assert_eq!(text(&rig), expected);
    // The device has gone on.
    assert_eq!((writes(&files[0]), rig.shared.take_calls()), (1, vec![]));
    files[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    assert_eq!(signals(&signal), 1);
    drop(files);
    assert_eq!(text(&rig), expected, "closed");
}

#[test]
fn next_user_finds_it_once_whatever_the_policy() {
    let text = text(&used().rig);
    let copy = Rig::new(OpenPolicy::Single);
    let device = copy.registration.device();
    restore(&copy, &text).unwrap();
    assert!(device.status().files.is_empty() && device.has_restored_state());
    assert_eq!(copy.shared.take_calls(), [""; 0]);
    let file = device.open(Owner::in_process("another user")).unwrap();
    assert_eq!((writes(&file), copy.shared.take_calls()), (1, vec!["open_device", "open"]));
    assert!(!device.has_restored_state());
    // The level is there for who asks for it.
    let signal = event();
    file.set_irqs(LINE, 0, 1, IrqAction::Trigger, eventfds(&signal)).unwrap();
    assert_eq!(signals(&signal), 1);
    drop(file);
    let file = device.open(Owner::in_process("another user")).unwrap();
    assert_eq!(writes(&file), 0, "reset at a first open, as its policy says");
}

#[test]
fn reset_before_the_next_open_ends_it() {
    let text = text(&used().rig);
    let copy = Rig::new(OpenPolicy::Single);
    restore(&copy, &text).unwrap();
    let device = copy.registration.device();
    assert!(device.has_restored_state());
    device.reset_set(vfiod_core::InUse::Refuse).unwrap();
    assert!(!device.has_restored_state());
    assert_eq!(writes(&copy.open()), 0);
}

#[test]
fn refusal_says_why_and_changes_nothing() {
    let good = text(&used().rig);
    let copy = Rig::new(OpenPolicy::Single);
    restore(&copy, &good).unwrap();
    let refused = |place: &str, value: Value| {
        let mut text = good.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        text.pointer_mut(parent).unwrap()[key] = value;
        let error = restore(&copy, &text).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL, "{place}: {error}");
        error.to_string()
    };
    let eventfd = json!([{ "0": { "trigger": { "file": 1, "fd": 0 } } }]);
    let piece = json!({ "region": 0, "offset": 0, "bytes": "00" });
    for (place, value, says) in [
        ("/kind", json!("device"), "the state of a device, not of a portable device"),
        (
            "/version",
            json!(2),
            "version 2 of the state of a portable device; this program reads version 1",
        ),
        ("/state/interrupts", json!([]), "the state has 0 interrupt indices, the device 1"),
        ("/state/interrupts", eventfd, "an interrupt that a client has set up"),
        ("/state/interrupts", json!([{ "0": { "client_masked": true } }]), "a client has set up"),
        ("/state/interrupts", json!([{ "2": { "level": true } }]), "vector 2 of an index with 2"),
        ("/state/rings", json!([{ "bell": 0 }]), "a ring of doorbell 0, of 0"),
        ("/state/memory", json!([piece]), "shares nothing"),
        ("/state/memory", Value::from(vec![piece.clone(); 65]), "than a state has room for"),
        ("/state", json!({ "interrupts": [{}] }), "the device's own state is missing"),
        ("/state/device", Value::Null, "the device's own state is missing"),
        ("/state/device/state", json!({ "writes": -1 }), "is damaged"),
        ("/state/device/kind", json!("edu"), "the state of a edu, not of a counter"),
        ("/state/teapot", json!(1), "unknown field `teapot`"),
    ] {
        let error = refused(place, value);
        assert!(error.starts_with("cannot restore counter: "), "{error}");
        assert!(error.contains(says), "{place}: {error}");
        assert_eq!(text(&copy), good, "{place}");
    }
    let file = copy.open();
    assert_eq!(writes(&file), 1, "the state before is still the next user's");
    let error = restore(&copy, &good).unwrap_err();
    assert_eq!(error.errno(), Errno::BUSY);
    assert!(error.to_string().contains("in use by test"), "{error}");
    assert_eq!(file.write(REGION, 0, &[0]).unwrap_err().errno(), Errno::IO);
    let error = copy.registration.device().save_portable().unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
    assert!(error.to_string().contains("in the error state"), "{error}");
}
