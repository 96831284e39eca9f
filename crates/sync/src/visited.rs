//! A lock whose holder looks for those who must not wait for it.

use crate::atomic::{AtomicBool, Ordering, fence};
use crate::{Mutex, MutexGuard, lock, try_lock};

/// A value behind a lock that some hold for long, while others, the *visitors*, look at it now and then and must not
/// wait. A visitor that finds it locked leaves its visit to the holder.
///
/// ```text
/// visitor:  try_visit() ─► a guard: does what it came for, unlocks, then as a holder
///                      └► `None`: a holder learns of it, and visits after it has unlocked
/// holder:   lock(), …, unlocks, take_left() ─► true: visits
/// ```
///
/// Whoever has unlocked it calls [`Visited::take_left`], or a visit may be lost.
#[derive(Debug, Default)]
pub struct Visited<T> {
    value: Mutex<T>,
    /// A visitor found it locked.
    left: AtomicBool,
}

impl<T> Visited<T> {
    /// A value that nobody has locked.
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), left: AtomicBool::new(false) }
    }

    /// Locks it. Blocks until it is free. [`Visited::take_left`] is to be called after it was unlocked.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.value)
    }

    /// Locks it, if it is free now; `None`: nothing was done. Otherwise as [`Visited::lock`].
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        try_lock(&self.value)
    }

    /// Locks it for a visit, if it is free now. `None`: whoever has it locked visits in the caller's place. Otherwise
    /// as [`Visited::lock`]. Does not block.
    pub fn try_visit(&self) -> Option<MutexGuard<'_, T>> {
        if let Some(value) = try_lock(&self.value) {
            return Some(value);
        }
        // A swap: the holder, who visits for all that have left one, sees what each of them has seen before.
        self.left.swap(true, Ordering::AcqRel);
        // Either the holder, who unlocks it and then looks, sees that; or this sees that it is unlocked.
        fence(Ordering::SeqCst);
        try_lock(&self.value)
    }

    /// Whether somebody has left a visit, which the caller makes then. To be called after each unlock.
    #[must_use = "the visit is the caller's"]
    pub fn take_left(&self) -> bool {
        fence(Ordering::SeqCst);
        self.left.load(Ordering::Relaxed) && self.left.swap(false, Ordering::Acquire)
    }
}

#[cfg(all(test, loom))]
mod exhaustive {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::atomic::AtomicU32;

    /// Something that completes: how many have, and how many of them were taken under the lock.
    struct Place {
        completed: AtomicU32,
        taken: Visited<u32>,
    }

    impl Place {
        fn visit(&self) {
            loop {
                let Some(mut taken) = self.taken.try_visit() else { return };
                *taken = self.completed.load(Ordering::Acquire);
                drop(taken);
                if !self.taken.take_left() {
                    return;
                }
            }
        }

        fn complete(&self) {
            self.completed.fetch_add(1, Ordering::AcqRel);
            self.visit();
        }
    }

    /// Two things complete, whose threads visit and do not wait, while a third one has the lock for something else:
    /// both were taken in the end.
    #[test]
    fn visit_that_was_left_is_made() {
        let mut model = loom::model::Builder::new();
        // Faults are found from 4 on; all orders take five minutes, and were tried once.
        model.preemption_bound = Some(5);
        model.check(|| {
            let place = Arc::new(Place { completed: AtomicU32::new(0), taken: Visited::new(0) });
            let visitor = thread::spawn({
                let place = place.clone();
                move || place.complete()
            });
            let holder = thread::spawn({
                let place = place.clone();
                move || {
                    drop(place.taken.lock());
                    if place.taken.take_left() {
                        place.visit();
                    }
                }
            });
            place.complete();
            visitor.join().unwrap();
            holder.join().unwrap();
            assert_eq!(*place.taken.lock(), 2, "a visit was lost");
        });
    }
}
