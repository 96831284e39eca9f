//! Threads for calls that wait: each has one of its own, for as long as it takes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use vfiod_core::{Errno, Error};

/// Starts threads, and knows how many there are.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Count>);

#[derive(Default)]
struct Count {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Count {
    fn running(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(|error| error.into_inner())
    }
}

/// A call in the count.
struct Counted(Arc<Count>);

impl Counted {
    fn new(count: &Arc<Count>) -> Self {
        *count.running() += 1;
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        self.0.ended.notify_all();
    }
}

impl Threads {
    /// Makes a call on a thread of its own. Returns its result; `None` if it has panicked, which was
    /// reported where it happened.
    ///
    /// # Errors
    /// `EAGAIN`, or what else the kernel says: no thread can be started.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let (reply, result) = oneshot::channel();
        let counted = Counted::new(&self.0);
        let run = move || {
            let _counted = counted;
            // Fails only where nobody waits for the result any more.
            let _ = reply.send(call());
        };
        thread::Builder::new().name("control".to_owned()).spawn(run).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
            Error::new(errno, "no thread can be started for this; try again").because(error)
        })?;
        Ok(result.await.ok())
    }

    /// Waits until no call is running, no longer than `timeout`.
    pub(crate) fn settle(&self, timeout: Duration) {
        let running = self.0.running();
        drop(self.0.ended.wait_timeout_while(running, timeout, |running| *running > 0));
    }
}
