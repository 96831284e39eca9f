//! Tests of the bench device.

mod measure;
mod queues;
mod rig;

use vfiod_testing::Driver;

use super::{Bench, BenchOptions};

/// What an operation that is measured leaves behind.
macro_rules! conformance {
    ($name:ident, $model:expr) => {
        vfiod_testing::conformance!(
            $name,
            $model,
            measured = ["/measurement/result_ns", "/measurement/errors", "/measurement/check"],
            dma = enable_queue,
        );
    };
}

/// Enables queue 5, whose rings are at address 0: it looks for commands.
fn enable_queue(device: &Driver) {
    for (register, value) in [(0x00, 0), (0x08, 0x1000), (0x10, 16), (0x18, 1)] {
        device.write64(2, 0x2000 + 5 * 64 + register, value);
    }
}

conformance!(shared_memory, Bench::new(BenchOptions::default()));
conformance!(own_memory, Bench::new(BenchOptions { shared: false, ..BenchOptions::default() }));
