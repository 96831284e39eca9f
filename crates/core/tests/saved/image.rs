//! The core's flat image of a device.

use proptest::prelude::*;
use serde_json::Value;
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{DescriptorTable, DeviceRef, Errno, File, Images, OpenPolicy, Result, Saved};

use crate::rig::*;

fn image_of(device: &DeviceRef) -> Vec<u8> {
    let mut image = vec![0xee; device.core_image_len()];
    device.save_core_image(&mut image).unwrap();
    image
}

fn restore(
    rig: &Rig,
    text: &Value,
    image: &[u8],
    table: &mut DescriptorTable,
) -> Result<Vec<File>> {
    let saved: Saved = serde_json::from_value(text.clone()).unwrap();
    let images = Images { core: Some(image), own: None };
    rig.registration.device().restore_images(&saved, images, table)
}

#[test]
fn image_replaces_levels_masks_and_pending_triggers_of_the_text() {
    let Used { rig, files, signal } = used();
    let device = rig.registration.device();
    let (text, mut table) = rig.save();
    assert_eq!(image_of(device).len(), 64);
    // The line goes down and its client unmasks; the other vector is masked and triggered.
    let context = rig.shared.context();
    context.irqs().set_level(LINE, 0, false).unwrap();
    files[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    context.irqs().set_device_mask(LINE, 1, true).unwrap();
    context.irqs().trigger(LINE, 1).unwrap();
    let image = image_of(device);
    let (newer, _) = rig.save();
    assert_ne!(newer["state"]["interrupts"], text["state"]["interrupts"]);

    let copy = Rig::new(OpenPolicy::Multi);
    let restored = restore(&copy, &text, &image, &mut table).unwrap();
    assert_eq!(copy.save().0, newer);
    assert_eq!(image_of(copy.registration.device()), image);
    assert_eq!(signals(&signal), 0);
    copy.shared.context().irqs().set_level(LINE, 0, true).unwrap();
    assert_eq!(signals(&signal), 1, "it is signalled again");
    drop(restored);
}

#[test]
fn image_has_the_error_state() {
    let rig = Rig::new(OpenPolicy::Single);
    let file = rig.open();
    let (text, mut table) = rig.save();
    file.write(REGION, 0, &[0]).unwrap_err();
    let image = image_of(rig.registration.device());
    let copy = Rig::new(OpenPolicy::Single);
    let restored = restore(&copy, &text, &image, &mut table).unwrap();
    assert_eq!(restored[0].read(REGION, 0, &mut [0]).unwrap_err().errno(), Errno::IO);
    restored[0].reset().unwrap();
    restored[0].read(REGION, 0, &mut [0]).unwrap();
}

#[test]
fn number_of_the_set_up_changes_with_files_eventfds_and_mappings_only() {
    let rig = Rig::new(OpenPolicy::Multi);
    let setup = || {
        let image = image_of(rig.registration.device());
        u64::from_le_bytes(image[16..24].try_into().unwrap())
    };
    let file = rig.open();
    let mut last = setup();
    let mut changes = |what: &str, change: &dyn Fn(), expected: bool| {
        change();
        assert_eq!(setup() != last, expected, "{what}");
        last = setup();
    };
    changes("a write", &|| file.write(REGION, 0, &[1]).unwrap(), false);
    let irqs = |action, data| file.set_irqs(LINE, 0, 1, action, data).unwrap();
    changes("a mask", &|| irqs(IrqAction::Mask, IrqData::None), false);
    changes("an eventfd", &|| irqs(IrqAction::Trigger, eventfds(&event())), true);
    let backing = || vfiod_core::dma::Backing::File { fd: memory(b"x"), offset: 0 };
    changes("a mapping", &|| map(&file, 0x1_0000, backing()), true);
    let unmap = || _ = file.dma_unmap(0x1_0000, 0x1000, std::time::Duration::ZERO).unwrap();
    changes("an unmap", &unmap, true);
    changes("a space", &|| file.attach_space(&vfiod_core::dma::Space::new()).unwrap(), true);
    changes("an open and a release", &|| drop(rig.open()), true);
}

#[test]
fn image_that_does_not_fit_is_refused_and_changes_nothing() {
    let Used { rig, files: _files, signal: _ } = used();
    let (text, mut table) = rig.save();
    let image = image_of(rig.registration.device());
    let changed = |at: usize, value: u8| {
        let mut image = image.clone();
        image[at] ^= value;
        image
    };
    let rows = [
        (Vec::new(), "too short"),
        (image[..40].to_vec(), "of another device"),
        ([&image[..], &[0; 32]].concat(), "of another device"),
        (changed(0, 1), "another kind or version"),
        (changed(3, 2), "another kind or version"),
        (changed(4, 2), "flags that are not known"),
        (changed(8, 1), "the core's image is of device 1, the text of device 0"),
        (changed(15, 0x80), "number out of range"),
        (changed(16, 0x40), "of set-up"),
        (changed(31, 0x80), "number out of range"),
        (changed(32, 4), "a vector that does not exist"),
        (changed(63, 0x80), "a vector that does not exist"),
    ];
    let device = Rig::new(OpenPolicy::Multi);
    let (before, _) = device.save();
    for (image, expected) in rows {
        let error = restore(&device, &text, &image, &mut table).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(device.save().0, before, "{error}");
    }
    assert_eq!(restore(&device, &text, &image, &mut table).unwrap().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the bytes are: the restore is refused and nothing has changed, or the device is as
    /// the image says.
    #[test]
    fn hostile_image_is_refused_or_taken_as_it_is(
        flips in prop::collection::vec((0usize..64, 1u8..), 0..4),
    ) {
        let Used { rig, files: _files, signal: _ } = used();
        let (text, mut table) = rig.save();
        let mut image = image_of(rig.registration.device());
        flips.iter().for_each(|(at, value)| image[*at] ^= value);
        let device = Rig::new(OpenPolicy::Multi);
        let (before, _) = device.save();
        match restore(&device, &text, &image, &mut table) {
            Err(_) => prop_assert_eq!(device.save().0, before),
            Ok(files) => {
                prop_assert_eq!(files.len(), 2);
                let again = image_of(device.registration.device());
                let events = 24..32;
                prop_assert_eq!(&again[..events.start], &image[..events.start]);
                // What is pending and not masked was signalled.
                prop_assert_eq!(again[32..40].to_vec(), image[32..40].to_vec(), "levels");
                prop_assert_eq!(again[56..].to_vec(), image[56..].to_vec(), "the device's masks");
            }
        }
    }
}
