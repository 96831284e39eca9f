//! The synchronisation primitives: those of std, or, with `--cfg shuttle`, the model checker's.

#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};
#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

use std::sync::PoisonError;
#[cfg(not(shuttle))]
use std::time::Instant;

/// Locks a mutex. A panic under it poisons nothing: no foreign code runs there.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets a lock go until `signal`; takes it again.
pub(crate) fn wait<'a, T>(signal: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    signal.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Likewise, but not past a moment; `None` when it has come. The lock is free then.
#[cfg(not(shuttle))]
pub(crate) fn wait_until<'a, T>(
    signal: &Condvar,
    guard: MutexGuard<'a, T>,
    moment: Instant,
) -> Option<MutexGuard<'a, T>> {
    let left = moment.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return None;
    }
    Some(signal.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0)
}

/// Likewise. Time does not pass in a model: the moment has come after one turn of the others.
#[cfg(shuttle)]
pub(crate) fn wait_until<'a, T>(
    _signal: &Condvar,
    guard: MutexGuard<'a, T>,
    _moment: std::time::Instant,
) -> Option<MutexGuard<'a, T>> {
    drop(guard);
    thread::yield_now();
    None
}
