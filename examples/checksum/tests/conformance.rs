//! What every PCI device must do.

use checksumd::Checksum;

vfiod_testing::conformance!(Checksum::default());
