//! Syncs of a disk: one at a time, each for all who asked before it began; after one that has failed
//! there is none.
//!
//! The kernel reports a failed write-back once, to the sync that finds it: another one beside it, and
//! every later one, succeeds although data was lost. So no two run at once, and a failure is kept.
//! Nobody's end loses a sync: the one that runs is kept here, and whoever waits polls it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use vfiod_dma::{Errno, Error};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::Waiters;

use crate::backend::Channel;
use crate::failure::{Failure, FailureKind};
use crate::pending::Pending;
use crate::request::Request;

#[derive(Default)]
pub(crate) struct Syncs {
    state: Mutex<State>,
    changed: Waiters,
}

#[derive(Default)]
struct State {
    /// Syncs that have begun.
    begun: u64,
    /// Syncs that have ended.
    ended: u64,
    /// The one that runs.
    running: Option<Pending>,
    /// How one has failed.
    failed: Option<(Errno, String)>,
}

impl State {
    fn failure(&self) -> Option<Failure> {
        let (errno, cause) = self.failed.as_ref()?;
        let what = format!(
            "an earlier sync of the disk has failed ({cause}); what was written before may be lost. \
             The disk takes no writes until it is opened anew"
        );
        let kind = FailureKind::SyncFailed;
        Some(Failure { kind, error: Error::new(*errno, what) })
    }

    /// Looks after the sync that runs. Returns whether it has ended.
    fn poll_running(&mut self, waker: &Waker) -> bool {
        let Some(running) = &mut self.running else { return false };
        let Poll::Ready(done) = Pin::new(running).poll(&mut Context::from_waker(waker)) else {
            return false;
        };
        self.running = None;
        self.ended = self.begun;
        if let Err(failure) = done.result {
            tracing::error!(error = %failure.error, "sync of a disk failed; it takes no writes any more");
            self.failed = Some((failure.error.errno(), failure.error.to_string()));
        }
        true
    }
}

impl Wake for Syncs {
    fn wake(self: Arc<Self>) {
        self.changed.wake_all();
    }
}

impl Syncs {
    /// What to wait for by [`Syncs::ended`]: the first sync that begins after this.
    pub(crate) fn next(&self) -> u64 {
        lock(&self.state).begun + 1
    }

    /// Waits until a sync has ended, and begins it by `channel` if nobody else does.
    ///
    /// # Errors
    /// [`FailureKind::SyncFailed`]: it has failed, or one before.
    pub(crate) async fn ended(
        self: &Arc<Self>,
        sync: u64,
        channel: &Arc<dyn Channel>,
    ) -> Result<(), Failure> {
        let waker = Waker::from(self.clone());
        let advance = || {
            let mut state = lock(&self.state);
            let mut some_ended = false;
            let result = loop {
                some_ended |= state.poll_running(&waker);
                if let Some(failure) = state.failure() {
                    break Some(Err(failure));
                }
                if state.ended >= sync {
                    break Some(Ok(()));
                }
                if state.running.is_some() {
                    break None;
                }
                state.begun += 1;
                state.running = Some(channel.start(Request::Flush));
            };
            drop(state);
            if some_ended {
                self.changed.wake_all();
            }
            result
        };
        self.changed.wait_for(advance).await
    }

    /// Waits until no sync runs.
    pub(crate) async fn idle(self: &Arc<Self>) {
        let waker = Waker::from(self.clone());
        let advance = || {
            let mut state = lock(&self.state);
            let some_ended = state.poll_running(&waker);
            let is_idle = state.running.is_none();
            drop(state);
            if some_ended {
                self.changed.wake_all();
            }
            is_idle.then_some(())
        };
        self.changed.wait_for(advance).await;
    }

    /// How a sync has failed, if one has.
    pub(crate) fn failure(&self) -> Option<Failure> {
        lock(&self.state).failure()
    }

    /// Whether a sync runs, as far as anybody has looked.
    pub(crate) fn is_running(&self) -> bool {
        lock(&self.state).running.is_some()
    }
}
