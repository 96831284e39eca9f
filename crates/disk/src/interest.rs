//! Whether anybody still wants what requests come to.

use std::fmt;
use std::sync::Arc;

use vfiod_dma::{Errno, Error};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_tasks::{Waiters, race};

use crate::failure::{Failure, FailureKind};

/// What requests belong to, such as the queues of a controller from one enable to the next disable. When
/// it has [ended](Interest::end), what waits for a range is not begun any more, what is done in pieces
/// ends with the piece that is under way, and nobody waits for the sync that makes something durable: a long
/// deallocation of somebody who has gone would change what the next one writes. A clone is the same. The default one
/// never ends.
#[derive(Clone, Default)]
pub struct Interest {
    own: Option<Arc<Ended>>,
    other: Option<Arc<Ended>>,
    syncing: Option<Arc<dyn Syncing>>,
}

/// Learns that a request waits for nothing but the sync that makes durable what it has written: it has no memory, and
/// changes nothing any more.
pub trait Syncing: Send + Sync {
    /// A request has come so far.
    fn begun(&self);

    /// Its sync has ended.
    fn ended(&self);
}

/// A request waits for nothing but a sync until this is dropped.
pub struct OnlySyncs(Arc<dyn Syncing>);

impl OnlySyncs {
    /// Tells `syncing` so.
    pub fn begin(syncing: Arc<dyn Syncing>) -> Self {
        syncing.begun();
        Self(syncing)
    }
}

impl Drop for OnlySyncs {
    fn drop(&mut self) {
        self.0.ended();
    }
}

impl fmt::Debug for OnlySyncs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnlySyncs").finish_non_exhaustive()
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Interest");
        debug.field("own", &self.own).field("other", &self.other).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Ended {
    has: AtomicBool,
    waiters: Waiters,
}

impl Ended {
    fn get(&self) -> Option<()> {
        self.has.load(Ordering::SeqCst).then_some(())
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ended").field(&self.has).finish()
    }
}

impl Interest {
    /// One that can end.
    pub fn new() -> Self {
        Self { own: Some(Arc::default()), other: None, syncing: None }
    }

    /// The same, which tells `syncing` of its requests that wait for nothing but a sync.
    pub fn telling(&self, syncing: Arc<dyn Syncing>) -> Self {
        Self { syncing: Some(syncing), ..self.clone() }
    }

    /// A request waits for nothing but a sync from now on.
    pub(crate) fn only_syncs(&self) -> Option<OnlySyncs> {
        self.syncing.clone().map(OnlySyncs::begin)
    }

    /// One that ends when this one does, or `other`. Of either no more than what [`Interest::new`] made counts.
    pub fn and(&self, other: &Self) -> Self {
        Self { own: self.own.clone(), other: other.own.clone(), syncing: self.syncing.clone() }
    }

    /// Ends it. What the back end does at this moment goes on.
    pub fn end(&self) {
        if let Some(own) = &self.own {
            own.has.store(true, Ordering::SeqCst);
            own.waiters.wake_all();
        }
    }

    /// # Errors
    /// [`FailureKind::Unwanted`]: it has ended.
    pub(crate) fn lasts(&self) -> Result<(), Failure> {
        match [&self.own, &self.other].into_iter().flatten().find_map(|ended| ended.get()) {
            Some(()) => Err(unwanted()),
            None => Ok(()),
        }
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) -> Failure {
        race(wait(&self.own), wait(&self.other)).await;
        unwanted()
    }
}

async fn wait(ended: &Option<Arc<Ended>>) {
    match ended {
        Some(ended) => ended.waiters.wait_for(|| ended.get()).await,
        None => std::future::pending().await,
    }
}

fn unwanted() -> Failure {
    let error = Error::new(Errno::CANCELED, "nobody wants the request any more");
    Failure { kind: FailureKind::Unwanted, error }
}
