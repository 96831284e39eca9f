//! A service on a thread of its own.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;

use crate::threads::Threads;

/// How long calls that are running have when the service ends.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A service, running. Dropping it ends it.
pub(crate) struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    threads: Threads,
}

impl Service {
    /// Runs `serve` on a thread of this name. It has `threads` for calls that wait.
    ///
    /// # Errors
    /// Errors of the kernel: no thread or no descriptor left.
    pub(crate) fn start<F: AsyncFnOnce() + Send + 'static>(
        name: &str,
        serve: impl FnOnce(Threads) -> F,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .with_context(|| format!("cannot start the {name} service"))?;
        let (stop, stopped) = oneshot::channel();
        let threads = Threads::default();
        let serve = serve(threads.clone());
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve() => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread), threads })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.threads.settle(TIMEOUT);
    }
}
