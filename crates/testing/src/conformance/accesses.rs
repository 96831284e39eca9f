//! Accesses: every size and alignment, and places without registers.

use vfiod_core::{Errno, RegionIndex};
use vfiod_pci::Model;

use super::Subject;
use crate::operations::regions;

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// Every size and alignment succeeds, and none breaks the device.
    pub fn any_access(&self) {
        let device = self.open();
        for (region, size) in regions(&device) {
            for len in [1, 2, 3, 4, 5, 7, 8, 9, 16, 64] {
                for offset in (0..256).chain(size.saturating_sub(80)..size) {
                    if offset + len > size {
                        continue;
                    }
                    let mut data = vec![0; len as usize];
                    let place = format!("{len} bytes at {offset:#x} of {region}");
                    let read = device.file().read(region, offset, &mut data);
                    read.unwrap_or_else(|error| panic!("a read of {place}: {error}"));
                    let written = device.file().write(region, offset, &data);
                    written.unwrap_or_else(|error| panic!("a write of {place}: {error}"));
                }
            }
            // A whole region at once, as QEMU reads configuration space.
            let mut whole = vec![0; size.min(2 << 20) as usize];
            device.file().read(region, 0, &mut whole).expect("all of it");
        }
    }

    /// An access outside a region, or to a region that is not there, fails with `EINVAL`.
    pub fn outside(&self) {
        let device = self.open();
        let mut data = [0; 4];
        let mut refused = |region, offset| {
            let error = device.file().read(region, offset, &mut data).unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL, "a read of {region} at {offset:#x}");
            let error = device.file().write(region, offset, &data).unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL, "a write of {region} at {offset:#x}");
        };
        for (region, size) in regions(&device) {
            for offset in [size - 3, size, size + 4, u64::MAX - 3, u64::MAX] {
                refused(region, offset);
            }
        }
        for absent in (0..6).filter(|&bar| device.size(bar) == 0).chain([6, 8, 9, u32::MAX]) {
            refused(RegionIndex(absent), 0);
        }
    }
}
