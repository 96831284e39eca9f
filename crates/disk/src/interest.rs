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
#[derive(Clone, Debug, Default)]
pub struct Interest {
    own: Option<Arc<Ended>>,
    other: Option<Arc<Ended>>,
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
        Self { own: Some(Arc::default()), other: None }
    }

    /// One that ends when this one does, or `other`. Of either no more than what [`Interest::new`] made counts.
    pub fn and(&self, other: &Self) -> Self {
        Self { own: self.own.clone(), other: other.own.clone() }
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
