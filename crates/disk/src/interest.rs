//! Whether anybody still wants what requests come to.

use std::sync::Arc;

use vfiod_dma::{Errno, Error};
use vfiod_sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Failure, FailureKind};

/// What requests belong to, such as the queues of a controller from one enable to the next disable. When
/// it has [ended](Interest::end), what waits for a range is not begun any more, and what is done in pieces
/// ends with the piece that is under way: a long deallocation of somebody who has gone would change what
/// the next one writes. A clone is the same. The default one never ends.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    ended: Option<Arc<AtomicBool>>,
}

impl Interest {
    /// One that can end.
    pub fn new() -> Self {
        Self { ended: Some(Arc::default()) }
    }

    /// Ends it. What the back end does at this moment goes on.
    pub fn end(&self) {
        if let Some(ended) = &self.ended {
            ended.store(true, Ordering::SeqCst);
        }
    }

    /// # Errors
    /// `ECANCELED`: it has ended.
    pub(crate) fn lasts(&self) -> Result<(), Failure> {
        match &self.ended {
            Some(ended) if ended.load(Ordering::SeqCst) => {
                let error = Error::new(Errno::CANCELED, "nobody wants the request any more");
                Err(Failure { kind: FailureKind::Other, error })
            }
            _ => Ok(()),
        }
    }
}
