//! A disk as all its controllers see it: one back end, and what must hold between their requests.
//!
//! | what | where |
//! | --- | --- |
//! | a read beside a write sees whole blocks; compare and write are one step | `ranges.rs` |
//! | a flush ends after a sync that began after it; a failed sync is not forgotten | `syncs.rs` |
//! | a long deallocation delays nobody: it is done in pieces | `pieces.rs` |
//! | what has begun goes on when nobody waits for it, with its locks | `started.rs`, `continued.rs` |
//! | what has not begun, or has further pieces, ends when nobody wants it | `interest.rs` |

use std::fmt;
use std::sync::Arc;

use vfiod_dma::{Flights, Result};
use vfiod_quota::CurrentPayer;
use vfiod_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Runtime, Waiters};

use crate::backend::{About, Backend};
use crate::channel::DiskChannel;
use crate::compare;
use crate::failure::Failure;
use crate::in_flight::Parts;
use crate::limits::Limits;
use crate::pieces::PieceSize;
use crate::shared::Shared;

/// A disk that several controllers may use. A clone is the same disk.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
}

impl Disk {
    /// The disk that a back end keeps. There must be one only for each back end.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let limits = backend.limits();
        let shared = Shared {
            piece: PieceSize::new(u64::from(limits.deallocate.unwrap_or(limits.block))),
            capacity: AtomicU64::new(limits.capacity),
            limits: Mutex::new(limits),
            backend,
            ranges: Arc::default(),
            syncs: Arc::default(),
            write_through: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            ended: Waiters::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What the disk can do, as of the last [`Disk::refresh`].
    pub fn limits(&self) -> Limits {
        lock(&self.shared.limits).clone()
    }

    /// What keeps its bytes, for the operator.
    pub fn about(&self) -> About {
        self.shared.backend.about()
    }

    /// Asks the back end what it can do now: its capacity may have changed.
    pub fn refresh(&self) -> Limits {
        let limits = self.shared.backend.limits();
        let mut own = lock(&self.shared.limits);
        own.clone_from(&limits);
        self.shared.capacity.store(limits.capacity, Ordering::SeqCst);
        limits
    }

    /// The size that what keeps the bytes has now. Changes nothing. May block.
    pub fn size_now(&self) -> u64 {
        self.shared.backend.limits().capacity
    }

    /// Makes the disk smaller as far as hosts can tell: requests behind the new end are out of range from now
    /// on. Waits until none is under way there. A larger size changes nothing.
    pub async fn cut(&self, bytes: u64) {
        let shared = &self.shared;
        let before = {
            let mut limits = lock(&shared.limits);
            let smaller = limits.capacity.min(bytes);
            shared.capacity.store(smaller, Ordering::SeqCst);
            std::mem::replace(&mut limits.capacity, smaller)
        };
        if bytes < before {
            // Who is granted this range later looks at the capacity after that.
            shared.ranges.user().enter(bytes..before, true).granted().await;
        }
    }

    /// Gives what keeps the bytes a size; a smaller one after [`Disk::cut`]. May block.
    ///
    /// # Errors
    /// As [`Backend::set_size`]; the disk then has the size that the back end has.
    pub fn set_size(&self, bytes: u64) -> Result<()> {
        let set = self.shared.backend.set_size(bytes);
        self.refresh();
        set
    }

    /// Lets others use what keeps the bytes; see [`Backend::release`].
    pub fn release(&self) {
        self.shared.backend.release();
    }

    /// A controller's way to the disk; see [`Backend::connect`].
    ///
    /// # Errors
    /// As [`Backend::connect`].
    pub fn connect(&self, runtime: &Runtime) -> Result<Arc<DiskChannel>> {
        self.channel(runtime, None, None)
    }

    /// The way of a controller whose requests these are: the device is not idle before they have ended, but for
    /// flushes, those included that nobody waits for any more. So an old write never lands after the next user's.
    /// Whoever has the device open is charged for the memory that requests need, but for a little that is always
    /// there.
    ///
    /// # Errors
    /// As [`Backend::connect`].
    pub fn connect_device(
        &self,
        runtime: &Runtime,
        device: Flights,
        payer: CurrentPayer,
    ) -> Result<Arc<DiskChannel>> {
        self.channel(runtime, Some(device), Some(payer))
    }

    fn channel(
        &self,
        runtime: &Runtime,
        device: Option<Flights>,
        payer: Option<CurrentPayer>,
    ) -> Result<Arc<DiskChannel>> {
        let inner = self.shared.backend.clone().connect(runtime)?;
        let parts = Arc::new(Parts {
            inner,
            shared: self.shared.clone(),
            runtime: runtime.downgrade(),
            device,
            ranges: self.shared.ranges.user(),
            compares: compare::pool()?,
        });
        if let Some(payer) = payer {
            parts.inner.charge_to(&payer);
            parts.compares.charge_to(payer);
        }
        Ok(Arc::new(DiskChannel { parts }))
    }

    /// Whether every write is synced before it completes, as if each were durable (a volatile write
    /// cache that is switched off). What was written before is synced by the next of them.
    pub fn set_write_through(&self, on: bool) {
        self.shared.write_through.store(on, Ordering::SeqCst);
    }

    /// Why the disk takes no writes any more, if a sync has failed. Only opening it anew ends that.
    pub fn sync_failure(&self) -> Option<Failure> {
        self.shared.syncs.failure()
    }

    /// How many requests have not ended, those included that nobody waits for any more.
    pub fn in_flight(&self) -> usize {
        let sync = usize::from(self.shared.syncs.is_running());
        self.shared.in_flight.load(Ordering::SeqCst) + sync
    }

    /// Waits until no request is in flight: an old write never lands after this.
    pub async fn idle(&self) {
        let shared = &self.shared;
        let ended = || (shared.in_flight.load(Ordering::SeqCst) == 0).then_some(());
        shared.ended.wait_for(ended).await;
        shared.syncs.idle().await;
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("backend", &self.shared.backend)
            .field("in_flight", &self.in_flight())
            .field("sync_failure", &self.sync_failure().map(|failure| failure.error.to_string()))
            .finish_non_exhaustive()
    }
}
