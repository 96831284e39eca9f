//! What every PCI device must do.

use checksumd::{Checksum, Options};

vfiod_testing::conformance!(
    Checksum::power_on(Options::default()),
    dma = |device| device.write32(0, 0x08, 4096), // LENGTH starts a sum at ADDRESS 0
);
