//! What counts a request that is in flight, and what its steps need.

use std::sync::Arc;

use vfiod_dma::{Flight, Flights};
use vfiod_sync::atomic::Ordering;
use vfiod_tasks::{WeakRuntime, race};

use crate::backend::Channel;
use crate::failure::Failure;
use crate::interest::Interest;
use crate::pool::{Pair, Pool};
use crate::ranges::User;
use crate::request::Done;
use crate::shared::Shared;

/// What the steps of a request need of their channel.
pub(crate) struct Parts {
    pub(crate) inner: Arc<dyn Channel>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) runtime: WeakRuntime,
    /// What is not idle before all requests have ended.
    pub(crate) device: Option<Flights>,
    /// Its requests have turns with those of other channels.
    pub(crate) ranges: Arc<User>,
    pub(crate) compares: Arc<Pool<Pair>>,
}

impl Parts {
    /// That the disk goes as far as this, for whoever was granted a range. Whoever cuts the end off makes the
    /// capacity smaller first, then waits for those who were granted a range there.
    pub(crate) fn still_has(&self, end: u64, offset: u64, len: u64) -> Result<(), Failure> {
        if self.shared.has(end) { Ok(()) } else { Err(self.shared.out_of_range(offset, len)) }
    }

    /// Waits until a sync has ended, this one or a later one.
    pub(crate) async fn sync(&self, sync: u64) -> Result<(), Failure> {
        self.shared.syncs.ended(sync, &self.inner).await
    }
}

/// Counts a request for as long as it is in flight.
pub(crate) struct InFlight {
    parts: Arc<Parts>,
    of_device: Option<Flight>,
}

impl InFlight {
    pub(crate) fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    pub(crate) fn new(parts: &Arc<Parts>) -> Self {
        Self::count(parts, parts.device.as_ref().map(Flights::begin))
    }

    /// One that the device need not wait for: it moves no data.
    pub(crate) fn of_disk(parts: &Arc<Parts>) -> Self {
        Self::count(parts, None)
    }

    fn count(parts: &Arc<Parts>, of_device: Option<Flight>) -> Self {
        parts.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { parts: parts.clone(), of_device }
    }

    /// Syncs what the request has written, if it is to be durable, as long as somebody wants that. The device need
    /// not wait meanwhile: the guest's memory is not used any more, and what is on the disk does not change.
    pub(crate) async fn sync_if(&mut self, durable: Option<Interest>, mut done: Done) -> Done {
        if let Some(interest) = durable
            && done.result.is_ok()
        {
            self.of_device = None;
            done.buffer = None;
            let _only_syncs = interest.only_syncs();
            let synced = self.parts.sync(self.parts.shared.syncs.next());
            done.result = race(synced, async { Err(interest.ended().await) }).await;
        }
        done
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let shared = &self.parts.shared;
        if shared.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            shared.ended.wake_all();
        }
    }
}
