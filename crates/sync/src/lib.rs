#![doc = include_str!("../README.md")]

mod fair;
#[cfg(shuttle)]
pub mod model;
mod visited;

#[cfg(all(loom, not(shuttle)))]
pub use loom::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
        atomic,
    },
    thread, thread_local,
};
#[cfg(shuttle)]
pub use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
        atomic,
    },
    thread, thread_local,
};
pub use std::sync::Arc;
#[cfg(not(any(loom, shuttle)))]
pub use std::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
        atomic,
    },
    thread, thread_local,
};

pub use fair::{FairGuard, FairMutex};
pub use visited::Visited;

use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Locks a mutex, poisoned or not. Blocks until it is free.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a mutex, poisoned or not, if it is free now. Does not block.
pub fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Takes a lock for reading, poisoned or not. Blocks until no writer has it.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock for writing, poisoned or not. Blocks until nobody else has it.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Releases a mutex until `signal` is notified or `time` has passed ([`Duration::MAX`]: without
/// limit), and locks it again. May return early; `mutex` is the one that `guard` locks.
///
/// In a model time does not pass: a limited wait lets the other threads run once and ends.
pub fn wait<'a, T>(
    signal: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    if time == Duration::MAX {
        return signal.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    limited_wait(signal, mutex, guard, time)
}

/// Releases a mutex until `signal` is notified, but not past `deadline`, and locks it again.
/// Returns `None`, with the mutex released, if the deadline had passed before the call.
///
/// In a model time does not pass: the other threads run once, and the deadline has passed.
pub fn wait_until<'a, T>(
    signal: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    deadline: Instant,
) -> Option<MutexGuard<'a, T>> {
    if cfg!(any(loom, shuttle)) {
        drop(guard);
        thread::yield_now();
        return None;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return None;
    }
    Some(limited_wait(signal, mutex, guard, left))
}

/// Releases a mutex while `condition` holds, but not for longer than `time`, and locks it again.
/// `condition` is evaluated with the mutex locked, at first and after each notification of
/// `signal`; it may still hold when this returns.
///
/// In a model time does not pass: the other threads run once, and the time is over.
pub fn wait_while<'a, T>(
    signal: &Condvar,
    mutex: &'a Mutex<T>,
    mut guard: MutexGuard<'a, T>,
    time: Duration,
    mut condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    let deadline = Instant::now().checked_add(time);
    while condition(&mut guard) {
        guard = match deadline {
            None => wait(signal, mutex, guard, Duration::MAX),
            Some(deadline) => match wait_until(signal, mutex, guard, deadline) {
                Some(guard) => guard,
                None => return lock(mutex),
            },
        };
    }
    guard
}

#[cfg(not(any(loom, shuttle)))]
fn limited_wait<'a, T>(
    signal: &Condvar,
    _mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    signal.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(any(loom, shuttle))]
fn limited_wait<'a, T>(
    _signal: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    _time: Duration,
) -> MutexGuard<'a, T> {
    drop(guard);
    thread::yield_now();
    lock(mutex)
}

/// Lets shuttle switch to another thread at a place that takes no lock. Does nothing in other
/// builds.
#[inline(always)]
pub fn point() {
    #[cfg(shuttle)]
    thread::yield_now();
}
