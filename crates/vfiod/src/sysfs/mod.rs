//! The part of the kernel's sysfs that mdevctl reads and writes, as a FUSE file system.
//!
//! ```text
//! bus/mdev/devices/<uuid>                     → the device's directory
//! class/mdev_bus/<parent>                     → the parent's directory
//! devices/virtual/vfiod/<parent>/
//!     mdev_supported_types/<type>/
//!         name, description, device_api, available_instances          0444
//!         create                              takes a UUID            0200
//!         devices/<uuid>                      → the device's directory
//!     <uuid>/
//!         mdev_type                           → its type's directory
//!         subsystem                           → bus/mdev
//!         remove                              takes a number; 0 does nothing  0200
//!         <attribute>                         0444 or 0644
//! ```
//!
//! The errno that the bus answers with is the errno that the writer gets; the sentence is in the
//! log. Nothing is cached, in the kernel or here: every look shows the bus as it is.
//!
//! It is mounted on `sys` in a directory that is to be `MDEVCTL_ENV_ROOT`; what else mdevctl
//! expects there is made as well ([`root`]).
//!
//! # Who may mount and use it
//! Root mounts it by itself, and it is then used as sysfs is: everybody may read, root may write.
//! Another user needs `fusermount3` and is the only one who sees it.
//!
//! # What it does not implement
//! - Events: no inotify, no uevents.
//! - The kernel answers a writer's signal; here a write to `remove` that waits for a device's
//!   users cannot be interrupted, so [`MdevBus::remove`] should end in bounded time.
//! - What the kernel's directories have besides: `power`, `uevent`, `driver`, `iommu_group`.

mod files;
mod filesystem;
mod inodes;
mod manager;
mod mount;
mod root;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use self::mount::View;

use uuid::Uuid;
use vfiod_core::Result;
use vfiod_mdev::{Instance, TypeStatus};

/// What the file system shows and asks. Methods that only look are called often, for each
/// component of a path, and should not block; the others are called by a thread of their own.
pub(crate) trait MdevBus: Send + Sync + 'static {
    /// Names of parents.
    fn parents(&self) -> Vec<String>;

    /// Types of a parent; `None`: there is no such parent.
    fn types(&self, parent: &str) -> Option<Vec<TypeStatus>>;

    /// Every instance.
    fn instances(&self) -> Vec<Instance>;

    /// An instance.
    fn instance(&self, uuid: Uuid) -> Option<Instance>;

    /// Creates an instance, as the bus does without being told more.
    ///
    /// # Errors
    /// Those of [`vfiod_mdev::Bus::create`].
    fn create(&self, parent: &str, type_id: &str, uuid: Uuid) -> Result<()>;

    /// Removes an instance. Whoever wrote cannot be killed before this returns.
    ///
    /// # Errors
    /// Those of [`vfiod_mdev::Bus::remove`].
    fn remove(&self, uuid: Uuid) -> Result<()>;

    /// Sets an attribute of an instance.
    ///
    /// # Errors
    /// Those of [`Instance::set_attribute`].
    fn set_attribute(&self, uuid: Uuid, name: &str, value: &str) -> Result<()>;
}
