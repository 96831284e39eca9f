//! The VFIO device core in user space.

mod contain;
pub mod device;
pub mod dma;
pub mod error;
pub mod event;
pub mod file;
pub mod irq;
mod lifecycle;
pub mod memory;
#[cfg(all(test, any(shuttle, loom)))]
mod model;
mod mutation;
mod patience;
pub mod region;
mod registered;
pub mod registry;
pub mod set;
mod sync;

pub use device::{Context, Description, Device, DeviceFlags, DeviceId, ResetCause};
pub use error::{Errno, Error, Result};
pub use event::{Event, Observer};
pub use file::{File, FileId, Owner};
pub use irq::{IrqFlags, IrqIndex, IrqInfo};
pub use region::{Region, RegionFlags, RegionIndex};
pub use registry::{
    DeviceRef, DeviceSpec, OpenPolicy, Registration, Registry, StatePolicy, Status,
};
pub use set::{SetId, SetObject};
