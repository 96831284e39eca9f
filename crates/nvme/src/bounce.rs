//! The buffers of a controller, for data that a disk cannot move by itself, and its long lists of pieces of guest
//! memory: how many bytes there may be, and who waits for some.
//!
//! A command takes all that it needs at once, so that none has a part and waits for the rest. What its list needs is
//! known when the list was read: so only [`LONG_LISTS`] of a controller are read, or wait to be charged, at a
//! time.
//!
//! A command that lacks memory in any other place has given all back, waits, and begins anew. One at a time does: so
//! none takes what another one has just given back, and however many wait, none of them keeps a thread busy.

use std::time::Duration;

use vfiod_core::MemoryCharge;
use vfiod_nvme_spec::Status;
use vfiod_pci::{Task, Worker};
use vfiod_sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Waiters, race};

use crate::denied::Denied;
use crate::limits::DEFAULT_BUFFERS;

/// How long a command waits before it looks again whether there is memory, and its user may have it. Nobody tells
/// when others have given some back.
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
    /// Commands that wait for memory.
    waiting: AtomicUsize,
    released: Waiters,
    /// A command that has lacked memory has its turn.
    is_retrying: AtomicBool,
    retried: Waiters,
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

/// A command that waits for memory.
#[derive(Debug)]
struct Waiting<'a>(&'a BounceMemory);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.released.wake_all();
        }
    }
}

/// The turn of a command that has lacked memory, until it has ended.
#[derive(Debug)]
pub(crate) struct RetryTurn<'a> {
    memory: &'a BounceMemory,
    _waiting: Waiting<'a>,
}

impl Drop for RetryTurn<'_> {
    fn drop(&mut self) {
        self.memory.is_retrying.store(false, Ordering::SeqCst);
        self.memory.retried.wake_all();
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
        Self {
            lists: AtomicUsize::new(0),
            list_ended: Waiters::new(),
            limit,
            used,
            waiting,
            released: Waiters::new(),
            is_retrying: AtomicBool::new(false),
            retried: Waiters::new(),
        }
    }

    /// Whether no command waits for memory. Otherwise no more are read.
    pub(crate) fn is_enough(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Waits until no command waits for memory.
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
    ///
    /// # Errors
    /// What `ends` says: the command is not to begin any more.
    pub(crate) async fn take<M: Worker, T>(
        &self,
        task: &Task<M>,
        ends: impl Future<Output = Status>,
        len: usize,
        make: impl Fn() -> Option<T>,
    ) -> Result<(Bounced<'_>, T), Status> {
        let take = || {
            let mut used = lock(&self.used);
            let fits = *used == 0 || *used + len <= self.limit;
            let charge = fits.then(|| task.charge_memory(len as u64).ok()).flatten()?;
            let made = make()?;
            *used += len;
            Some((charge, made))
        };
        let _waiting = self.wait();
        let taken = async {
            loop {
                let taken = async { Some(self.released.wait_for(take).await) };
                let retry = async {
                    task.task().sleep(RETRY).await;
                    None
                };
                if let Some((_charge, made)) = race(taken, retry).await {
                    return Ok((Bounced { memory: self, len, _charge }, made));
                }
            }
        };
        race(taken, async { Err(ends.await) }).await
    }

    /// Waits until a command that lacks memory may begin anew. It has given back all that it had, but for its
    /// `turn`, which others wait for.
    ///
    /// # Errors
    /// What `ends` says: the command is not to begin any more.
    pub(crate) async fn again<'a, M: Worker>(
        &'a self,
        task: &Task<M>,
        ends: impl Future<Output = Status>,
        turn: &mut Option<RetryTurn<'a>>,
    ) -> Result<(), Status> {
        let waited = async {
            if turn.is_none() {
                let (_waiting, mut is_free) = (self.wait(), true);
                let take = || {
                    let taken = !self.is_retrying.swap(true, Ordering::SeqCst);
                    is_free &= taken;
                    taken.then_some(())
                };
                self.retried.wait_for(take).await;
                *turn = Some(RetryTurn { memory: self, _waiting });
                if !is_free {
                    // It has waited until another one had what it needs.
                    return Ok(());
                }
            }
            task.task().sleep(RETRY).await;
            Ok(())
        };
        race(waited, async { Err(ends.await) }).await
    }

    /// What a command has come to; `None`: it has lacked memory, has waited ([`BounceMemory::again`]), and begins anew.
    ///
    /// # Errors
    /// What the command ends with.
    pub(crate) async fn settled<'a, M: Worker, T>(
        &'a self,
        task: &Task<M>,
        ends: impl Future<Output = Status>,
        done: Result<T, Denied>,
        turn: &mut Option<RetryTurn<'a>>,
    ) -> Result<Option<T>, Status> {
        match done {
            Ok(result) => Ok(Some(result)),
            Err(Denied::With(status)) => Err(status),
            Err(Denied::Short) => self.again(task, ends, turn).await.map(|()| None),
        }
    }

    /// Waits for a moment, in a command that lacks memory and has some: others may wait for that.
    ///
    /// # Errors
    /// What `ends` says: the command is not to go on.
    pub(crate) async fn moment<M: Worker>(
        &self,
        task: &Task<M>,
        ends: impl Future<Output = Status>,
    ) -> Result<(), Status> {
        let _waiting = self.wait();
        let slept = async {
            task.task().sleep(RETRY).await;
            Ok(())
        };
        race(slept, async { Err(ends.await) }).await
    }

    fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }
}

impl Drop for Bounced<'_> {
    fn drop(&mut self) {
        *lock(&self.memory.used) -= self.len;
        self.memory.released.wake_all();
    }
}
