//! Every command: a file each. `any_cut` and `saved` say the same of all of them: how the input
//! is cut, and a save and restore between any two events, change nothing.

#![allow(clippy::unwrap_used)]

mod any_cut;
mod deadline;
mod device_feature;
mod device_info;
mod device_reset;
mod dma_map;
mod dma_transfers;
mod dma_unmap;
mod driver;
mod irq_info;
mod large_write;
mod migration;
mod order;
mod region_info;
mod region_io_fds;
mod region_read;
mod region_write;
mod region_write_multi;
mod saved;
mod set_irqs;
mod stream;
mod version;
