//! Resets, closes and revokes leave nothing behind.

use vfiod_core::{Errno, RegionFlags};
use vfiod_pci::{Model, irq_index};

use super::Subject;
use crate::driver::{CONFIG, Driver};
use crate::operations::{Numbers, regions, write_registers};

const EXPRESS: u8 = 0x10;

/// Device Capabilities: function-level reset (PCIe 7.5.3.3); Device Control: start it.
fn function_reset(device: &Driver) -> Option<u64> {
    let express = device.capability(EXPRESS)?;
    (device.config32(express + 4) & 1 << 28 != 0).then_some(express + 8)
}

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// A reset restores everything that can be read, and deasserts INTx.
    pub fn reset_restores(&self) {
        let device = self.open();
        let power_on = self.snapshot(&device);
        let has_pin = device.file().irq(irq_index::INTX).is_ok_and(|info| info.count > 0);
        let pin = has_pin.then(|| device.interrupt(irq_index::INTX, 0));
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for round in 0..20 {
            write_registers(&device, &mut numbers, 200);
            device.reset();
            self.snapshot(&device).must_be(&power_on, &format!("reset {round}"));
            if let Some(pin) = &pin {
                pin.count();
                device.mask_pin(true);
                device.mask_pin(false);
                assert_eq!(pin.count(), 0, "reset {round}: the pin is still asserted");
            }
        }
    }

    /// A function-level reset, which a guest starts through configuration space, restores everything
    /// that can be read.
    pub fn function_reset_restores(&self) {
        let device = self.open();
        let Some(control) = function_reset(&device) else { return };
        let power_on = self.snapshot(&device);
        let mut numbers = Numbers(0x6a09_e667_f3bc_c908);
        for round in 0..20 {
            write_registers(&device, &mut numbers, 200);
            device.set_config16(control, 1 << 15);
            device.await_function_reset();
            self.snapshot(&device).must_be(&power_on, &format!("function-level reset {round}"));
        }
    }

    /// After a close the next user finds the device as the first one did.
    pub fn opens_again(&self) {
        let mut device = self.open();
        let power_on = self.snapshot(&device);
        let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
        for round in 0..5 {
            device.enable();
            write_registers(&device, &mut numbers, 500);
            device = device.reopen();
            self.snapshot(&device).must_be(&power_on, &format!("open {round}"));
        }
    }

    /// Once the device is unregistered, the file that was open fails with `ENODEV`; a device of the
    /// same name can be registered again.
    pub fn gone_when_unregistered(&self) {
        for _ in 0..3 {
            let device = self.open();
            let (region, _) = regions(&device)[0];
            let mut numbers = Numbers(0x0123_4567_89ab_cdef);
            write_registers(&device, &mut numbers, 100);
            let Driver { file, registration, runtime: _, workers: _workers } = device;
            drop(registration);
            let mut data = [0; 4];
            for error in [
                file.read(region, 0, &mut data).unwrap_err(),
                file.write(CONFIG, 0, &data).unwrap_err(),
                file.reset().unwrap_err(),
                file.shared(region, 0, 4, RegionFlags::READ).unwrap_err(),
            ] {
                assert_eq!(error.errno(), Errno::NODEV);
            }
        }
    }
}
