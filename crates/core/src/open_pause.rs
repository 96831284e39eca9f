//! Opens refused for a while: whoever judges whether a device can be removed makes sure first that no
//! file is opened meanwhile.

use std::fmt;
use std::sync::Arc;

use crate::device_ref::DeviceRef;
use crate::error::{Errno, Error, Result};
use crate::registered::Registered;

/// Refuses opens of a device (`EBUSY`) until it is dropped. Several can exist at the same time.
#[must_use = "dropping it allows opens again"]
pub struct OpenPause {
    device: Arc<Registered>,
}

impl OpenPause {
    /// Begins to refuse opens of a device, unless it has files.
    pub(crate) fn if_unused(device: &Arc<Registered>) -> Result<Self> {
        if let Some(member) = device.set.lock().find(device) {
            if let Some(owner) = member.owner() {
                let what = format!("{} is in use by {owner}", device.name());
                return Err(Error::new(Errno::BUSY, what));
            }
            member.open_pauses += 1;
        }
        Ok(Self { device: device.clone() })
    }

    /// Begins to refuse opens of a device, which may have files.
    pub(crate) fn of(device: &Arc<Registered>) -> Self {
        if let Some(member) = device.set.lock().find(device) {
            member.open_pauses += 1;
        }
        Self { device: device.clone() }
    }

    /// The device.
    pub fn device(&self) -> DeviceRef {
        DeviceRef { registered: self.device.clone() }
    }
}

impl Drop for OpenPause {
    fn drop(&mut self) {
        if let Some(member) = self.device.set.lock().find(&self.device) {
            member.open_pauses -= 1;
        }
    }
}

impl fmt::Debug for OpenPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenPause").field(&self.device.name()).finish()
    }
}
