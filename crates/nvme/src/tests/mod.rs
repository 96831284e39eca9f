//! Tests of the controller, by a host in process.

mod admin;
mod bus_mastering;
mod copy;
mod documents;
mod enable;
mod events;
mod failures;
mod format;
mod fused;
mod held;
mod io;
mod kept;
mod limits;
mod mapped;
mod namespaces;
mod operations;
mod options;
mod power;
mod queues;
mod rates;
mod reports;
mod rig;
mod saved;
mod sgl;
mod shadow;
mod shared;
mod short;
mod shown;
mod statuses;
mod table;

use vfiod_testing::Driver;

/// Enables the controller, whose queues are at address 0, and submits a command: what it reads there are
/// zeroes, or nothing.
fn submit(device: &Driver) {
    device.write32(0, 0x24, 0x000f_000f);
    device.write64(0, 0x28, 0);
    device.write64(0, 0x30, 0x1000);
    device.write32(0, 0x14, rig::ENABLE);
    device.write32(0, 0x1000, 1);
}

vfiod_testing::conformance!(rig::nvme(), dma = submit);

/// With doorbells that the host maps.
mod with_mapped_doorbells {
    use super::{mapped, submit};

    vfiod_testing::conformance!(mapped::nvme(), dma = submit);
}
