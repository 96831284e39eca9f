//! Bodies of fuzz targets: they do to a model what the bytes of a fuzzer choose. A panic is a
//! finding.
//!
//! ```ignore
//! libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vfiod_testing::fuzz::operations(Mine::new(), bytes));
//! ```

use vfiod_core::dma::Perm;
use vfiod_core::{Device, Errno, Saved};
use vfiod_pci::{Function, Model};

use crate::driver::Driver;
use crate::operations::{Bytes, Choices, Operation, Places};
use crate::saved::{Forms, damage, parse, unsaved};

/// Bytes of guest memory, at address 0: small numbers are what registers hold most often.
const MEMORY: u64 = 0x10_0000;

/// Inputs of up to 299 bytes for a test that does what a fuzz target does. They are the same in each
/// run.
pub fn pseudo_random_inputs(count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut state = 0x2b7e_1516_28ae_d2a6u64;
    let mut number = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count).map(move |_| (0..number() % 300).map(|_| number() as u8).collect())
}

/// Opens a model and performs operations on it that `bytes` choose: reads, writes and resets of
/// BARs and configuration space, with guest memory mapped at address 0.
///
/// # Panics
/// If an operation fails, or if the device does not work after a reset at the end.
pub fn operations(model: impl Model, bytes: &[u8]) {
    let device = Driver::new(model);
    device.enable();
    let _memory = device.map(0, MEMORY, Perm::READ | Perm::WRITE);
    let places = Places::of(&device);
    let mut choices = Bytes(bytes);
    while !choices.0.is_empty() {
        Operation::any(&places, &mut choices).must_succeed(device.file());
    }
    device.reset();
    assert!(![0, 0xffff].contains(&device.config16(0)), "no vendor id after a reset");
}

/// Saves a model in a state that `bytes` choose, damages the text or the image as they choose,
/// restores it to a new model, and goes on with operations. Does nothing with a model that cannot
/// be saved.
///
/// # Panics
/// If a restore panics, or leaves a device on which an operation fails.
pub fn restore<M: Model>(make: impl Fn() -> M, bytes: &[u8]) {
    restore_device(|| Box::new(Function::new(make()).expect("the spec is sound")), bytes);
}

/// The same for a device of any bus.
///
/// # Panics
/// As [`restore`].
pub fn restore_device(make: impl Fn() -> Box<dyn Device>, bytes: &[u8]) {
    let mut choices = Bytes(bytes);
    let device = Driver::of_device(make());
    if unsaved(&device).is_some() {
        return;
    }
    let writes = choices.below(16) as usize;
    let places = Places::of(&device);
    for _ in 0..writes {
        if let Some(write) = Operation::register_write(&places, &mut choices) {
            may_be_refused(&write, &device);
        }
    }
    let Forms { mut text, mut image, mut descriptors } = Forms::of(device.device());
    let damages_image = choices.below(2) == 0 && !image.is_empty();
    for _ in 0..=choices.below(8) {
        if damages_image {
            let at = choices.below(image.len() as u64) as usize;
            image[at] = choices.below(256) as u8;
        } else {
            damage(&mut text, &mut choices);
        }
    }
    let Ok(saved) = parse(&text) else { return };
    let image = damages_image.then_some(image.as_slice());
    let restored = Driver::restored_device(make(), &saved, image, &mut descriptors);
    let Ok(restored) = restored else { return };
    if restored.device().status().failed {
        return;
    }
    let places = Places::of(&restored);
    while !choices.0.is_empty() {
        may_be_refused(&Operation::any(&places, &mut choices), &restored);
    }
    may_be_refused(&Operation::Reset, &restored);
}

/// As [`restore_device`], with the state that goes into a file and is for the next user.
///
/// # Panics
/// If a restore panics, or leaves a device on which an operation fails; if a refused one changes the device.
pub fn restore_portable(make: impl Fn() -> Box<dyn Device>, bytes: &[u8]) {
    let mut choices = Bytes(bytes);
    let device = Driver::of_device(make());
    if unsaved(&device).is_some() {
        return;
    }
    let writes = choices.below(16) as usize;
    let places = Places::of(&device);
    for _ in 0..writes {
        if let Some(write) = Operation::register_write(&places, &mut choices) {
            may_be_refused(&write, &device);
        }
    }
    let Ok(saved) = device.device().save_portable() else { return };
    let mut text = serde_json::to_value(&saved).expect("it can be written as JSON");
    for _ in 0..=choices.below(8) {
        damage(&mut text, &mut choices);
    }
    let Ok(damaged) = parse(&text) else { return };
    if let Some(next) = restore_for_the_next_user(make(), &damaged) {
        let places = Places::of(&next);
        while !choices.0.is_empty() {
            may_be_refused(&Operation::any(&places, &mut choices), &next);
        }
        may_be_refused(&Operation::Reset, &next);
    }
}

/// Restores a state, whatever it is, to a device for its next user, who opens it; `None`: it was refused.
///
/// # Panics
/// If a refusal is not `EINVAL` or has changed the device, or if the device cannot be opened then.
pub fn restore_for_the_next_user(device: Box<dyn Device>, saved: &Saved) -> Option<Driver> {
    let closed = Driver::of_device(device).close();
    let before = closed.device().save_portable();
    if let Err(error) = closed.device().restore_portable(saved) {
        assert_eq!(error.errno(), Errno::INVAL, "{error}");
        let after = closed.device().save_portable();
        if let (Ok(before), Ok(after)) = (before, after) {
            assert_eq!(after, before, "a refused restore changed the device: {error}");
        }
        return None;
    }
    let next = closed.open();
    next.settle();
    (!next.device().status().failed).then_some(next)
}

/// Performs an operation. A device of another bus than PCI may refuse it; nothing else may fail.
fn may_be_refused(operation: &Operation, device: &Driver) {
    if let Err(error) = operation.perform(device.file()) {
        assert_eq!(error.errno(), Errno::INVAL, "{operation:x?}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use vfiod_pci::prelude::*;

    use super::*;
    use crate::operations::Numbers;

    vfiod_pci::image! {
        /// Remembers a word.
        #[derive(Default)]
        struct Word {
            value: u32,
        }
    }

    const REGISTERS: RegisterMap<()> = RegisterMap::new(&[Register::new(0, Widths::W4, ())]);

    impl Model for Word {
        type State = HasState;
        fn spec(&self) -> FunctionSpec {
            FunctionSpec::new(0x1234, 0x0001).class(0xff_00_00).bar(0, Bar::memory32(4096))
        }
        fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
            REGISTERS.read(offset, data, |()| self.value.into());
        }
        fn write(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
            if let Some(((), value)) = REGISTERS.write(offset, data) {
                self.value = value as u32;
            }
        }
        fn reset(&mut self, _cx: &Cx<Self>) {
            *self = Self { value: 0 };
        }
    }

    impl Save for Word {
        const KIND: &'static str = "word";
        const VERSION: u32 = 1;
        type Image = Self;
        fn save(&self) -> Self {
            self.clone()
        }
        fn restore(&mut self, _cx: &Cx<Self>, image: Self) -> Result<()> {
            *self = image;
            Ok(())
        }
    }

    #[test]
    fn any_bytes_are_played() {
        let mut numbers = Numbers(0x0fc1_9dc6_8b8c_d5b5);
        for len in 0..200 {
            let bytes: Vec<u8> = (0..len).map(|_| numbers.below(256) as u8).collect();
            operations(Word::default(), &bytes);
            restore(Word::default, &bytes);
        }
    }
}
