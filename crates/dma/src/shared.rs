//! A value that many read at once, each reader under a lock of its own, and that is changed
//! under all of these locks.
//!
//! The map of a space is read at every access of every device that is attached to it. With one
//! lock for all readers, devices that share a space would wait for each other's cache line, and
//! a device could not be moved to another space without a second lock. Here each attachment has
//! a [`Shard`]: a lock that says which value it reads, and protects that value, too.
//!
//! # Why it is sound
//! Let V be the value of a [`Shared`]. The shards that point to it are exactly those in its list
//! `shards`: [`Shard::set`] changes both with the list's lock and the shard's lock held.
//! - A reader holds the lock of a shard that points to V, for reading, or the list's lock.
//! - A writer holds the list's lock, and the lock of every shard in the list for writing.
//!
//! So no reader is there while a writer is, and there is one writer at a time.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vfiod_sync::{Arc, Mutex, RwLock, RwLockReadGuard, lock, point, read, write};

/// The value, and the shards that read it.
pub(crate) struct Shared<T> {
    value: UnsafeCell<T>,
    shards: Mutex<Vec<Arc<Shard<T>>>>,
    /// Writers that wait for readers, or are at work. Not the facade's: only a hint to readers.
    writers: AtomicUsize,
}

// SAFETY: readers on several threads get `&T` at once, and a writer on any thread gets `&mut T`,
// but never both, as the module's documentation shows.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

/// One reader's lock, and what it reads now.
pub(crate) struct Shard<T> {
    of: RwLock<Option<Arc<Shared<T>>>>,
    /// Where the last look-up ended; only a hint. Not the facade's for that reason.
    hint: AtomicU64,
}

/// Reading, until it is dropped.
pub(crate) struct Reading<'a, T> {
    guard: RwLockReadGuard<'a, Option<Arc<Shared<T>>>>,
}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Arc<Self> {
        Arc::new(Self {
            value: UnsafeCell::new(value),
            shards: Mutex::default(),
            writers: AtomicUsize::new(0),
        })
    }

    /// Reads the value without a shard. Waits for writers, and delays them; not for data paths.
    pub(crate) fn look<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let _shards = lock(&self.shards);
        // SAFETY: a writer holds the list's lock, which is ours.
        f(unsafe { &*self.value.get() })
    }

    /// Changes the value. Blocks until the readers that are there have ended; new ones wait.
    pub(crate) fn change<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let shards = lock(&self.shards);
        self.writers.fetch_add(1, Ordering::Relaxed);
        let result = self.change_under(&shards, f);
        self.writers.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Takes the locks of `shards` one after the other, then calls `f`. Recursive, so that the
    /// guards need no allocation; spaces with more than a few attachments are rare.
    fn change_under<R>(&self, shards: &[Arc<Shard<T>>], f: impl FnOnce(&mut T) -> R) -> R {
        match shards {
            [first, rest @ ..] => {
                let _guard = write(&first.of);
                self.change_under(rest, f)
            }
            // SAFETY: the caller holds the list's lock, and by now the locks of all shards in it
            // for writing; so there is no other reader or writer.
            [] => f(unsafe { &mut *self.value.get() }),
        }
    }

    /// Whether a writer waits for readers. One that reads for long should end then, and begin
    /// again.
    #[inline]
    pub(crate) fn writer_waits(&self) -> bool {
        self.writers.load(Ordering::Relaxed) > 0
    }
}

impl<T> Shard<T> {
    /// A shard that reads nothing.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { of: RwLock::new(None), hint: AtomicU64::new(0) })
    }

    /// Reads the value that the shard points to. Blocks while it is changed.
    #[inline]
    pub(crate) fn read(&self) -> Option<Reading<'_, T>> {
        let guard = read(&self.of);
        guard.is_some().then_some(Reading { guard })
    }

    /// Points the shard to another value, or to none, and returns the one before. A reader sees
    /// one or the other. Blocks until the readers that are there have ended.
    ///
    /// Not to be called for one shard on two threads at once.
    pub(crate) fn set(self: &Arc<Self>, to: Option<Arc<Shared<T>>>) -> Option<Arc<Shared<T>>> {
        let from = read(&self.of).clone();
        let list = |of: &Option<Arc<Shared<T>>>| of.as_ref().map_or(std::ptr::null(), Arc::as_ptr);
        if list(&from) == list(&to) {
            return from;
        }
        {
            // In the order of their addresses, for another shard may go the other way.
            let to_first = list(&to) < list(&from);
            let early = to.as_ref().filter(|_| to_first).map(|to| lock(&to.shards));
            let mut leaves = from.as_ref().map(|from| lock(&from.shards));
            let mut joins = early.or_else(|| to.as_ref().map(|to| lock(&to.shards)));
            let mut of = write(&self.of);
            if let Some(shards) = &mut leaves {
                shards.retain(|shard| !Arc::ptr_eq(shard, self));
            }
            if let Some(shards) = &mut joins {
                shards.push(self.clone());
            }
            of.clone_from(&to);
        }
        from
    }

    /// Blocks until every reader that is there now has ended.
    pub(crate) fn wait_for_readers(&self) {
        point();
        drop(write(&self.of));
    }

    /// Where the last look-up ended.
    #[inline]
    pub(crate) fn hint(&self) -> u64 {
        self.hint.load(Ordering::Relaxed)
    }

    /// Notes where a look-up ended.
    #[inline]
    pub(crate) fn set_hint(&self, hint: u64) {
        self.hint.store(hint, Ordering::Relaxed);
    }
}

impl<T> Reading<'_, T> {
    #[inline]
    fn shared(&self) -> &Shared<T> {
        match &*self.guard {
            Some(shared) => shared,
            None => unreachable!("a shard that points to nothing is not read"),
        }
    }

    /// Whether a writer waits for this reader, or for others of the same value.
    #[inline]
    pub(crate) fn writer_waits(&self) -> bool {
        self.shared().writer_waits()
    }
}

impl<T> Deref for Reading<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock of a shard that points to this value is held for reading.
        unsafe { &*self.shared().value.get() }
    }
}
