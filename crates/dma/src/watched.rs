//! The memory whose faults are recovered from.
//!
//! A signal handler looks here, at every fault, while other threads add and remove ranges: so it must
//! not take a lock, and must be quick also if there are many ranges. There are two copies of a
//! sorted list. The handler counts itself in at the one that is shown and searches it. A change is made
//! to the other one, which is then shown; when the handlers that were in the first one have left,
//! that is changed, too. A handler starts over only if a change was made meanwhile, and never waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Most ranges at a time: as many as the process may map for clients, and 1,024 of its own.
const RANGES: usize = 33 << 10;

static WATCHED: Watched<RANGES> = Watched::new();

/// Faults in a range are recovered from while this lives.
#[derive(Debug)]
pub(crate) struct Watch {
    first: usize,
}

/// Begins to recover from faults in `len` bytes at `first`, which are mapped. `None`: there are
/// more ranges than a process may map.
pub(crate) fn watch(first: *const u8, len: usize) -> Option<Watch> {
    let first = first.addr();
    WATCHED.insert(first, first.checked_add(len)?).then_some(Watch { first })
}

/// Whether an address is watched. Async-signal-safe. The range of a routine that runs now is found
/// for certain: it was entered before, and stays.
#[cfg_attr(any(vfiod_portable, not(target_arch = "x86_64")), allow(dead_code))]
pub(crate) fn contains(address: usize) -> bool {
    WATCHED.contains(address)
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.remove(self.first);
    }
}

/// Ranges that do not overlap.
struct Watched<const N: usize> {
    lists: [List<N>; 2],
    /// Which list handlers search.
    shown: AtomicUsize,
    /// Held by whoever changes the lists.
    change: Mutex<()>,
}

/// Ranges in descending order, for the kernel places new mappings below those that are there.
struct List<const N: usize> {
    /// First address, and the one after the last.
    ranges: [[AtomicUsize; 2]; N],
    len: AtomicUsize,
    /// Handlers that search it now.
    readers: AtomicUsize,
}

impl<const N: usize> List<N> {
    const fn new() -> Self {
        let ranges = [const { [const { AtomicUsize::new(0) }; 2] }; N];
        Self { ranges, len: AtomicUsize::new(0), readers: AtomicUsize::new(0) }
    }

    fn get(&self, at: usize) -> [usize; 2] {
        [0, 1].map(|side| self.ranges[at][side].load(Ordering::Relaxed))
    }

    fn set(&self, at: usize, range: [usize; 2]) {
        for (side, address) in self.ranges[at].iter().zip(range) {
            side.store(address, Ordering::Relaxed);
        }
    }

    /// The place of the first range that begins at `address` or below it.
    fn find(&self, address: usize) -> usize {
        let (mut low, mut high) = (0, self.len.load(Ordering::Relaxed).min(N));
        while low < high {
            let middle = (low + high) / 2;
            if self.get(middle)[0] > address { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn contains(&self, address: usize) -> bool {
        let at = self.find(address);
        at < self.len.load(Ordering::Relaxed).min(N) && address < self.get(at)[1]
    }

    fn insert(&self, range: [usize; 2]) {
        let (at, len) = (self.find(range[0]), self.len.load(Ordering::Relaxed));
        (at..len).rev().for_each(|from| self.set(from + 1, self.get(from)));
        self.set(at, range);
        self.len.store(len + 1, Ordering::Relaxed);
    }

    fn remove(&self, first: usize) {
        let (at, len) = (self.find(first), self.len.load(Ordering::Relaxed));
        if at < len && self.get(at)[0] == first {
            (at + 1..len).for_each(|from| self.set(from - 1, self.get(from)));
            self.len.store(len - 1, Ordering::Relaxed);
        }
    }
}

impl<const N: usize> Watched<N> {
    const fn new() -> Self {
        Self {
            lists: [const { List::new() }; 2],
            shown: AtomicUsize::new(0),
            change: Mutex::new(()),
        }
    }

    fn contains(&self, address: usize) -> bool {
        loop {
            let shown = self.shown.load(Ordering::SeqCst);
            let list = &self.lists[shown & 1];
            list.readers.fetch_add(1, Ordering::SeqCst);
            // Once counted in: if it is still the one that is shown, it is not changed before we have
            // left.
            let stays = self.shown.load(Ordering::SeqCst) == shown;
            let found = stays && list.contains(address);
            list.readers.fetch_sub(1, Ordering::SeqCst);
            if stays {
                return found;
            }
        }
    }

    /// `false`: there is no room.
    fn insert(&self, first: usize, end: usize) -> bool {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.lists[0].len.load(Ordering::Relaxed) < N;
        if room {
            self.change(|list| list.insert([first, end]));
        }
        room
    }

    fn remove(&self, first: usize) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.change(|list| list.remove(first));
    }

    /// Makes a change to both lists. The caller holds the lock.
    fn change(&self, change: impl Fn(&List<N>)) {
        let shown = self.shown.load(Ordering::SeqCst);
        // Nobody searches the other one: the last change waited for that.
        change(&self.lists[(shown + 1) & 1]);
        self.shown.store(shown.wrapping_add(1), Ordering::SeqCst);
        let before = &self.lists[shown & 1];
        // Handlers are short, but one's thread may be preempted.
        while before.readers.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        change(before);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn address_is_found_in_the_ranges_that_are_watched_and_nowhere_else() {
        static SMALL: Watched<64> = Watched::new();
        let (mut random, mut model) = (1u64, BTreeMap::new());
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((random >> 33) % limit) as usize
        };
        for _ in 0..20_000 {
            let first = 10 + 10 * below(100);
            if model.remove(&first).is_some() {
                SMALL.remove(first);
            } else {
                let end = first + 1 + below(10);
                let fits = SMALL.insert(first, end);
                assert_eq!(fits, model.len() < 64);
                if fits {
                    model.insert(first, end);
                }
            }
            let address = below(1100);
            let range = model.range(..=address).next_back();
            assert_eq!(SMALL.contains(address), range.is_some_and(|(_, end)| address < *end));
        }
    }

    #[test]
    fn range_that_stays_is_found_while_others_come_and_go() {
        static SMALL: Watched<256> = Watched::new();
        assert!(SMALL.insert(5_000, 5_010));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        assert!(SMALL.contains(5_003));
                        assert!(!SMALL.contains(5_010));
                    }
                });
            }
            for round in 0..1_000usize {
                let first =
                    if round % 2 == 0 { 100 + round % 97 * 20 } else { 6_000 + round % 89 * 20 };
                assert!(SMALL.insert(first, first + 20));
                SMALL.remove(first);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
