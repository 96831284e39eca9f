//! Who a request comes from, known to whatever serves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;
use vfiod_quota::User;

use crate::places::Peer;

tokio::task_local! {
    static CALLER: Caller;
}

/// Who has a connection, and how fast it must take what it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    peer: Peer,
    pace: Pace,
}

/// Whether a peer may take as long as it likes for a reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace(Arc<AtomicBool>);

impl Pace {
    pub(crate) fn is_free(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Caller {
    pub(crate) fn new(peer: Peer, pace: Pace) -> Self {
        Self { peer, pace }
    }

    /// Serves this caller: what is done in `serving` is done for it.
    pub(crate) async fn scope<F: Future>(self, serving: F) -> F::Output {
        CALLER.scope(self, serving).await
    }
}

/// For whom this task works. What the daemon does by itself is done for root.
pub(crate) fn peer() -> Peer {
    let of_caller = CALLER.try_with(|caller| caller.peer);
    of_caller.unwrap_or(Peer::Operator(User::Account(0)))
}

/// The caller may take as long as it likes for the reply, which has no end.
pub(crate) fn may_take_its_time() {
    let _ = CALLER.try_with(|caller| caller.pace.0.store(true, Ordering::Relaxed));
}

/// Starts a task that works for the same caller as this one.
pub(crate) fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match CALLER.try_with(Clone::clone) {
        Ok(caller) => tokio::spawn(caller.scope(work)),
        Err(_) => tokio::spawn(work),
    }
}
