//! Removals that wait for users without a thread.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use vfiod_core::{DeviceRef, Result};
use vfiod_sync::{Mutex, lock};

use crate::bus::Bus;
use crate::instance::{Live, Removal, Shared};

/// An instance that is being removed, and that its users may still have open. Nobody else can open it.
///
/// Dropping it gives the removal up: the instance stays, cannot be opened, and can be removed by
/// others, also by those who wait for this removal.
pub struct PendingRemoval {
    bus: Bus,
    shared: Arc<Shared>,
    /// `None` once it is removed.
    live: Mutex<Option<Live>>,
}

impl Bus {
    /// Begins to remove an instance: it cannot be opened any more, and its endpoint stops listening. Its
    /// users are not waited for. Returns `None` if it is being removed already.
    ///
    /// # Errors
    /// `ENOENT`: there is no such instance; `EBUSY`: it is being created.
    pub fn begin_removal(&self, uuid: Uuid) -> Result<Option<PendingRemoval>> {
        let shared = self.present(uuid)?;
        let Some(mut live) = shared.take(Removal::Wait)? else { return Ok(None) };
        live.stop_listening();
        Ok(Some(PendingRemoval { bus: self.clone(), shared, live: Mutex::new(Some(live)) }))
    }
}

impl PendingRemoval {
    /// The device.
    pub fn device(&self) -> &DeviceRef {
        &self.shared.device
    }

    /// Asks the users of the instance to close it, as [`DeviceRef::request_close`].
    pub fn request_close(&self, n: u32, wait: Duration) {
        self.device().request_close(n, wait);
    }

    /// Removes the instance if nobody has it open. Returns whether it is removed, or another thread is
    /// about to.
    pub fn finish_if_unused(&self) -> bool {
        let unused = self.device().status().files.is_empty();
        if unused {
            self.finish(Removal::Wait);
        }
        unused
    }

    /// Revokes the files of the instance and removes it, unless another thread does that.
    pub fn finish_now(&self) {
        self.finish(Removal::Deadline(Duration::ZERO));
    }

    fn finish(&self, removal: Removal) {
        let live = lock(&self.live).take();
        if let Some(live) = live {
            self.bus.end(&self.shared, live, removal);
        }
    }
}

impl Drop for PendingRemoval {
    fn drop(&mut self) {
        let live = lock(&self.live).take();
        if let Some(live) = live {
            self.bus.give_back(&self.shared, live);
        }
    }
}
