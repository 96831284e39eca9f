//! A pool without threads: tasks of a runtime serve its sources.

use rustix::io::Errno;
use vfiod_tasks::{Runtime, Task};

use crate::pool::Pool;

/// Serves the sources of an embedded pool in tasks of `runtime`, until the task that it returns is
/// dropped.
///
/// # Errors
/// Those of `epoll_ctl`.
#[cfg(not(shuttle))]
pub(crate) fn serve_in_tasks(pool: &Pool, runtime: &Runtime) -> Result<Task<()>, Errno> {
    use std::sync::Arc;

    let descriptor = runtime.descriptor(pool.fd())?;
    let (embedded, spawner) = (Arc::new(Embedded::new(pool.clone())), runtime.downgrade());
    Ok(runtime.spawn(async move {
        loop {
            descriptor.readable().await;
            let embedded = embedded.clone();
            let Some(runtime) = spawner.upgrade() else { return };
            // A task for each event: one that waits in a call of a device for other tasks of its
            // thread, or for its client, must not stop this one from seeing what they do.
            let serve = async move {
                while embedded.serve_ready() {
                    vfiod_tasks::yield_now().await;
                }
            };
            runtime.spawn(serve).detach();
        }
    }))
}

/// There are no descriptors under a checker.
#[cfg(shuttle)]
pub(crate) fn serve_in_tasks(_pool: &Pool, _runtime: &Runtime) -> Result<Task<()>, Errno> {
    Err(Errno::NOSYS)
}

/// A pool, with buffers, as there are no threads to keep them.
#[cfg(not(shuttle))]
struct Embedded {
    pool: Pool,
    buffers: vfiod_sync::Mutex<Vec<crate::pool::Worker>>,
}

#[cfg(not(shuttle))]
impl Embedded {
    fn new(pool: Pool) -> Self {
        Self { pool, buffers: Default::default() }
    }

    /// Serves sources that have something to do, without waiting. Returns whether there may be more.
    fn serve_ready(&self) -> bool {
        /// Sources that are served before other tasks have their turn.
        const SERVED_AT_ONCE: usize = 16;
        let mut worker = vfiod_sync::lock(&self.buffers).pop().unwrap_or_default();
        let more = (0..SERVED_AT_ONCE).all(|_| self.pool.serve_one(&mut worker));
        worker.trim();
        let mut buffers = vfiod_sync::lock(&self.buffers);
        if buffers.is_empty() {
            buffers.push(worker);
        }
        more
    }
}
