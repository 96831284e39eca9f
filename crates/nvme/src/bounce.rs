//! The buffers of a controller, for data that a disk cannot move by itself, and its long lists of pieces of guest
//! memory: how many bytes there may be, and who waits for some.
//!
//! A command takes all that it needs at once, so that none has a part and waits for the rest. What its list needs is
//! known when the list was read: so only [`LONG_LISTS`] of a controller are read, or wait to be charged, at a
//! time.

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

/// Long lists that are read, or wait until their memory may be taken.
const LONG_LISTS: usize = 4;

/// The buffers of a controller.
#[derive(Debug)]
pub(crate) struct BounceMemory {
    /// Turns that are taken.
    lists: AtomicUsize,
    list_ended: Waiters,
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

/// The right to read a long list, until it is charged.
#[derive(Debug)]
pub(crate) struct ListTurn<'a>(&'a BounceMemory);

impl Drop for ListTurn<'_> {
    fn drop(&mut self) {
        self.0.lists.fetch_sub(1, Ordering::SeqCst);
        self.0.list_ended.wake_all();
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
        let (lists, list_ended) = (AtomicUsize::new(0), Waiters::new());
        Self { lists, list_ended, limit, used, waiting, released: Waiters::new() }
    }

    /// Whether no command waits for a buffer. Otherwise no more are read.
    pub(crate) fn is_enough(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Waits until no command waits for a buffer.
    pub(crate) async fn enough(&self) {
        self.released.wait_for(|| self.is_enough().then_some(())).await;
    }

    /// Waits until a long list may be read.
    pub(crate) async fn list_turn(&self) -> ListTurn<'_> {
        let take = |lists| (lists < LONG_LISTS).then_some(lists + 1);
        let taken = || self.lists.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok();
        self.list_ended.wait_for(taken).await;
        ListTurn(self)
    }

    /// Waits until `len` bytes may be had, and the user who has the controller open may have them, and makes what is
    /// to be made of them. Where there is no memory for that, it is tried again. One command alone may have any
    /// length.
    pub(crate) async fn take<M: Worker, T>(
        &self,
        task: &Task<M>,
        len: usize,
        make: impl Fn() -> Option<T>,
    ) -> (Bounced<'_>, T) {
        let take = || {
            let mut used = lock(&self.used);
            let fits = *used == 0 || *used + len <= self.limit;
            let charge = fits.then(|| task.charge_memory(len as u64).ok()).flatten()?;
            let made = make()?;
            *used += len;
            Some((charge, made))
        };
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(self);
        loop {
            let taken = async { Some(self.released.wait_for(take).await) };
            let retry = async {
                task.task().sleep(RETRY).await;
                None
            };
            if let Some((_charge, made)) = race(taken, retry).await {
                return (Bounced { memory: self, len, _charge }, made);
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
