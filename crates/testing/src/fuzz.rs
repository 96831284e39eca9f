//! Bodies of fuzz targets: they do to a model what the bytes of a fuzzer choose. A panic is a
//! finding.
//!
//! ```ignore
//! libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vfiod_testing::fuzz::operations(Mine::new(), bytes));
//! ```

use vfiod_core::dma::Perm;
use vfiod_pci::Model;

use crate::driver::Driver;
use crate::operations::{Bytes, Operation, regions};

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
