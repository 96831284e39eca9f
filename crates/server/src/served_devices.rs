//! Which clients each device of a server has. One can be served on several sockets.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use vfiod_core::DeviceId;
use vfiod_sync::{Mutex, lock};

/// The devices of a server, each with the clients (`C`) of its sockets.
pub(crate) struct ServedDevices<C>(Mutex<HashMap<DeviceId, Vec<Weak<C>>>>);

impl<C> Default for ServedDevices<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> ServedDevices<C> {
    pub(crate) fn add(&self, device: DeviceId, clients: &Arc<C>) {
        let mut served = lock(&self.0);
        served.entry(device).or_default().push(Arc::downgrade(clients));
    }

    /// Forgets the clients of a device that are being dropped.
    pub(crate) fn forget_dropped(&self, device: DeviceId) {
        let mut served = lock(&self.0);
        let Some(of) = served.get_mut(&device) else { return };
        of.retain(|clients| clients.strong_count() > 0);
        if of.is_empty() {
            served.remove(&device);
        }
    }

    pub(crate) fn clients_of(&self, device: DeviceId) -> Vec<Arc<C>> {
        let served = lock(&self.0);
        served.get(&device).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }
}
