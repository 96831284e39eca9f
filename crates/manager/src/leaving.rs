//! What a change of the configuration is to remove, while its users are asked to close it. No lock is held
//! meanwhile: other changes are made, but for those of what is being removed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfiod_core::{DeviceRef, Errno, Error, OpenPause, Result};

/// The names of what is being removed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims(Arc<Mutex<BTreeSet<String>>>);

impl Claims {
    /// Checks that nobody removes one of these but the holder of `own`.
    ///
    /// # Errors
    /// `EBUSY`.
    pub(crate) fn check<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        own: Option<&Leaving>,
    ) -> Result<()> {
        let claimed = vfiod_sync::lock(&self.0);
        let is_others =
            |name: &&str| claimed.contains(*name) && !own.is_some_and(|own| own.has(name));
        match names.into_iter().find(is_others) {
            None => Ok(()),
            Some(name) => {
                let what = format!(
                    "{name} is being removed: its users are asked to close it; nothing was changed. Try \
                     again when it has been removed, or revoke its files (`revoke {name}`) to remove it \
                     now"
                );
                Err(Error::new(Errno::BUSY, what))
            }
        }
    }

    /// Claims these.
    pub(crate) fn claim(
        &self,
        names: BTreeSet<String>,
        pauses: Vec<OpenPause>,
        instances: Vec<DeviceRef>,
    ) -> Leaving {
        vfiod_sync::lock(&self.0).extend(names.iter().cloned());
        let devices = pauses.iter().map(OpenPause::device).chain(instances).collect();
        Leaving { claims: self.clone(), names, devices, _pauses: pauses }
    }
}

/// What is being removed by a change that waits for its users; see
/// [`Manager::begin_change`](crate::Manager::begin_change). While this exists, nobody else can open these
/// devices, and no other change can remove them or add others of their names. Dropping it gives the change
/// up.
#[must_use = "dropping it gives the change up"]
#[derive(Debug)]
pub struct Leaving {
    claims: Claims,
    /// Of devices, containers and parents.
    names: BTreeSet<String>,
    devices: Vec<DeviceRef>,
    _pauses: Vec<OpenPause>,
}

impl Leaving {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The devices that are to be closed: those that will be removed, and the instances of parents that
    /// will.
    pub fn devices(&self) -> &[DeviceRef] {
        &self.devices
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut claimed = vfiod_sync::lock(&self.claims.0);
        self.names.iter().for_each(|name| _ = claimed.remove(name));
    }
}

/// Asks the users of devices to close them, once: those that are open and not busy for longer than `wait`.
/// `n` counts from 0. Returns whether one of them is open.
pub fn request_close(devices: &[DeviceRef], n: u32, wait: Duration) -> bool {
    let open: Vec<_> = devices.iter().filter(|device| !device.status().files.is_empty()).collect();
    open.iter().for_each(|device| _ = device.request_close(n, wait));
    !open.is_empty()
}
