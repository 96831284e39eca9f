//! Who has its turn at a set that several threads wait for.

use std::collections::BTreeSet;
use std::sync::Arc;

use vfiod_sync::model::{join_all, spawn};

use super::no_device::NoDevice;
use crate::set::{Phase, Set};
use crate::sync::{Mutex, lock};

/// Resets in a row by two threads, while others open and release members, and one joins.
pub(crate) fn open_waits_for_one_reset() {
    let set = Set::<NoDevice>::singleton();
    // Those that waited for a member when the last reset ended.
    let passed = Arc::<Mutex<BTreeSet<u64>>>::default();
    let resets = [0; 2].map(|_| {
        let (set, passed) = (set.clone(), passed.clone());
        spawn(move || {
            for _ in 0..3 {
                let resetting = set.try_begin(Phase::Resetting).expect("no time passes");
                let waiting = resetting.lock().waiting();
                let mut passed = lock(&passed);
                let overtaken = waiting.iter().find(|place| passed.contains(place));
                assert!(overtaken.is_none(), "an open waits for a second reset");
                *passed = waiting.into_iter().collect();
            }
        })
    });
    let others = [Phase::Opening, Phase::Closing].map(|phase| {
        let set = set.clone();
        spawn(move || (0..2).for_each(|_| drop(set.try_begin(phase).expect("no time passes"))))
    });
    let joins = {
        let set = set.clone();
        // Does not mark the set, so that the next one has its turn at once.
        spawn(move || drop(set.lock_idle()))
    };
    join_all(resets);
    join_all(others);
    join_all([joins]);
}

vfiod_sync::checks! {
    open_waits_for_one_reset: 1000,
}
