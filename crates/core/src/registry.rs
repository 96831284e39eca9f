//! The registry: every device of a process, and the way to open one.

use std::sync::Arc;
use std::time::Duration;

use crate::device::{Description, Device, DeviceId};
use crate::error::Result;
use crate::event::Observer;
use crate::file::{File, Owner};
use crate::set::SetId;

/// How many files a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OpenPolicy {
    /// One; a second open gets `EINVAL` (the kernel's cdev path).
    #[default]
    Single,
    /// Any number of one owner; another owner gets `EBUSY` (the kernel's group path).
    Multi,
}

/// What happens to a device's state between its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StatePolicy {
    /// The first open resets the device.
    #[default]
    Reset,
    /// State is kept, so that a client can come back to it.
    Retain,
}

/// How a device is registered.
#[derive(Clone, Debug, Default)]
pub struct DeviceSpec {
    /// The device's name, unique in its registry (`EEXIST`).
    pub name: String,
    /// The set it joins; `None` for a set of its own.
    pub set: Option<SetId>,
    /// How many files it takes.
    pub open: OpenPolicy,
    /// What happens to its state between users.
    pub state: StatePolicy,
}

/// Every device of a process. Cheap to clone.
#[derive(Clone)]
pub struct Registry {}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        todo!()
    }

    /// An empty registry that tells what happens in it.
    pub fn with_observer(_observer: Arc<dyn Observer>) -> Self {
        todo!()
    }

    /// Registers a device: `describe`, `init`, join the set, become visible.
    ///
    /// # Errors
    /// `EEXIST`: the name is taken; `EINVAL`: the description contradicts itself; what `init` says.
    pub fn register(&self, _spec: DeviceSpec, _device: Box<dyn Device>) -> Result<Registration> {
        todo!()
    }

    /// A visible device by name.
    pub fn find(&self, _name: &str) -> Option<DeviceRef> {
        todo!()
    }

    /// A visible device by number.
    pub fn get(&self, _id: DeviceId) -> Option<DeviceRef> {
        todo!()
    }

    /// All visible devices, in the order of their numbers.
    pub fn devices(&self) -> Vec<DeviceRef> {
        todo!()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

/// A registered device. Keeps it allocated, not registered.
#[derive(Clone)]
pub struct DeviceRef {}

impl DeviceRef {
    /// The device's number.
    pub fn id(&self) -> DeviceId {
        todo!()
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        todo!()
    }

    /// What the device has.
    pub fn description(&self) -> &Description {
        todo!()
    }

    /// Opens the device for an owner.
    ///
    /// # Errors
    /// `ENODEV`: being unregistered; `EINVAL`: single-open and open; `EBUSY`: another owner has
    /// it; what `open_device`, `reset` or `open` says.
    pub fn open(&self, _owner: Owner) -> Result<File> {
        todo!()
    }
}

/// A device's registration. Dropping it unregisters the device and revokes its files at once.
#[must_use = "dropping a registration unregisters the device"]
pub struct Registration {}

impl Registration {
    /// The device.
    pub fn device(&self) -> &DeviceRef {
        todo!()
    }

    /// Unregisters: no new opens from now on; asks the users to let go until the last file is
    /// gone. With a deadline, files left by then are revoked; without, it waits for ever.
    pub fn unregister(self, _deadline: Option<Duration>) {
        todo!()
    }
}
