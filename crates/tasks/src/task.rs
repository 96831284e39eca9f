//! Spawned futures: their end, whichever way, is reported exactly once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use vfiod_sync::{Mutex, lock};

use crate::contain::{Panicked, contain};
use crate::runtime::Runtime;
use crate::turns::Group;
use crate::waiters::Waiters;

/// Why a task ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It was cancelled, or its runtime is gone.
    #[error("the task was cancelled")]
    Cancelled,
    /// It panicked.
    #[error(transparent)]
    Panicked(Panicked),
}

/// A task. Dropping this cancels it.
///
/// As a future it waits until the task's own future has been dropped, and returns its result.
pub struct Task<T> {
    job: Job,
    result: Arc<Shared<T>>,
}

struct Shared<T> {
    result: Mutex<Option<Result<T, Ended>>>,
    ended: Waiters,
}

impl<T> Task<T> {
    /// Cancels the task: its future is dropped at its next await, by whoever runs tasks.
    pub fn cancel(&mut self) {
        self.job.cancel();
    }

    /// Lets the task go on by itself.
    pub fn detach(self) {
        self.job.detach();
    }

    /// Whether the task has ended and its result is there.
    pub fn is_finished(&self) -> bool {
        lock(&self.result.result).is_some()
    }

    /// Waits for the end of the task.
    ///
    /// # Errors
    /// It was cancelled, or panicked, or its result has been returned already.
    pub async fn result(&self) -> Result<T, Ended> {
        self.result.ended.wait_for(|| lock(&self.result.result).take()).await
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

/// A task whose end is reported to a function. Dropping this cancels it.
#[derive(Debug)]
pub struct Job {
    handle: Option<async_task::Task<()>>,
}

impl Job {
    /// Cancels the task: its future is dropped at its next await, by whoever runs tasks.
    pub fn cancel(&mut self) {
        // This schedules the task once more, so that its future is dropped where tasks run.
        self.handle = None;
    }

    /// Lets the task go on by itself.
    pub fn detach(mut self) {
        if let Some(handle) = self.handle.take() {
            handle.detach();
        }
    }
}

impl Runtime {
    /// Starts a task.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let shared = Arc::new(Shared { result: Mutex::new(None), ended: Waiters::new() });
        let result = shared.clone();
        let job = self.spawn_with(future, move |outcome| {
            *lock(&shared.result) = Some(outcome);
            shared.ended.wake_all();
        });
        Task { job, result }
    }

    /// Starts a task whose end is reported to `end`, exactly once, after its future has been
    /// dropped. `end` is called by whoever runs tasks; if the runtime is gone, by the caller.
    pub fn spawn_with<F, E>(&self, future: F, end: E) -> Job
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
        E: FnOnce(Result<F::Output, Ended>) + Send + 'static,
    {
        self.spawn_among(None, future, end)
    }

    /// As [`Runtime::spawn_with`], a task of a group.
    pub fn spawn_in<F, E>(&self, group: &Group, future: F, end: E) -> Job
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
        E: FnOnce(Result<F::Output, Ended>) + Send + 'static,
    {
        self.spawn_among(Some(group.clone()), future, end)
    }

    fn spawn_among<F, E>(&self, group: Option<Group>, future: F, end: E) -> Job
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
        E: FnOnce(Result<F::Output, Ended>) + Send + 'static,
    {
        let scheduler = self.scheduler().clone();
        let schedule = move |runnable| scheduler.push(runnable, group.as_ref());
        let future = Contained { future: Some(future), end: Some(end) };
        let (runnable, handle) = async_task::spawn(future, schedule);
        runnable.schedule();
        Job { handle: Some(handle) }
    }
}

pin_project_lite::pin_project! {
    /// A future that does not panic.
    struct Contained<F: Future, E: FnOnce(Result<F::Output, Ended>)> {
        #[pin]
        future: Option<F>,
        // Until the end has been reported.
        end: Option<E>,
    }

    impl<F: Future, E: FnOnce(Result<F::Output, Ended>)> PinnedDrop for Contained<F, E> {
        fn drop(this: Pin<&mut Self>) {
            this.end(Err(Ended::Cancelled));
        }
    }
}

impl<F: Future, E: FnOnce(Result<F::Output, Ended>)> Contained<F, E> {
    /// Drops the future and reports the end.
    fn end(self: Pin<&mut Self>, mut outcome: Result<F::Output, Ended>) {
        let mut this = self.project();
        let Some(end) = this.end.take() else { return };
        if let Err(panic) = contain(|| this.future.set(None)) {
            outcome = Err(Ended::Panicked(panic));
        }
        end(outcome);
    }
}

impl<F: Future, E: FnOnce(Result<F::Output, Ended>)> Future for Contained<F, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.as_mut().project();
        let Some(future) = this.future.as_pin_mut() else { return Poll::Ready(()) };
        let outcome = match contain(|| future.poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(Ended::Panicked(panic)),
        };
        self.end(outcome);
        Poll::Ready(())
    }
}
