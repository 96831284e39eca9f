//! Bodies of fuzz targets: they do to a model what the bytes of a fuzzer choose. A panic is a
//! finding.
//!
//! ```ignore
//! libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vfiod_testing::fuzz::operations(Mine::new(), bytes));
//! ```

use vfiod_core::DescriptorTable;
use vfiod_core::dma::Perm;
use vfiod_pci::Model;

use crate::driver::Driver;
use crate::operations::{Bytes, Choices, Operation, regions, write_registers};
use crate::saved::{Forms, damage, parse, unsaved};

/// Bytes of guest memory, at address 0: small numbers are what registers hold most often.
const MEMORY: u64 = 0x10_0000;

/// Opens a model and performs operations on it that `bytes` choose: reads, writes and resets of
/// BARs and configuration space, with guest memory mapped at address 0.
///
/// # Panics
/// If an operation fails, or if the device does not work after a reset at the end.
pub fn operations(model: impl Model, bytes: &[u8]) {
    let device = Driver::new(model);
    device.enable();
    let _memory = device.map(0, MEMORY, Perm::READ | Perm::WRITE);
    let regions = regions(&device);
    let mut choices = Bytes(bytes);
    while !choices.0.is_empty() {
        Operation::any(&regions, &mut choices).must_succeed(device.file());
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
    let mut choices = Bytes(bytes);
    let device = Driver::without_workers(make());
    if unsaved(&device).is_some() {
        return;
    }
    let writes = choices.below(16) as usize;
    write_registers(&device, &mut choices, writes);
    let Forms { mut text, mut image, .. } = Forms::of(device.device());
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
    let mut descriptors = DescriptorTable::new();
    let Ok(restored) = Driver::restored(make(), &saved, image, &mut descriptors) else { return };
    if restored.device().status().failed {
        return;
    }
    let regions = regions(&restored);
    while !choices.0.is_empty() {
        Operation::any(&regions, &mut choices).must_succeed(restored.file());
    }
    restored.reset();
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
