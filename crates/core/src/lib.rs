//! The VFIO device core in user space.

pub mod device;
pub mod dma;
pub mod error;
pub mod event;
pub mod file;
pub mod irq;
pub mod memory;
pub mod region;
pub mod registry;
pub mod set;
mod sync;

pub use device::{Context, Description, Device, DeviceFlags, DeviceId, ResetCause};
pub use error::{Errno, Error, Result};
pub use event::{Event, Observer};
pub use file::{File, FileId, Owner};
pub use irq::{IrqFlags, IrqIndex, IrqInfo};
pub use region::{Region, RegionFlags, RegionIndex};
pub use registry::{DeviceRef, DeviceSpec, OpenPolicy, Registration, Registry, StatePolicy};
pub use set::{SetId, SetObject};
