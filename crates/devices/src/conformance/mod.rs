//! What every PCI device must do, whatever it is: apply it with one line beside the model.
//!
//! ```
//! # use vfiod_devices::template::Template as MyDevice;
//! #[cfg(test)]
//! vfiod_devices::conformance!(MyDevice::default());
//! // The same with a name, where a model is to be checked with several options:
//! #[cfg(test)]
//! vfiod_devices::conformance!(plain, MyDevice::default());
//! // Registers (BAR, offset) whose *read* does something, or that change by themselves, are
//! // left alone where what is read is compared:
//! #[cfg(test)]
//! vfiod_devices::conformance!(quiet, MyDevice::default(), side_effects = [(0, 0x8), (0, 0xc)]);
//! # fn main() {}
//! ```
//!
//! Each check is a test of its own. It runs the device in a registry of its own, through the
//! same [`vfiod_core::File`] that a connection holds. Random operations are the same each time.
//!
//! | module | what is checked |
//! | --- | --- |
//! | `configuration` | header, capabilities, sizes of BARs, bits that cannot be written |
//! | `accesses` | every size and alignment, and places that are not there |
//! | `state` | that resets, closes and revokes leave nothing behind |
//! | `surroundings` | random operations while memory, interrupts and masks come and go |

mod accesses;
mod configuration;
mod state;
mod surroundings;

use vfiod_core::{File, RegionIndex};
use vfiod_pci::Model;

use crate::driver::{CONFIG, Driver};

/// How much of a BAR is compared.
const WINDOW: u64 = 4096;
/// Where most devices have their registers.
const BUSY: u64 = 0x100;

/// A model under test and what must be known of it.
pub struct Subject<F> {
    /// Makes the model.
    pub make: F,
    /// Registers (BAR, offset) whose read does something, or that change by themselves.
    pub side_effects: &'static [(u32, u64)],
}

/// Applies the suite to a model: `conformance!(model)`, `conformance!(name, model)`, either with
/// `side_effects = [(bar, offset), …]`. The model is an expression, evaluated for each check.
#[macro_export]
macro_rules! conformance {
    ($model:expr, side_effects = [$($place:expr),* $(,)?]) => {
        $crate::conformance!(conformance, $model, side_effects = [$($place),*]);
    };
    ($name:ident, $model:expr, side_effects = [$($place:expr),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            use $crate::conformance::Subject;

            $crate::conformance!(@tests $model, [$($place),*],
                header capabilities bar_sizes read_only_bits interrupts_agree
                any_access outside
                reset_restores function_reset_restores opens_again gone_when_unregistered
                random_operations dma_without_memory memory_comes_and_goes interrupts_masked);
        }
    };
    ($name:ident, $model:expr) => {
        $crate::conformance!($name, $model, side_effects = []);
    };
    ($model:expr) => {
        $crate::conformance!(conformance, $model, side_effects = []);
    };
    (@tests $model:expr, $places:tt, $($name:ident)*) => {
        $($crate::conformance!(@test $model, $places, $name);)*
    };
    (@test $model:expr, $places:tt, $name:ident) => {
        #[test]
        fn $name() {
            Subject { make: || $model, side_effects: &$places }.$name();
        }
    };
}

impl<M: Model + 'static, F: Fn() -> M> Subject<F> {
    fn open(&self) -> Driver {
        Driver::new((self.make)())
    }

    /// Everything that can be read without doing something by it.
    fn snapshot(&self, device: &Driver) -> Snapshot {
        let mut all = vec![0; device.size(CONFIG.0) as usize];
        device.file().read(CONFIG, 0, &mut all).expect("the whole space can be read at once");
        let places = (0..all.len() as u64).map(|offset| (CONFIG.0, offset, 1));
        let mut snapshot = Snapshot { places: places.collect(), bytes: all };
        for (bar, size) in device.bars() {
            for width in [1, 2, 4, 8] {
                for offset in (0..size.min(WINDOW)).step_by(width) {
                    let past = offset + width as u64 > size;
                    let touched = |place: &(u32, u64)| {
                        place.0 == bar && (offset..offset + width as u64).contains(&place.1)
                    };
                    if past || self.side_effects.iter().any(touched) {
                        continue;
                    }
                    let mut data = vec![0; width];
                    device
                        .file()
                        .read(RegionIndex(bar), offset, &mut data)
                        .expect("a BAR can be read");
                    snapshot.places.extend(data.iter().map(|_| (bar, offset, width)));
                    snapshot.bytes.extend(data);
                }
            }
        }
        snapshot
    }
}

/// What was read, and where.
struct Snapshot {
    /// Region, offset and width of the read that each byte came with.
    places: Vec<(u32, u64, usize)>,
    bytes: Vec<u8>,
}

impl Snapshot {
    fn must_be(&self, expected: &Self, when: &str) {
        assert_eq!(self.bytes.len(), expected.bytes.len(), "{when}: sizes changed");
        let differs = self.bytes.iter().zip(&expected.bytes).position(|(a, b)| a != b);
        if let Some(at) = differs {
            let (region, offset, width) = self.places[at];
            panic!(
                "{when}: region {region}, {width} bytes at {offset:#x}: {:#04x} instead of {:#04x}",
                self.bytes[at], expected.bytes[at]
            );
        }
    }
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The regions of a device, BARs and configuration space, with their sizes.
fn regions(device: &Driver) -> Vec<(RegionIndex, u64)> {
    let bars = device.bars().into_iter().map(|(bar, size)| (RegionIndex(bar), size));
    bars.chain([(CONFIG, device.size(CONFIG.0))]).collect()
}

/// A write of a register's size, aligned, mostly where registers are.
fn scribble(device: &Driver, numbers: &mut Numbers, times: usize) {
    let regions = regions(device);
    for _ in 0..times {
        let (region, size) = regions[numbers.below(regions.len() as u64) as usize];
        let len = 1u64 << numbers.below(4);
        let offset = numbers.below(size.min(BUSY)) & !(len - 1);
        // Small numbers mean something more often.
        let value = if numbers.below(2) == 0 { numbers.next() } else { numbers.below(8) };
        if offset + len <= size {
            device.write(region, offset, &value.to_le_bytes()[..len as usize]);
        }
    }
}

/// Any operation anywhere: 1 to 8 bytes, aligned or not. All of them must succeed.
fn anything(file: &File, regions: &[(RegionIndex, u64)], numbers: &mut Numbers) {
    let (region, size) = regions[numbers.below(regions.len() as u64) as usize];
    let reach = if numbers.below(4) == 0 { size } else { size.min(BUSY) };
    let offset = numbers.below(reach);
    let len = (1 + numbers.below(8)).min(size - offset) as usize;
    let mut data = numbers.next().to_le_bytes();
    let data = &mut data[..len];
    let (what, outcome) = match numbers.below(64) {
        0 => ("a reset", file.reset()),
        1..32 => ("a read", file.read(region, offset, data)),
        _ => ("a write", file.write(region, offset, data)),
    };
    outcome
        .unwrap_or_else(|error| panic!("{what}, {len} bytes at {offset:#x} of {region}: {error}"));
}
