//! Saved state: a restored device cannot be told from the one that was saved, and what is restored
//! may come from anybody.

use std::path::Path;

use serde_json::Value;
use vfiod_core::{DescriptorTable, Errno, Error, RegionIndex, Result, StatePolicy};
use vfiod_pci::Model;

use super::Subject;
use crate::driver::Driver;
use crate::operations::{Choices, Numbers, Operation, Places, write_registers};
use crate::saved::{DEVICE, Forms, INTERRUPTS, MODEL, damage, parse, unsaved};

/// The environment variable that makes the check of golden files write one.
const WRITE_GOLDEN: &str = "VFIOD_GOLDEN";

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// In the middle of random operations, interrupts being armed and masked among them, the device is
    /// saved, and each form is restored to a fresh device. All of them go on with the same operations,
    /// read the same, and have the same vectors masked and pending. A model that cannot be saved says
    /// why.
    pub fn restored_device_goes_on(&self) {
        // Without workers, so that work goes on at the same places on each of them.
        let mut device = Driver::without_workers((self.make)());
        if let Some(why) = unsaved(&device) {
            assert!(!why.contains(": ("), "it does not say why: {why}");
            return;
        }
        let places = Places::of(&device);
        let mut numbers = Numbers(0x3c6e_f372_fe94_f82b);
        for round in 0..40 {
            for _ in 0..numbers.below(100) {
                Self::operation(&places, &mut numbers).must_succeed(device.file());
            }
            let Forms { text, image, mut descriptors } = Forms::of(device.file().device());
            let copies =
                [("text", None), ("image", Some(image.as_slice()))].map(|(form, image)| {
                    let saved = parse(&text).expect("what was saved can be read");
                    let copy = Driver::restored((self.make)(), &saved, image, &mut descriptors);
                    let copy =
                        copy.unwrap_or_else(|error| panic!("round {round}, {form}: {error}"));
                    (format!("round {round}, restored from {form}"), copy)
                });
            // What was under way ends in each of them, the same way.
            device.settle();
            let settled = Forms::of(device.file().device());
            for (when, copy) in &copies {
                copy.settle();
                let again = Forms::of(copy.file().device());
                self.must_be_the_same(&again, &settled, when);
            }
            for step in 0..50 {
                let operation = Self::operation(&places, &mut numbers);
                let expected = self.observe(&device, &operation);
                for (when, copy) in &copies {
                    let found = self.observe(copy, &operation);
                    assert_eq!(found, expected, "{when}, step {step}: {operation:x?}");
                }
                if step % 5 == 4 {
                    device.settle();
                    copies.iter().for_each(|(_, copy)| copy.settle());
                }
            }
            let expected = self.snapshot(&device);
            let interrupts = Forms::of(device.file().device()).text.pointer(INTERRUPTS).cloned();
            for (when, copy) in &copies {
                self.snapshot(copy).must_be(&expected, when);
                let found = Forms::of(copy.file().device()).text;
                assert_eq!(found.pointer(INTERRUPTS), interrupts.as_ref(), "{when}: vectors");
            }
            let [(_, from_text), (_, from_image)] = copies;
            device = if round % 2 == 0 { from_text } else { from_image };
        }
    }

    /// A state of another kind, of a newer version, or damaged is refused, and the message says
    /// what was found and what can be read; the device is as it was. A state that is accepted,
    /// whatever it is, leaves a device that works.
    pub fn hostile_state_is_refused(&self) {
        let device = self.open();
        if unsaved(&device).is_some() {
            return;
        }
        let mut numbers = Numbers(0xa54f_f53a_5f1d_36f1);
        write_registers(&device, &mut numbers, 200);
        let Forms { text, image, mut descriptors } = Forms::of(device.file().device());
        for place in ["", DEVICE, MODEL] {
            let Some(saved) = text.pointer(place).filter(|saved| saved.is_object()) else {
                continue; // a model without a state
            };
            let (kind, version) = (saved["kind"].as_str().expect("a kind"), &saved["version"]);
            let mut changed = |field: &str, value: Value| {
                let mut text = text.clone();
                text.pointer_mut(place).expect("it is there")[field] = value;
                self.must_refuse(&text, None, &mut descriptors)
            };
            let error = changed("kind", "teapot".into());
            assert!(error.contains("teapot") && error.contains(kind), "{error}");
            let error = changed("version", 4711.into());
            assert!(error.contains("4711") && error.contains(&version.to_string()), "{error}");
            let mut unknown = saved["state"].clone();
            unknown["teapot"] = 1.into();
            changed("state", unknown);
            changed("state", Value::Null);
        }
        if let Some((_, shorter)) = image.split_first() {
            self.must_refuse(&text, Some(shorter), &mut descriptors);
        }
        let longer = [image.as_slice(), &[0]].concat();
        self.must_refuse(&text, Some(&longer), &mut descriptors);
        for _ in 0..200 {
            let mut bytes = image.clone();
            for _ in 0..=numbers.below(3) {
                let at = numbers.below(bytes.len().max(1) as u64) as usize;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << numbers.below(8);
                }
            }
            self.survives(&text, Some(&bytes), &mut descriptors, &mut numbers);
            let mut text = text.clone();
            damage(&mut text, &mut numbers);
            self.survives(&text, None, &mut descriptors, &mut numbers);
        }
    }

    /// The crate of the model has a golden file `KIND-VERSION.json` for each version of its state,
    /// and each can be restored. If the environment has `VFIOD_GOLDEN=write`, the file of the
    /// current version is written if it is missing.
    pub fn golden_files_can_be_restored(&self, directory: &Path) {
        let device = self.open();
        if unsaved(&device).is_some() {
            return;
        }
        write_registers(&device, &mut Numbers(0x510e_527f_ade6_82d1), 300);
        let Forms { text, mut descriptors, .. } = Forms::of(device.file().device());
        let Some(own) = text.pointer(MODEL).filter(|own| own.is_object()) else { return };
        let kind = own["kind"].as_str().expect("a kind");
        let current = own["version"].as_u64().expect("a version");
        let write = std::env::var(WRITE_GOLDEN).is_ok_and(|value| value == "write");
        for version in 1..=current {
            let path = directory.join(format!("{kind}-{version}.json"));
            if write && version == current && !path.exists() {
                let pretty = serde_json::to_string_pretty(own).expect("JSON");
                std::fs::create_dir_all(directory).expect("the directory can be made");
                std::fs::write(&path, pretty + "\n").expect("the file can be written");
            }
            let path = path.display();
            let golden = std::fs::read_to_string(directory.join(format!("{kind}-{version}.json")))
                .unwrap_or_else(|error| panic!("{path}: {error}; {WRITE_GOLDEN}=write makes it"));
            let golden: Value =
                serde_json::from_str(&golden).unwrap_or_else(|error| panic!("{path}: {error}"));
            let mut text = text.clone();
            *text.pointer_mut(MODEL).expect("it is there") = golden.clone();
            let saved = parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
            // Its tasks do not run before it is saved again.
            let restored = Driver::restored((self.make)(), &saved, None, &mut descriptors);
            let restored = restored.unwrap_or_else(|error| panic!("{path}: {error}"));
            if version == current {
                let again = Forms::of(restored.file().device()).text;
                assert_eq!(again.pointer(MODEL), Some(&golden), "{path}");
            }
        }
    }

    /// Fails unless two devices have the same state, but for what the model measures.
    pub(super) fn must_be_the_same(&self, found: &Forms, expected: &Forms, when: &str) {
        let state = |forms: &Forms, place| {
            let mut state = forms.text.pointer(place).cloned();
            for measured in self.measured {
                // The place is within the state of the model.
                let within =
                    MODEL.strip_prefix(place).map(|model| format!("{model}/state{measured}"));
                let found = within.and_then(|at| state.as_mut()?.pointer_mut(&at));
                if let Some(value) = found {
                    *value = Value::Null;
                }
            }
            state
        };
        for place in [DEVICE, INTERRUPTS] {
            assert_eq!(state(found, place), state(expected, place), "{when}: {place}");
        }
        if self.measured.is_empty() {
            assert!(found.image == expected.image, "{when}: images differ");
        }
    }

    /// Performs an operation. Returns what was read, without the bits that are not compared.
    fn observe(&self, device: &Driver, operation: &Operation) -> Vec<u8> {
        let (traits, place) = match *operation {
            Operation::Read { region, offset, len } => {
                let traits = device.file().device().read_traits(region, offset, len);
                (traits.expect("it is within the region"), Some((region, offset, len)))
            }
            _ => Default::default(),
        };
        let mut data = operation.must_succeed(device.file());
        let unstable = |&(bar, at): &(u32, u64)| {
            let (region, offset, len) = place.unwrap_or((RegionIndex(u32::MAX), 0, 0));
            bar == region.0 && (offset..offset + len as u64).contains(&at)
        };
        if self.unstable.iter().any(unstable) {
            data.clear();
        }
        for (byte, volatile) in data.iter_mut().zip(traits.volatile.to_le_bytes()) {
            *byte &= !volatile;
        }
        data
    }

    /// Restores a state that must be refused with `EINVAL`. Returns the message.
    fn must_refuse(
        &self,
        text: &Value,
        image: Option<&[u8]>,
        descriptors: &mut DescriptorTable,
    ) -> String {
        let error = self.restore(text, image, descriptors).err();
        let error = error.unwrap_or_else(|| panic!("accepted: {text}, image {image:x?}"));
        assert_eq!(error.errno(), Errno::INVAL, "{error}");
        error.to_string()
    }

    /// Restores a state that may be refused. If it is accepted, the device must work.
    fn survives(
        &self,
        text: &Value,
        image: Option<&[u8]>,
        descriptors: &mut DescriptorTable,
        numbers: &mut Numbers,
    ) {
        let Ok(Some(device)) = self.restore(text, image, descriptors) else { return };
        if device.file().device().status().failed {
            return; // as the state said
        }
        let places = Places::of(&device);
        for _ in 0..20 {
            Operation::any(&places, numbers).must_succeed(device.file());
        }
        device.reset();
    }

    /// Restores a state to an idle device with another state, which must still be there if the
    /// restore is refused. Returns the open device, or `None` if the state has no file.
    fn restore(
        &self,
        text: &Value,
        image: Option<&[u8]>,
        descriptors: &mut DescriptorTable,
    ) -> Result<Option<Driver>> {
        let saved = parse(text)
            .map_err(|error| Error::new(Errno::INVAL, format!("not a saved state: {error}")))?;
        let device = Driver::with_policy((self.make)(), StatePolicy::Retain);
        write_registers(&device, &mut Numbers(0x9b05_688c_2b3e_6c1f), 20);
        // Once more, as an open and a close may change what the first ones did not.
        let Driver { file, registration, runtime, workers } = device.reopen();
        drop(file);
        let before = Forms::of(registration.device()).image;
        match registration.device().restore(&saved, image, descriptors) {
            Ok(mut files) => {
                Ok(files.pop().map(|file| Driver { file, registration, runtime, workers }))
            }
            Err(error) => {
                let after = Forms::of(registration.device()).image;
                assert!(after == before, "a refused restore changed the device: {error}");
                Err(error)
            }
        }
    }

    /// Any operation; every second one writes a register.
    pub(super) fn operation(places: &Places, numbers: &mut Numbers) -> Operation {
        match Operation::register_write(places, numbers) {
            Some(write) if numbers.below(2) == 0 => write,
            _ => Operation::any(places, numbers),
        }
    }
}
