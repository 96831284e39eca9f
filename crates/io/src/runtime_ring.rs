//! The rings of a runtime, shared by all devices whose tasks run there: one for each worker thread.

use std::fmt;
use std::sync::OnceLock;

use vfiod_dma::{Error, Result};
use vfiod_sync::{Arc, Mutex, lock};
use vfiod_tasks::{Completions, Poll, Runtime, WeakRuntime, worker_seat};

use crate::ring::Ring;

/// Requests that the kernel is given at once by each ring; more wait.
const ENTRIES: u32 = 256;
/// The most rings. Workers above that share them.
const MOST: usize = 64;

/// The rings that are in use, for each runtime.
static RINGS: Mutex<Vec<(WeakRuntime, std::sync::Weak<RuntimeRing>)>> = Mutex::new(Vec::new());

/// The rings of a runtime's workers, whose completions its threads take ([`Runtime::completions`]). They end when the
/// last device that uses them drops this.
pub struct RuntimeRing {
    runtime: WeakRuntime,
    /// By the worker's seat; the first one is also for threads that are no workers.
    rings: Box<[OnceLock<Served>]>,
    first: Served,
}

/// A ring whose completions are taken.
struct Served {
    ring: Ring,
    _completions: Completions,
}

/// Takes a ring's completions.
struct Taker(Ring);

impl Poll for Taker {
    fn poll(&self) {
        self.0.take();
    }
}

impl Served {
    fn new(runtime: &Runtime, ring: Ring) -> Result<Self> {
        let completions = runtime
            .completions(ring.fd().clone(), Arc::new(Taker(ring.clone())))
            .map_err(|errno| Error::new(errno, "cannot wait for completions of I/O"))?;
        Ok(Self { ring, _completions: completions })
    }
}

impl RuntimeRing {
    /// The rings of `runtime`, the first one made now if no device uses them yet. Takes a lock of the
    /// process.
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
        let made = Arc::new(Self::new(runtime, Ring::new(ENTRIES)?, MOST - 1)?);
        rings.push((runtime.downgrade(), Arc::downgrade(&made)));
        Ok(made)
    }

    /// One ring of at most `threads` threads for all workers, whether or not there is io_uring. It is
    /// not shared by [`RuntimeRing::of`].
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left for it.
    pub fn with_threads(runtime: &Runtime, threads: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::new(runtime, Ring::with_threads(threads)?, 0)?))
    }

    fn new(runtime: &Runtime, first: Ring, others: usize) -> Result<Self> {
        Ok(Self {
            runtime: runtime.downgrade(),
            rings: (0..others).map(|_| OnceLock::new()).collect(),
            first: Served::new(runtime, first)?,
        })
    }

    /// The ring of the calling worker, made at its first call; the first worker's if there are no
    /// descriptors for another one. For requests that are started before the next await: a task may
    /// go on in another worker.
    pub fn ring(&self) -> &Ring {
        let seat = worker_seat().unwrap_or(0) % (self.rings.len() + 1);
        let Some(place) = seat.checked_sub(1) else { return &self.first.ring };
        let served = self.rings[place].get().or_else(|| self.make(place));
        served.map_or(&self.first.ring, |served| &served.ring)
    }

    #[cold]
    fn make(&self, place: usize) -> Option<&Served> {
        let runtime = self.runtime.upgrade()?;
        match Ring::new(ENTRIES).and_then(|ring| Served::new(&runtime, ring)) {
            // A replaced worker may have made it at the same time; then this one ends, unused.
            Ok(made) => Some(self.rings[place].get_or_init(|| made)),
            Err(error) => {
                tracing::debug!(%error, "a worker shares the ring of another one");
                None
            }
        }
    }
}

impl fmt::Debug for RuntimeRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = self.rings.iter().flat_map(OnceLock::get);
        let rings = std::iter::once(&self.first).chain(made).map(|served| &served.ring);
        f.debug_list().entries(rings).finish()
    }
}
