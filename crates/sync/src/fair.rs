//! A lock that is taken in turn.

use std::time::Duration;

#[cfg(any(loom, shuttle))]
use crate::{Mutex as Inner, MutexGuard, lock, try_lock};
#[cfg(not(any(loom, shuttle)))]
use parking_lot::{Mutex as Inner, MutexGuard};

/// A mutex for what may be locked for long: a thread that unlocks it and locks it again at once does not
/// keep it from those that wait. It is not poisoned.
///
/// Under a model checker it is an ordinary one.
#[derive(Debug, Default)]
pub struct FairMutex<T>(Inner<T>);

/// What a [`FairMutex`] protects, locked.
pub type FairGuard<'a, T> = MutexGuard<'a, T>;

impl<T> FairMutex<T> {
    /// An unlocked mutex.
    pub fn new(value: T) -> Self {
        Self(Inner::new(value))
    }
}

#[cfg(not(any(loom, shuttle)))]
impl<T> FairMutex<T> {
    /// Blocks until the mutex is free.
    #[inline]
    pub fn lock(&self) -> FairGuard<'_, T> {
        // Hands the mutex over to the one that has waited longest, about every half of a millisecond.
        self.0.lock()
    }

    /// Blocks until the mutex is free, no longer than `time`.
    pub fn try_lock_for(&self, time: Duration) -> Option<FairGuard<'_, T>> {
        self.0.try_lock_for(time)
    }
}

#[cfg(any(loom, shuttle))]
impl<T> FairMutex<T> {
    /// Blocks until the mutex is free.
    pub fn lock(&self) -> FairGuard<'_, T> {
        lock(&self.0)
    }

    /// Locks the mutex if it is free, if not now, then after the other threads have run once.
    pub fn try_lock_for(&self, _time: Duration) -> Option<FairGuard<'_, T>> {
        try_lock(&self.0).or_else(|| {
            crate::thread::yield_now();
            try_lock(&self.0)
        })
    }
}
