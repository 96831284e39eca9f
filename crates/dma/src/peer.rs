//! Memory that is reached by DMA_READ and DMA_WRITE: requests to a client, and their completions.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use vfiod_sync::{Arc, Mutex, lock};

use crate::dirty::Writing;
use crate::error::{Errno, Error, Result};
use crate::in_flight::Flight;

/// Reaches the memory of a client by messages to it, for mappings without a descriptor.
///
/// A request is started here and completes later, from any thread: no thread waits for the
/// client. The implementation splits what is larger than one message, and bounds the time that
/// the client may take (`ETIMEDOUT`).
///
/// An implementation must not call back into the address space from `start_read` and
/// `start_write`, and must not wait for the client there. It may complete the request before it
/// returns.
pub trait DmaPeer: Send + Sync {
    /// Starts to read `len` bytes (not 0) of the client's memory at `iova`. The completion gets
    /// exactly `len` bytes, or the error.
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>);

    /// Starts to write `data` (not empty) to the client's memory at `iova`.
    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>);
}

/// One request and its result.
struct Request<T> {
    state: Mutex<State<T>>,
}

enum State<T> {
    /// Not polled yet, or a task waits.
    Pending(Option<Waker>),
    Completed(Result<T>),
    /// The result was taken, or nobody wants it.
    Closed,
}

/// A request that has not completed, and what completes it; see [`Reply`].
///
/// Whoever performs the request keeps this and calls [`Completion::complete`] once, from any
/// thread. If it is dropped instead, the request fails with `EIO`.
pub struct Completion<T> {
    request: Option<Arc<Request<T>>>,
    writing: Option<Writing>,
}

/// What ends with a request.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Marks pages, as soon as the client may have written them.
    writing: Option<Writing>,
    /// Counts the request as in flight for as long as a task waits for it. One that is abandoned
    /// cannot be called back, and the client may be waiting for the very reset that abandoned it:
    /// it gets the request before the reset's reply.
    flight: Flight,
}

impl Ends {
    pub(crate) fn new(writing: Option<Writing>, flight: Flight) -> Self {
        Self { writing, flight }
    }
}

impl<T> Completion<T> {
    /// A request: the side that performs it, and the side that waits for it.
    pub fn new() -> (Self, Reply<T>) {
        Self::with(None)
    }

    /// A request, and what is dropped when it completes.
    pub(crate) fn with(ends: Option<Ends>) -> (Self, Reply<T>) {
        let state = Mutex::new(State::Pending(None));
        let request = Arc::new(Request { state });
        let (writing, flight) = match ends {
            Some(Ends { writing, flight }) => (writing, Some(flight)),
            None => (None, None),
        };
        (Self { request: Some(request.clone()), writing }, Reply { request, _flight: flight })
    }

    /// Completes the request and wakes who waits for it, if anybody still does. Takes no lock
    /// that is held while something is waited for.
    pub fn complete(mut self, result: Result<T>) {
        self.finish(result);
    }

    /// Whether nobody waits for the result any more. The request must be performed all the same;
    /// this only says that its data are not needed.
    pub fn is_abandoned(&self) -> bool {
        let closed = |request: &Arc<Request<T>>| matches!(*lock(&request.state), State::Closed);
        self.request.as_ref().is_none_or(closed)
    }

    fn finish(&mut self, result: Result<T>) {
        let Some(request) = self.request.take() else { return };
        // Pages are marked before anybody learns of the end.
        self.writing = None;
        let mut state = lock(&request.state);
        let State::Pending(waker) = &mut *state else { return };
        let waker = waker.take();
        *state = State::Completed(result);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if self.request.is_some() {
            self.finish(Err(Error::new(Errno::IO, "a DMA request to the client was given up")));
        }
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Completion(abandoned: {})", self.is_abandoned())
    }
}

/// The result of a request, when it has completed: a future for any executor.
///
/// Dropping it abandons the wait and nothing else: the request goes on.
#[must_use = "a request's error is in its reply"]
pub struct Reply<T> {
    request: Arc<Request<T>>,
    _flight: Option<Flight>,
}

impl<T> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.request.state);
        match std::mem::replace(&mut *state, State::Closed) {
            State::Completed(result) => Poll::Ready(result),
            // A future is not polled again after its result was taken, so it is pending.
            State::Pending(_) | State::Closed => {
                *state = State::Pending(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        *lock(&self.request.state) = State::Closed;
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::block_on::block_on;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn waker() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (count.clone(), count.into())
    }

    #[test]
    fn completion_wakes_the_last_waker_once() {
        let (completion, mut reply) = Completion::new();
        let ((first, a), (second, b)) = (waker(), waker());
        for waker in [&a, &b] {
            assert!(Pin::new(&mut reply).poll(&mut Context::from_waker(waker)).is_pending());
        }
        std::thread::spawn(|| completion.complete(Ok(5))).join().unwrap();
        assert_eq!((first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)), (0, 1));
        match Pin::new(&mut reply).poll(&mut Context::from_waker(&b)) {
            Poll::Ready(result) => assert_eq!(result.unwrap(), 5),
            Poll::Pending => panic!("completed, but pending"),
        }
    }

    #[test]
    fn dropped_completion_fails_the_request() {
        let (completion, reply) = Completion::<()>::new();
        drop(completion);
        let error = block_on(reply).unwrap_err();
        assert_eq!(error.errno(), Errno::IO);
    }

    #[test]
    fn dropped_reply_abandons_the_wait_only() {
        let (completion, reply) = Completion::new();
        assert!(!completion.is_abandoned());
        drop(reply);
        assert!(completion.is_abandoned());
        completion.complete(Ok(1));
    }
}
