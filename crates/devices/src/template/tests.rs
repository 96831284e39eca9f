//! What a driver sees of the template.

use vfiod_pci::irq_index::{INTX, MSI};

use super::Template;
use vfiod_testing::Driver;

vfiod_testing::conformance!(Template::power_on());

const ID: u64 = 0x0;
const SCRATCH: u64 = 0x4;
const WRITES: u64 = 0x8;
const INTERRUPT: u64 = 0xc;

#[test]
fn registers_do_what_they_say() {
    let device = Driver::new(Template::power_on());
    assert_eq!(device.read32(0, ID).to_be_bytes(), *b"vfio");
    device.write32(0, SCRATCH, 7);
    device.write32(0, SCRATCH, u32::MAX);
    assert_eq!((device.read32(0, SCRATCH), device.read32(0, WRITES)), (u32::MAX, 2));
    for read_only in [ID, WRITES] {
        let before = device.read32(0, read_only);
        device.write32(0, read_only, !before);
        assert_eq!(device.read32(0, read_only), before);
    }
    device.write8(0, SCRATCH, 1);
    assert_eq!((device.read32(0, SCRATCH), device.read32(0, WRITES)), (u32::MAX, 2));
    assert_eq!(device.read32(0, 0x10), u32::MAX, "no register");
}

#[test]
fn interrupts_by_pin_and_by_message() {
    let device = Driver::new(Template::power_on());
    let pin = device.interrupt(INTX, 0);
    device.write32(0, INTERRUPT, 1);
    assert_eq!((pin.count(), device.read32(0, INTERRUPT)), (1, 1));
    device.mask_pin(false);
    assert_eq!(pin.count(), 1, "not acknowledged");
    device.write32(0, INTERRUPT, 0);
    device.mask_pin(false);
    assert_eq!(pin.count(), 0);
    let message = device.interrupt(MSI, 0);
    device.write32(0, INTERRUPT, 1);
    assert_eq!(message.count(), 1);
}
