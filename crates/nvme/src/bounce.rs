//! The buffers of a controller, for data that a disk cannot move by itself: how many bytes there may be, and who
//! waits for some.

use std::time::Duration;

use vfiod_core::MemoryCharge;
use vfiod_pci::{Task, Worker};
use vfiod_sync::atomic::{AtomicUsize, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Waiters, race};

use crate::limits::DEFAULT_BUFFERS;

/// How long a command waits before it looks again whether its user may have the memory. Nobody tells when that
/// has other memory back.
const RETRY: Duration = Duration::from_millis(10);

/// The buffers of a controller.
#[derive(Debug)]
pub(crate) struct BounceMemory {
    limit: usize,
    used: Mutex<usize>,
    /// Commands that wait for buffers.
    waiting: AtomicUsize,
    released: Waiters,
}

impl Default for BounceMemory {
    fn default() -> Self {
        Self::new(DEFAULT_BUFFERS)
    }
}

/// A command that waits for a buffer.
struct Waiting<'a>(&'a BounceMemory);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.released.wake_all();
        }
    }
}

/// Bytes of buffers that are in use.
#[derive(Debug)]
pub(crate) struct Bounced<'a> {
    memory: &'a BounceMemory,
    len: usize,
    /// What the user is charged.
    _charge: MemoryCharge,
}

impl BounceMemory {
    /// Buffers of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        let (used, waiting) = (Mutex::default(), AtomicUsize::new(0));
        Self { limit, used, waiting, released: Waiters::new() }
    }

    /// Whether no command waits for a buffer. Otherwise no more are read.
    pub(crate) fn is_enough(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Waits until no command waits for a buffer.
    pub(crate) async fn enough(&self) {
        self.released.wait_for(|| self.is_enough().then_some(())).await;
    }

    /// Waits until a buffer of `len` bytes may be made, and the user who has the controller open may have it.
    /// One alone may be of any length.
    pub(crate) async fn take<M: Worker>(&self, task: &Task<M>, len: usize) -> Bounced<'_> {
        let take = || {
            let mut used = lock(&self.used);
            let fits = *used == 0 || *used + len <= self.limit;
            let charge = fits.then(|| task.charge_memory(len as u64).ok()).flatten()?;
            *used += len;
            Some(charge)
        };
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(self);
        loop {
            let taken = async { Some(self.released.wait_for(take).await) };
            let retry = async {
                task.task().sleep(RETRY).await;
                None
            };
            if let Some(_charge) = race(taken, retry).await {
                return Bounced { memory: self, len, _charge };
            }
        }
    }
}

impl Drop for Bounced<'_> {
    fn drop(&mut self) {
        *lock(&self.memory.used) -= self.len;
        self.memory.released.wake_all();
    }
}
