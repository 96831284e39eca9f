//! Which ranges of a disk are being read and changed: what would see the half of another one waits.
//!
//! A range is entered when it is asked for, and is granted when no range that was entered before it,
//! and that it must not overlap, is left. So ranges are granted in the order in which they were asked
//! for, nobody is overtaken for ever, and there is no circle of waiters.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};

use vfiod_sync::{Mutex, lock};

/// The ranges that are in use, or waited for.
#[derive(Default)]
pub(crate) struct Ranges {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// No range that is entered is longer.
    longest: u64,
    /// By begin and number.
    entered: BTreeMap<(u64, u64), Entry>,
}

struct Entry {
    end: u64,
    exclusive: bool,
    /// Ranges in front of it that are left.
    before: usize,
    waker: Option<Waker>,
}

impl State {
    /// The ranges that this one must not be in use with.
    fn conflicting(
        &mut self,
        range: Range<u64>,
        exclusive: bool,
    ) -> impl Iterator<Item = (u64, &mut Entry)> {
        let from = (range.start.saturating_sub(self.longest), 0);
        let entered = self.entered.range_mut(from..(range.end, 0));
        entered.filter_map(move |((_, number), entry)| {
            let conflicts = entry.end > range.start && (exclusive || entry.exclusive);
            conflicts.then_some((*number, entry))
        })
    }
}

/// A range in use, or waited for. Dropping it gives the range back.
pub(crate) struct RangeLock {
    ranges: Arc<Ranges>,
    start: u64,
    number: u64,
}

impl Ranges {
    /// Enters a range; `exclusive`: nobody else may use any part of it. [`RangeLock::granted`] says when it
    /// may be used.
    pub(crate) fn enter(self: &Arc<Self>, range: Range<u64>, exclusive: bool) -> RangeLock {
        let mut state = lock(&self.state);
        let before = state.conflicting(range.clone(), exclusive).count();
        let number = state.next;
        state.next += 1;
        state.longest = state.longest.max(range.end - range.start);
        let entry = Entry { end: range.end, exclusive, before, waker: None };
        state.entered.insert((range.start, number), entry);
        RangeLock { ranges: self.clone(), start: range.start, number }
    }

    /// How many ranges are in use or waited for.
    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.state).entered.len()
    }
}

impl RangeLock {
    /// Whether the range may be used.
    pub(crate) fn is_granted(&self) -> bool {
        let state = lock(&self.ranges.state);
        state.entered.get(&(self.start, self.number)).is_none_or(|entry| entry.before == 0)
    }

    /// Waits until the range may be used.
    pub(crate) async fn granted(&self) {
        poll_fn(|cx| {
            let mut state = lock(&self.ranges.state);
            match state.entered.get_mut(&(self.start, self.number)) {
                Some(entry) if entry.before > 0 => {
                    entry.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl Drop for RangeLock {
    fn drop(&mut self) {
        let mut state = lock(&self.ranges.state);
        let Some(left) = state.entered.remove(&(self.start, self.number)) else { return };
        let mut woken = Vec::new();
        for (number, entry) in state.conflicting(self.start..left.end, left.exclusive) {
            // Those in front do not wait for this one.
            if number > self.number {
                entry.before -= 1;
                woken.extend(entry.waker.take_if(|_| entry.before == 0));
            }
        }
        if state.entered.is_empty() {
            state.longest = 0;
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_granted_in_their_order() {
        let ranges = Arc::new(Ranges::default());
        let write = ranges.enter(8..16, true);
        let beside = ranges.enter(16..24, true);
        let read = ranges.enter(0..9, false);
        let next = ranges.enter(15..17, true);
        let last = ranges.enter(15..16, false);
        let granted = |locks: [&RangeLock; 5]| locks.map(RangeLock::is_granted);
        assert_eq!(
            granted([&write, &beside, &read, &next, &last]),
            [true, true, false, false, false]
        );
        drop(write);
        assert_eq!(
            granted([&beside, &read, &next, &last, &beside]),
            [true, true, false, false, true]
        );
        // One that gives up does not hold up others.
        drop(next);
        assert!(last.is_granted());
        drop((beside, read, last));
        assert_eq!(ranges.len(), 0);
    }

    #[test]
    fn readers_share_a_range() {
        let ranges = Arc::new(Ranges::default());
        let [first, second] = [ranges.enter(0..8, false), ranges.enter(0..8, false)];
        let write = ranges.enter(7..8, true);
        let third = ranges.enter(0..8, false);
        assert!(first.is_granted() && second.is_granted() && !write.is_granted());
        assert!(!third.is_granted(), "a reader overtook a writer");
        drop(first);
        assert!(!write.is_granted());
        drop(second);
        assert!(write.is_granted() && !third.is_granted());
        drop(write);
        assert!(third.is_granted());
    }

    /// Random ranges: those that are granted never conflict, and all are granted in the end.
    #[test]
    fn ranges_in_use_never_conflict() {
        let ranges = Arc::new(Ranges::default());
        let mut held: Vec<(Range<u64>, bool, RangeLock)> = Vec::new();
        let mut random = 1u64;
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 33
        };
        for _ in 0..20_000 {
            let (start, len, exclusive) = (next() % 64, 1 + next() % 16, next() % 2 == 0);
            let range = start..start + len;
            held.push((range.clone(), exclusive, ranges.enter(range, exclusive)));
            let granted: Vec<_> = held.iter().filter(|(.., lock)| lock.is_granted()).collect();
            for (i, (a, a_exclusive, _)) in granted.iter().enumerate() {
                for (b, b_exclusive, _) in &granted[i + 1..] {
                    let overlap = a.start < b.end && b.start < a.end;
                    assert!(!overlap || !(*a_exclusive || *b_exclusive), "{a:?} beside {b:?}");
                }
            }
            while held.len() > 12 {
                let granted = held.iter().position(|(.., lock)| lock.is_granted());
                held.swap_remove(granted.expect("nobody may go on"));
            }
        }
        while let Some(granted) = held.iter().position(|(.., lock)| lock.is_granted()) {
            held.swap_remove(granted);
        }
        assert_eq!((held.len(), ranges.len()), (0, 0));
    }
}
