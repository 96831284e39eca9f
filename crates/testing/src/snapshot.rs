//! Everything of a device that can be read, to be compared.

use vfiod_core::{ReadEffect, RegionIndex};

use crate::driver::{CONFIG, Driver};

/// How much of a BAR is compared, bytes.
const COMPARED: u64 = 4096;

/// What was read of a device, and where.
pub(crate) struct Snapshot {
    /// Region, offset and width of the read that each byte came with.
    places: Vec<(u32, u64, usize)>,
    bytes: Vec<u8>,
}

impl Snapshot {
    /// Reads configuration space, and each BAR in every width, up to 4 KiB. Reads that change
    /// something come last, so that the others do not show it. Leaves out the places
    /// (BAR, offset) in `unstable`, and the bits that the device declares volatile.
    pub(crate) fn take(device: &Driver, unstable: &[(u32, u64)]) -> Self {
        let mut all = vec![0; device.size(CONFIG.0) as usize];
        device.file().read(CONFIG, 0, &mut all).expect("the whole space can be read at once");
        let places = (0..all.len() as u64).map(|offset| (CONFIG.0, offset, 1));
        let mut snapshot = Self { places: places.collect(), bytes: all };
        let (changing, others): (Vec<_>, _) = accesses(device, unstable)
            .into_iter()
            .map(|place @ (bar, offset, width)| {
                let traits = device.file().device().read_traits(RegionIndex(bar), offset, width);
                (place, traits.expect("it is within the BAR"))
            })
            .partition(|(_, traits)| traits.effect == ReadEffect::Changes);
        for ((bar, offset, width), traits) in others.into_iter().chain(changing) {
            let mut data = vec![0; width];
            device.file().read(RegionIndex(bar), offset, &mut data).expect("a BAR can be read");
            snapshot.places.extend(data.iter().map(|_| (bar, offset, width)));
            let fixed = (!traits.volatile).to_le_bytes();
            snapshot.bytes.extend(data.iter().zip(fixed).map(|(byte, fixed)| byte & fixed));
        }
        snapshot
    }

    /// Fails, naming the first place that differs, unless both are the same.
    pub(crate) fn must_be(&self, expected: &Self, when: &str) {
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

/// Every aligned access of 1, 2, 4 and 8 bytes to the BARs: (BAR, offset, width).
fn accesses(device: &Driver, unstable: &[(u32, u64)]) -> Vec<(u32, u64, usize)> {
    let mut found = Vec::new();
    for (bar, size) in device.bars() {
        for width in [1usize, 2, 4, 8] {
            for offset in (0..size.min(COMPARED)).step_by(width) {
                let end = offset + width as u64;
                let touches =
                    |place: &(u32, u64)| place.0 == bar && (offset..end).contains(&place.1);
                if end <= size && !unstable.iter().any(touches) {
                    found.push((bar, offset, width));
                }
            }
        }
    }
    found
}
