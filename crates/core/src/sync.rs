//! The synchronisation primitives of the core: those of std, or a model checker's.
//!
//! `RUSTFLAGS="--cfg shuttle"` or `--cfg loom` swaps them. [`std::sync::Arc`] is used as it is
//! everywhere: nothing here depends on the order of reference counts.

#![allow(unused_imports, dead_code)]

#[cfg(all(loom, not(shuttle)))]
pub(crate) use loom::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
        atomic,
    },
    thread,
};
#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
        atomic,
    },
    thread,
};
pub(crate) use std::sync::Arc;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::{
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
        atomic,
    },
    thread,
};

use std::sync::{PoisonError, TryLockError};
use std::time::Duration;

/// Locks a mutex. A panic under it poisons nothing: what it guards is kept consistent by its
/// holders, and panics of devices are dealt with where devices are called.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a mutex that is free.
pub(crate) fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Takes a lock for reading; likewise.
pub(crate) fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock for writing; likewise.
pub(crate) fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Lets a lock go until `signal` or for a time ([`Duration::MAX`]: for ever); takes it again.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn wait<'a, T>(
    signal: &Condvar,
    _mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    signal.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

/// Likewise. Time does not pass in a model: a bounded wait lets the others run, and is over.
#[cfg(any(loom, shuttle))]
pub(crate) fn wait<'a, T>(
    signal: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    if time == Duration::MAX {
        return signal.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    drop(guard);
    thread::yield_now();
    lock(mutex)
}

/// A place where a model's tasks may be switched that takes no lock: before something that must
/// not happen too late. Nothing in an ordinary build.
#[inline(always)]
pub(crate) fn point() {
    #[cfg(shuttle)]
    thread::yield_now();
}
