//! A service on a thread of its own.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;

/// How long operations that are running have when the service ends.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A service, running. Dropping it ends it.
pub(crate) struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Runs `serve` on a thread of this name, with at most `workers` more for operations that wait.
    ///
    /// # Errors
    /// Errors of the kernel: no thread or no descriptor left.
    pub(crate) fn start(
        name: &str,
        workers: usize,
        serve: impl AsyncFnOnce() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(workers)
            .thread_name(name)
            .build()
            .with_context(|| format!("cannot start the {name} service"))?;
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve() => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(TIMEOUT);
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
