//! The part of the kernel's sysfs that mdevctl and libvirt read and write, as a FUSE file system.
//!
//! ```text
//! bus/mdev/devices/<uuid>                     → the device's directory
//! class/mdev_bus/<parent>                     → the parent's directory
//! class/vfiod/<parent>                        → the parent's directory
//! devices/virtual/vfiod/<parent>/
//!     uevent                              empty                   0444
//!     subsystem                           → class/vfiod
//!     mdev_supported_types/<type>/
//!         name, description, device_api, available_instances          0444
//!         create                              takes a UUID            0200
//!         devices/<uuid>                      → the device's directory
//!     <uuid>/
//!         mdev_type                           → its type's directory
//!         subsystem                           → bus/mdev
//!         uevent                              empty                   0444
//!         iommu_group                         → kernel/iommu_groups/<number>
//!         remove                              takes a number; 0 does nothing  0200
//!         <attribute>                         0444 or 0644
//! kernel/iommu_groups/<number>/
//!     devices/<uuid>                      → the device's directory
//! ```
//!
//! A group is no IOMMU group of the kernel's, and its number is that of vfiod's device: libvirt lists no
//! instance without one.
//!
//! The writer gets the errno that the bus returns; the sentence is in the
//! log. Nothing is cached, in the kernel or here: every look shows the bus as it is.
//!
//! It is mounted on `sys` in a directory that is to be `MDEVCTL_ENV_ROOT`; what else mdevctl
//! expects there is made as well (`root`).
//!
//! # Who may mount and use it
//! Root mounts it by itself, and it is then used as sysfs is: everybody may read, root may write.
//! Another user needs `fusermount3` and is the only one who sees it.
//!
//! # What it does not implement
//! - Events: no inotify, no uevents.
//! - The kernel answers a writer's signal; here a write to `remove` that waits for a device's
//!   users cannot be interrupted, so [`MdevBus::remove`] should end in bounded time.
//! - What the kernel's directories have besides: `power`, `driver`; writes to `uevent`.

mod failed;
mod files;
mod filesystem;
mod inodes;
mod manager;
mod mdev_bus;
mod mount;
mod root;
#[cfg(test)]
mod tests;
mod tree;

pub use self::mdev_bus::MdevBus;
pub use self::mount::{MountPoint, MountedView, View, check, unmount};
