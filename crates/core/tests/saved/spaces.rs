//! Devices that share an address space, saved and restored.

use serde_json::Value;
use vfiod_core::dma::{Backing, Space};
use vfiod_core::{DescriptorTable, Errno, OpenPolicy, Saved};

use crate::rig::*;

fn backing(content: &[u8]) -> Backing {
    Backing::File { fd: memory(content), offset: 0x1000 }
}

/// Saves devices with one table, in this order.
fn save(rigs: &[&Rig]) -> (Vec<Value>, DescriptorTable) {
    let mut table = DescriptorTable::new();
    let mut save = |rig: &&Rig| {
        let saved = rig.registration.device().save(&mut table).unwrap();
        serde_json::to_value(saved).unwrap()
    };
    (rigs.iter().map(&mut save).collect(), table)
}

fn space_of(rig: &Rig) -> Value {
    rig.save().0["state"]["attachments"].clone()
}

#[test]
fn devices_that_share_a_space_share_it_again() {
    let [a, b] = Rig::pair();
    let (first, second) = (a.open(), b.open());
    // The second device leaves its own space, in which its file keeps a mapping.
    map(&second, 0x3_0000, backing(b"kept!"));
    second.attach_space(&first.space().unwrap()).unwrap();
    map(&first, 0x1_0000, backing(b"hello"));
    let (texts, mut table) = save(&[&a, &b]);
    drop((first, second));

    let copies = Rig::pair();
    let saved = |at: usize| serde_json::from_value::<Saved>(texts[at].clone()).unwrap();
    let mut restore =
        |at: usize| copies[at].registration.device().restore(&saved(at), None, &mut table);
    let error = restore(1).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL);
    assert!(error.to_string().contains("address space 0, which has not been restored"), "{error}");
    let first = restore(0).unwrap().remove(0);
    let second = restore(1).unwrap().remove(0);
    assert!(first.space().unwrap().is(&second.space().unwrap()));
    let mut bytes = [0; 5];
    guest(&second, 0x1_0000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    map(&second, 0x2_0000, backing(b"again"));
    guest(&first, 0x2_0000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
    let (again, _) = save(&[&copies[0], &copies[1]]);
    for place in ["attached", "own", "left"] {
        let [before, after] =
            [&texts, &again].map(|texts| &texts[1]["state"]["attachments"][place]);
        assert_eq!(before, after, "{place}");
    }

    // What a file has mapped goes with it, and after the last close each device has its own space.
    drop(second);
    guest(&first, 0x1_0000, &mut bytes).unwrap();
    let second = copies[1].open();
    assert!(!first.space().unwrap().is(&second.space().unwrap()));
    assert_eq!(copies[1].registration.device().dma_mappings(), []);
}

#[test]
fn mapping_of_another_devices_file_is_restored_if_that_is_restored_too() {
    let [a, b] = Rig::pair();
    let (first, second) = (a.open(), b.open());
    second.attach_space(&first.space().unwrap()).unwrap();
    map(&second, 0x1_0000, backing(b"hello"));
    let (texts, mut table) = save(&[&a, &b]);
    let saved: Saved = serde_json::from_value(texts[0].clone()).unwrap();
    let copy = Rig::new(OpenPolicy::Single);
    let device = copy.registration.device();
    let error = device.restore(&saved, None, &mut table).unwrap_err();
    assert!(error.to_string().contains("is of a file that is not there"), "{error}");
    assert_eq!(device.dma_mappings(), []);
    let mut table = table.with_files_of_other_devices([second.id()]);
    let restored = device.restore(&saved, None, &mut table).unwrap();
    let mut bytes = [0; 5];
    guest(&restored[0], 0x1_0000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn space_that_a_program_made_is_restored_as_another_than_the_devices_own() {
    let rig = Rig::new(OpenPolicy::Single);
    let file = rig.open();
    file.attach_space(&Space::new()).unwrap();
    map(&file, 0x1_0000, backing(b"hello"));
    let (texts, mut table) = save(&[&rig]);
    let saved: Saved = serde_json::from_value(texts[0].clone()).unwrap();
    let copy = Rig::new(OpenPolicy::Single);
    let restored = copy.registration.device().restore(&saved, None, &mut table).unwrap();
    assert_eq!(space_of(&copy), texts[0]["state"]["attachments"]);
    drop(restored);
    assert_eq!(space_of(&copy)["own"], true);
}
