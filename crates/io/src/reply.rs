//! The two sides of a request: whoever performs it completes it, and whoever waits for it is woken.
//!
//! What they share is used again by later requests, so that a request needs no memory of its own.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use vfiod_dma::{Errno, Error, Result};
use vfiod_sync::{Arc, Mutex, lock};

use crate::data::{Buffer, Completed};

/// What is kept for later requests, of one ring.
const MOST: usize = 1024;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

enum State {
    /// Not polled yet, or a task waits.
    Pending(Option<Waker>),
    Completed(Completed),
    /// The result was taken, or nobody wants it.
    Closed,
}

impl Default for State {
    fn default() -> Self {
        Self::Pending(None)
    }
}

/// What requests have shared, the one that was used last at the end. Both sides of some may still use it.
#[derive(Default)]
pub(crate) struct Spare(VecDeque<Arc<Shared>>);

impl Spare {
    /// Both sides of a request.
    pub(crate) fn pair(&mut self) -> (Completion, Transfer) {
        let shared = match self.0.pop_front() {
            Some(used) if Arc::strong_count(&used) == 1 => {
                *lock(&used.state) = State::default();
                used
            }
            Some(in_use) => {
                self.0.push_back(in_use);
                Arc::default()
            }
            None => Arc::default(),
        };
        if self.0.len() < MOST {
            self.0.push_back(shared.clone());
        }
        both(shared)
    }
}

/// Both sides of a request whose memory is used once.
pub(crate) fn pair() -> (Completion, Transfer) {
    both(Arc::default())
}

fn both(shared: Arc<Shared>) -> (Completion, Transfer) {
    (Completion { shared: Some(shared.clone()) }, Transfer { shared })
}

/// What completes a request. If it is dropped instead, the request fails with `EIO`, and its buffer is lost.
pub(crate) struct Completion {
    shared: Option<Arc<Shared>>,
}

impl Completion {
    /// Completes the request and wakes who waits for it, if anybody still does.
    pub(crate) fn complete(mut self, completed: Completed) {
        self.finish(completed);
    }

    fn finish(&mut self, completed: Completed) {
        let Some(shared) = self.shared.take() else { return };
        let mut state = lock(&shared.state);
        let State::Pending(waker) = &mut *state else {
            drop(state);
            // Its buffer is dropped without the lock.
            return drop(completed);
        };
        let waker = waker.take();
        *state = State::Completed(completed);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.shared.is_some() {
            let error = Error::new(Errno::IO, "a ring has ended before its request");
            self.finish((Err(error), Buffer::None));
        }
    }
}

/// A request that has begun: a future of the bytes that were moved, and of the buffer, which is lost if the
/// ring has ended first ([`Buffer::None`]).
///
/// Dropping it abandons the wait and nothing else: the request goes on, and its buffer is dropped when it
/// has completed.
#[must_use = "a request's error is in its result"]
pub struct Transfer {
    shared: Arc<Shared>,
}

impl Future for Transfer {
    type Output = (Result<usize>, Buffer);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.shared.state);
        match &mut *state {
            State::Pending(Some(waker)) => waker.clone_from(cx.waker()),
            State::Pending(waker) => *waker = Some(cx.waker().clone()),
            // A future is not polled again after its result was taken.
            State::Closed => {}
            State::Completed(_) => {
                if let State::Completed(completed) = std::mem::replace(&mut *state, State::Closed) {
                    return Poll::Ready(completed);
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let abandoned = std::mem::replace(&mut *lock(&self.shared.state), State::Closed);
        // Its waker and its buffer are dropped without the lock.
        drop(abandoned);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(transfer: &mut Transfer, waker: &Waker) -> Poll<usize> {
        let polled = Pin::new(transfer).poll(&mut Context::from_waker(waker));
        polled.map(|(result, _)| result.unwrap_or(usize::MAX))
    }

    #[test]
    fn completion_wakes_the_last_waker_once() {
        let (completion, mut transfer) = pair();
        let counts = [0; 2].map(|_| std::sync::Arc::new(Count(AtomicUsize::new(0))));
        let wakers = counts.clone().map(Waker::from);
        for waker in &wakers {
            assert!(poll(&mut transfer, waker).is_pending());
        }
        completion.complete((Ok(5), Buffer::None));
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
        assert_eq!(poll(&mut transfer, &wakers[1]), Poll::Ready(5));
    }

    #[test]
    fn request_whose_ring_has_ended_fails() {
        let (completion, mut transfer) = pair();
        drop(completion);
        assert_eq!(poll(&mut transfer, Waker::noop()), Poll::Ready(usize::MAX));
    }

    /// What one request has left behind is nothing to the next one; and what is in use is left alone.
    #[test]
    fn memory_is_used_again_once_both_sides_have_ended() {
        let mut spare = Spare::default();
        let address = |transfer: &Transfer| Arc::as_ptr(&transfer.shared).addr();
        let (completion, transfer) = spare.pair();
        let first = address(&transfer);
        drop(transfer);
        let (other_completion, mut other) = spare.pair();
        assert_ne!(address(&other), first, "its kernel side is in use");
        completion.complete((Ok(1), Buffer::None));
        let (again, mut transfer) = spare.pair();
        assert_eq!(address(&transfer), first);
        assert!(poll(&mut transfer, Waker::noop()).is_pending());
        other_completion.complete((Ok(2), Buffer::None));
        again.complete((Ok(3), Buffer::None));
        assert_eq!(poll(&mut transfer, Waker::noop()), Poll::Ready(3));
        assert_eq!(poll(&mut other, Waker::noop()), Poll::Ready(2));
        assert_eq!(spare.0.len(), 2);
    }
}
