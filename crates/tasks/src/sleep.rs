//! Futures that wait for a time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::coop;
use crate::runtime::Runtime;
use crate::timers::Timers;

/// The future of [`Runtime::sleep`] and [`Runtime::sleep_until`].
#[must_use = "a future does nothing unless it is awaited"]
#[derive(Debug)]
pub struct Sleep {
    timers: Arc<Timers>,
    deadline: Instant,
    key: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if coop::is_spent(cx) {
            return Poll::Pending;
        }
        let this = &mut *self;
        let timers = &this.timers;
        if timers.now() >= this.deadline {
            return Poll::Ready(());
        }
        timers.set(this.deadline, &mut this.key, cx.waker());
        // A manual clock may have been moved in between, and found no timer.
        if timers.now() >= this.deadline { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.remove(self.deadline, key);
        }
    }
}

/// The time of a [`Runtime::timeout`] has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

pin_project_lite::pin_project! {
    /// The future of [`Runtime::timeout`].
    #[must_use = "a future does nothing unless it is awaited"]
    #[derive(Debug)]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(value) = this.future.poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

impl Runtime {
    /// The time of the runtime's clock.
    pub fn now(&self) -> Instant {
        self.scheduler().timers.now()
    }

    /// Waits for a time.
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.sleep_until(self.now() + time)
    }

    /// Waits until the runtime's clock shows at least `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { timers: self.scheduler().timers.clone(), deadline, key: None }
    }

    /// Waits for a future, for a limited time. The future is dropped with what is returned.
    pub fn timeout<F: Future>(&self, time: Duration, future: F) -> Timeout<F> {
        Timeout { future, sleep: self.sleep(time) }
    }
}
