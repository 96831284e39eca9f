//! Tasks and threads that wait for the same thing.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use vfiod_sync::{Mutex, lock};

use crate::coop;

/// The wakers of those who wait for one thing.
///
/// Whoever changes the thing changes it first and calls [`Waiters::wake_all`] then. Whoever waits
/// looks again after registering, as [`Waiters::wait_for`] does. So no change is missed.
pub struct Waiters {
    wakers: Mutex<Wakers>,
}

#[derive(Default)]
struct Wakers {
    next_key: u64,
    /// The first waiter. Most things have only one, which needs no allocation.
    first: Option<(u64, Waker)>,
    others: Vec<(u64, Waker)>,
}

impl Waiters {
    /// Nobody waits yet.
    pub fn new() -> Self {
        Self { wakers: Mutex::new(Wakers::default()) }
    }

    /// Wakes everybody who waits. Wakers are called without a lock held.
    pub fn wake_all(&self) {
        let (first, others) = {
            let mut wakers = lock(&self.wakers);
            (wakers.first.take(), std::mem::take(&mut wakers.others))
        };
        for (_, waker) in first.into_iter().chain(others) {
            waker.wake();
        }
    }

    /// Waits until `condition` returns something. It is called by whoever polls the future, with
    /// no lock held.
    pub fn wait_for<T, C: FnMut() -> Option<T>>(&self, condition: C) -> WaitFor<'_, C> {
        WaitFor { registered: Registered { waiters: self, key: None }, condition }
    }

    /// Registers `waker` under `key`, or replaces the waker that has this key.
    fn register(&self, key: &mut Option<u64>, waker: &Waker) {
        let mut wakers = lock(&self.wakers);
        let wakers = &mut *wakers;
        let key = *key.get_or_insert_with(|| {
            wakers.next_key += 1;
            wakers.next_key
        });
        let mut all = wakers.first.iter_mut().chain(&mut wakers.others);
        if let Some((_, known)) = all.find(|(known, _)| *known == key) {
            known.clone_from(waker);
        } else if wakers.first.is_none() {
            wakers.first = Some((key, waker.clone()));
        } else {
            wakers.others.push((key, waker.clone()));
        }
    }

    fn forget(&self, key: u64) {
        let mut wakers = lock(&self.wakers);
        let removed = if wakers.first.as_ref().is_some_and(|(known, _)| *known == key) {
            wakers.first.take()
        } else {
            let position = wakers.others.iter().position(|(known, _)| *known == key);
            position.map(|position| wakers.others.swap_remove(position))
        };
        // The last waker of a cancelled task may drop its future: not under the lock.
        drop(wakers);
        drop(removed);
    }
}

impl Default for Waiters {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Waiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters").finish_non_exhaustive()
    }
}

/// A place among the waiters, given up when dropped.
struct Registered<'a> {
    waiters: &'a Waiters,
    key: Option<u64>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.waiters.forget(key);
        }
    }
}

/// The future of [`Waiters::wait_for`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct WaitFor<'a, C> {
    registered: Registered<'a>,
    condition: C,
}

impl<C> Unpin for WaitFor<'_, C> {}

impl<T, C: FnMut() -> Option<T>> Future for WaitFor<'_, C> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if coop::is_spent(cx) {
            return Poll::Pending;
        }
        let this = &mut *self;
        if let Some(value) = (this.condition)() {
            return Poll::Ready(value);
        }
        this.registered.waiters.register(&mut this.registered.key, cx.waker());
        // It may have changed before the registration, and whoever changed it found no waker.
        match (this.condition)() {
            Some(value) => Poll::Ready(value),
            None => Poll::Pending,
        }
    }
}
