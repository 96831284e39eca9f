//! What every PCI device must do.

use checksumd::{Checksum, Options};

vfiod_testing::conformance!(Checksum::power_on(Options::default()));
