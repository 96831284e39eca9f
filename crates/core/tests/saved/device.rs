//! The text form of a device's state.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{DescriptorTable, Errno, OpenPolicy, Saved};

use crate::rig::*;

#[test]
fn files_interrupts_mappings_and_state_are_restored() {
    let Used { rig, files, signal } = used();
    let (text, mut table) = rig.save();
    let copy = Rig::new(OpenPolicy::Multi);
    let restored = copy.restore(&text, &mut table).unwrap();
    assert_eq!(copy.shared.take_calls(), ["open_device", "open", "open"]);
    for (restored, file) in restored.iter().zip(&files) {
        assert_eq!((restored.id(), restored.owner()), (file.id(), file.owner()));
    }
    let (before, after) =
        (rig.registration.device().status().files, copy.registration.device().status().files);
    assert_eq!(before, after, "also when they were opened");
    let (again, _) = copy.save();
    assert_eq!(again, text);

    let mut byte = [0];
    restored[0].read(REGION, 0, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    // The line is still up: it is signalled, on the same eventfd, when the client unmasks.
    assert_eq!(signals(&signal), 0);
    restored[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    assert_eq!(signals(&signal), 1);
    assert_eq!(restored[0].unmask_fds().len(), 1);
    let mut bytes = [0; 5];
    guest(&restored[0], 0x1_0000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    guest(&restored[0], 0x2_0000, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 5]);

    // New files get other numbers, and what files made goes with them.
    let newer = copy.open();
    assert!(restored.iter().all(|file| file.id() < newer.id()));
    drop(newer);
    drop(restored);
    assert_eq!(copy.registration.device().dma_mappings(), []);
    assert!(copy.shared.take_calls().ends_with(&["release", "close_device"]));
}

#[test]
fn image_replaces_the_state_in_the_text() {
    let Used { rig, files, signal: _ } = used();
    let (text, mut table) = rig.save();
    files[0].write(REGION, 0, &[1]).unwrap();
    let device = rig.registration.device();
    let mut image = vec![0; device.image_len().unwrap()];
    device.save_image(&mut image).unwrap();
    let copy = Rig::new(OpenPolicy::Multi);
    let saved: Saved = serde_json::from_value(text).unwrap();
    let restored = copy.registration.device().restore(&saved, Some(&image), &mut table).unwrap();
    let mut byte = [0];
    restored[0].read(REGION, 0, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    assert_eq!(device.save_image(&mut [0; 3]).unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn refused_restores_leave_the_device_as_it_was() {
    let Used { rig, files: _files, .. } = used();
    let (text, mut table) = rig.save();
    let file =
        |id: u64| json!({ "id": id, "owner": text["state"]["files"][0]["owner"], "since": 0 });
    let mut stranger = file(1);
    stranger["owner"]["identity"] = json!({ "in-process": "stranger" });
    let rows = [
        ("/kind", "teapot".into(), "a teapot, not of a device"),
        ("/version", 1.into(), "version 1 of the state of a device; this program reads version 2"),
        ("/state", Value::Null, "damaged"),
        ("/state/device/kind", "teapot".into(), "a teapot, not of a counter"),
        ("/state/device/version", 9.into(), "version 9 of the state of a counter"),
        ("/state/device", Value::Null, "the device's own state is missing"),
        ("/state/files", json!([file(0), file(0)]), "file 0 twice"),
        ("/state/files/1/id", u64::MAX.into(), "out of range"),
        ("/state/files/1", stranger, "files of several owners"),
        ("/state/files", json!([]), "file 0, which is not there"),
        ("/state/interrupts/0/0/trigger/file", 5.into(), "an eventfd of file 5"),
        ("/state/interrupts/0/0/trigger/fd", 99.into(), "no descriptor 99"),
        ("/state/interrupts", json!([]), "0 interrupt indices"),
        ("/state/interrupts/0", json!({ "2": { "level": true } }), "vector 2 of an index with 2"),
        ("/state/attachments/spaces/0/0/owner", 5.into(), "is of a file that is not there"),
        ("/state/attachments/spaces/0/0/file/fd", 99.into(), "no descriptor 99"),
        ("/state/attachments/attached", 3.into(), "address space 3, which has not been restored"),
        ("/state/attachments/left", json!({ "0": [4] }), "address space 4, which has not"),
        ("/state/attachments/left", json!({ "9": [0] }), "a space that file 9 has left"),
        ("/state/attachments/spaces/0/0/last", 0.into(), "has no size"),
        ("/state/attachments/spaces/0/1/first", 0x1_0800.into(), "cannot restore counter"),
    ];
    let device = Rig::new(OpenPolicy::Multi);
    device.shared.context().irqs().set_level(LINE, 1, true).unwrap();
    let (before, _) = device.save();
    for (place, value, expected) in rows {
        let mut damaged = text.clone();
        match place.rsplit_once('/') {
            // Not there in this state.
            Some((parent, "left")) => damaged.pointer_mut(parent).expect(place)["left"] = value,
            _ => *damaged.pointer_mut(place).expect(place) = value,
        }
        let error = device.restore(&damaged, &mut table).unwrap_err();
        assert!(error.to_string().contains(expected), "{place}: {error}");
        let (after, _) = device.save();
        assert_eq!(after, before, "{place}: {error}");
        let calls = device.shared.take_calls();
        assert!(
            matches!(calls[..], [] | ["open_device", "open", "open", .., "close_device"]),
            "{place}: {calls:?}"
        );
    }
    // It can still be restored, and used.
    assert_eq!(device.restore(&text, &mut table).unwrap().len(), 2);
    let single = Rig::new(OpenPolicy::Single);
    let error = single.restore(&text, &mut table).unwrap_err();
    assert!(error.to_string().contains("2 files, and it takes one at a time"), "{error}");
}

#[test]
fn device_in_use_is_not_restored() {
    let Used { rig, files, signal: _ } = used();
    let (text, mut table) = rig.save();
    let error = rig.restore(&text, &mut table).unwrap_err();
    assert_eq!(error.errno(), Errno::BUSY);
    drop(files);
    assert_eq!(rig.restore(&text, &mut table).unwrap().len(), 2);
}

#[test]
fn error_state_is_restored_and_ends_with_a_reset() {
    let rig = Rig::new(OpenPolicy::Single);
    let file = rig.open();
    assert_eq!(file.write(REGION, 0, &[0]).unwrap_err().errno(), Errno::IO);
    let (text, mut table) = rig.save();
    let copy = Rig::new(OpenPolicy::Single);
    let restored = copy.restore(&text, &mut table).unwrap();
    assert_eq!(restored[0].read(REGION, 0, &mut [0]).unwrap_err().errno(), Errno::IO);
    restored[0].reset().unwrap();
    restored[0].read(REGION, 0, &mut [0]).unwrap();
}

#[test]
fn golden_file_can_be_restored() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/device-2.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // Its descriptors: two eventfds and a file.
    let mut table = DescriptorTable::new().with_peer(Arc::new(Sevens));
    for fd in [event(), event(), memory(b"hello")] {
        vfiod_core::KeepDescriptors::keep(&mut table, fd.as_fd()).unwrap();
    }
    let rig = Rig::new(OpenPolicy::Multi);
    let files = rig.restore(&golden, &mut table).unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(rig.save().0, golden);
}
