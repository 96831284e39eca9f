//! Who is told when a device is not open any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::sync::Notify;
use vfiod_core::DeviceId;
use vfiod_manager::{EventKind, Manager, Record};

/// Those who wait for devices, with one watch of events for all of them.
#[derive(Default)]
pub(crate) struct Releases {
    started: AtomicBool,
    waiting: Mutex<HashMap<DeviceId, Weak<Notify>>>,
}

impl Releases {
    /// Notified from now on when the last file of a device is released, and when that may have been
    /// missed. To be called on the thread of the API.
    pub(crate) fn of(self: &Arc<Self>, manager: &Manager, device: DeviceId) -> Arc<Notify> {
        if !self.started.swap(true, Ordering::Relaxed) {
            let (mut watch, this) = (manager.watch(), Arc::downgrade(self));
            tokio::spawn(async move {
                while let Some(record) = watch.next().await
                    && let Some(this) = this.upgrade()
                {
                    this.tell(&record);
                }
            });
        }
        let mut waiting = self.waiting();
        if let Some(known) = waiting.get(&device).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(Notify::new());
        waiting.insert(device, Arc::downgrade(&new));
        new
    }

    fn tell(&self, record: &Record) {
        let mut waiting = self.waiting();
        match (record.kind, record.device) {
            (EventKind::FileReleased, Some(device)) if record.count == Some(0) => {
                waiting
                    .get(&device)
                    .and_then(Weak::upgrade)
                    .inspect(|waiting| waiting.notify_one());
            }
            (EventKind::Unregistered, Some(device)) => drop(waiting.remove(&device)),
            (EventKind::Lost, _) => {
                waiting.values().filter_map(Weak::upgrade).for_each(|waiting| waiting.notify_one());
            }
            _ => {}
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<DeviceId, Weak<Notify>>> {
        self.waiting.lock().unwrap_or_else(|error| error.into_inner())
    }
}
