//! The ring of a runtime, shared by all devices whose tasks run there.

use vfiod_dma::{Error, Result};
use vfiod_sync::{Arc, Mutex, lock};
use vfiod_tasks::{Runtime, Task, WeakRuntime};

use crate::ring::Ring;

/// Requests that the kernel is given at once; more wait.
const ENTRIES: u32 = 256;

/// The rings that are in use, each with its runtime.
static RINGS: Mutex<Vec<(WeakRuntime, std::sync::Weak<RuntimeRing>)>> = Mutex::new(Vec::new());

/// A ring whose completions a task of a runtime takes. It ends when the last device that uses it
/// drops it.
#[derive(Debug)]
pub struct RuntimeRing {
    ring: Ring,
    // Dropping it cancels the task.
    _reaper: Task<()>,
}

impl RuntimeRing {
    /// The ring of `runtime`, made now if no device uses it yet. Takes a lock of the process.
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left for it.
    pub fn of(runtime: &Runtime) -> Result<Arc<Self>> {
        let mut rings = lock(&RINGS);
        rings.retain(|(_, ring)| ring.strong_count() > 0);
        let known = rings.iter().find(|(weak, _)| weak.is(runtime));
        if let Some(ring) = known.and_then(|(_, ring)| ring.upgrade()) {
            return Ok(ring);
        }
        let made = Arc::new(Self::new(runtime)?);
        rings.push((runtime.downgrade(), Arc::downgrade(&made)));
        Ok(made)
    }

    /// A ring of at most `threads` threads, whether or not there is io_uring. It is not shared by
    /// [`RuntimeRing::of`].
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left for it.
    pub fn with_threads(runtime: &Runtime, threads: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::served(runtime, Ring::with_threads(threads)?)?))
    }

    fn new(runtime: &Runtime) -> Result<Self> {
        Self::served(runtime, Ring::new(ENTRIES)?)
    }

    /// Takes the completions of a ring by a task.
    fn served(runtime: &Runtime, ring: Ring) -> Result<Self> {
        let completed = runtime
            .descriptor(ring.fd().clone())
            .map_err(|errno| Error::new(errno, "cannot wait for completions of I/O"))?;
        let taken = ring.clone();
        let reaper = runtime.spawn(async move {
            loop {
                completed.readable().await;
                taken.reap();
            }
        });
        Ok(Self { ring, _reaper: reaper })
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}
