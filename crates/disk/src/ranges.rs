//! Which ranges of a disk are being read and changed: what would see the half of another one waits.
//!
//! A range is *in line* from some moment on, and is granted when no range that came in line before it, and
//! that it must not overlap, is left. So ranges are granted in the order in which they came in line, nobody is
//! overtaken for ever, and there is no circle of waiters.
//!
//! A range comes in line when it is asked for, unless its user has [`WAITING`] there that wait already: then it
//! stays *behind* until one of these is granted, in the order of the user's. So whoever asks for a range
//! waits for those in use and for a few of each other user, however many that one has asked for. Where the disk
//! has one user only, nothing stays behind.
//!
//! What is done at once has its range in a place of its own meanwhile, which needs no memory. The lock is not held over
//! it: guest memory may make whoever copies it wait.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};

use vfiod_sync::{Mutex, lock};

/// How many ranges of one user wait in line, if there are others.
const WAITING: usize = 4;
/// What can be done at once at a time; the rest is done in the general way.
const AT_ONCE: usize = 16;

/// The ranges that are in use, or waited for.
#[derive(Default)]
pub(crate) struct Ranges {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many users there are.
    users: usize,
    /// The number of the next user, range or turn.
    next: u64,
    line: Table,
    at_once: AtOnce,
    /// Users who wait.
    waiting: BTreeMap<u64, Waiting>,
}

/// The ranges of what is being done at once. All of them came before whatever they conflict with in line.
#[derive(Default)]
struct AtOnce {
    /// Which places are taken, a bit each.
    taken: u16,
    /// Begin, end, and whether it is exclusive.
    places: [(u64, u64, bool); AT_ONCE],
}

const _: () = assert!(AT_ONCE == u16::BITS as usize);

impl AtOnce {
    /// Takes a place, if there is one.
    fn enter(&mut self, range: &Range<u64>, exclusive: bool) -> Option<usize> {
        let place = self.taken.trailing_ones() as usize;
        *self.places.get_mut(place)? = (range.start, range.end, exclusive);
        self.taken |= 1 << place;
        Some(place)
    }

    fn leave(&mut self, place: usize) -> (Range<u64>, bool) {
        self.taken &= !(1 << place);
        let (start, end, exclusive) = self.places[place];
        (start..end, exclusive)
    }

    /// How many of them must not be in use with this one.
    fn conflicting(&self, range: &Range<u64>, exclusive: bool) -> usize {
        let mut left = self.taken;
        let mut count = 0;
        while left != 0 {
            let (start, end, its) = self.places[left.trailing_zeros() as usize];
            count += usize::from(start < range.end && end > range.start && (exclusive || its));
            left &= left - 1;
        }
        count
    }
}

/// What a user waits for.
#[derive(Default)]
struct Waiting {
    /// Ranges in line that are not granted.
    in_line: usize,
    behind: Table,
    /// Those behind by number, which is their order: where each begins.
    order: BTreeMap<u64, u64>,
}

/// Ranges by begin and number.
#[derive(Default)]
struct Table {
    /// No range that is in it is longer.
    longest: u64,
    /// Exclusive ones in it. Where there are none, those that are not conflict with nothing.
    exclusive: usize,
    entries: BTreeMap<(u64, u64), Entry>,
}

struct Entry {
    end: u64,
    exclusive: bool,
    user: u64,
    /// Where it is in line.
    turn: u64,
    /// Ranges in front of it that are left.
    before: usize,
    waker: Option<Waker>,
}

impl Table {
    fn insert(&mut self, (start, number): (u64, u64), entry: Entry) {
        self.longest = self.longest.max(entry.end - start);
        self.exclusive += usize::from(entry.exclusive);
        self.entries.insert((start, number), entry);
    }

    fn remove(&mut self, key: (u64, u64)) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.exclusive -= usize::from(entry.exclusive);
        if self.entries.is_empty() {
            self.longest = 0;
        }
        Some(entry)
    }

    /// The ranges that this one must not be in use with.
    fn conflicting(
        &mut self,
        range: Range<u64>,
        exclusive: bool,
    ) -> impl Iterator<Item = &mut Entry> {
        let from = (range.start.saturating_sub(self.longest), 0);
        let any = exclusive || self.exclusive > 0;
        let entries = any.then(|| self.entries.range_mut(from..(range.end, 0)));
        entries.into_iter().flatten().filter_map(move |(_, entry)| {
            let conflicts = entry.end > range.start && (exclusive || entry.exclusive);
            conflicts.then_some(entry)
        })
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// How many ranges of one user may wait in line.
    fn limit(&self) -> usize {
        if self.users > 1 { WAITING } else { usize::MAX }
    }

    /// Whether a range must not be in use with one in line, or with what is being done at once.
    fn has_conflict(&mut self, range: &Range<u64>, exclusive: bool) -> bool {
        self.at_once.conflicting(range, exclusive) > 0
            || self.line.conflicting(range.clone(), exclusive).next().is_some()
    }

    /// Enters what is to be done at once. `None`: it would have to wait, or there is no place.
    fn enter_at_once(&mut self, range: &Range<u64>, exclusive: bool) -> Option<usize> {
        if !self.waiting.is_empty() || self.has_conflict(range, exclusive) {
            return None;
        }
        self.at_once.enter(range, exclusive)
    }

    /// What was done at once has ended. Returns whom that lets go on.
    fn leave_at_once(&mut self, place: usize) -> Vec<Waker> {
        let (range, exclusive) = self.at_once.leave(place);
        let mut woken = Vec::new();
        if !self.waiting.is_empty() {
            self.left(range, exclusive, 0, Vec::new(), &mut woken);
        }
        woken
    }

    /// Returns the number of the range, and whether it is granted.
    fn enter(&mut self, user: u64, range: Range<u64>, exclusive: bool) -> (u64, bool) {
        let (number, limit) = (self.number(), self.limit());
        let key = (range.start, number);
        let entry = Entry { end: range.end, exclusive, user, turn: 0, before: 0, waker: None };
        let may_enter = self.waiting.get(&user).is_none_or(|own| own.in_line < limit);
        let must_wait = !may_enter && self.has_conflict(&range, exclusive);
        if let Some(own) = self.waiting.get_mut(&user) {
            // None passes one that it must not overlap: a long one would wait for ever behind short ones.
            if must_wait || own.behind.conflicting(range, exclusive).next().is_some() {
                own.behind.insert(key, entry);
                own.order.insert(number, key.0);
                return (number, false);
            }
        }
        let (is_granted, _) = self.enter_line(key, entry);
        (number, is_granted)
    }

    /// Puts a range in line. Returns whether it is granted at once, and who waits for it then.
    fn enter_line(&mut self, key: (u64, u64), mut entry: Entry) -> (bool, Option<Waker>) {
        entry.turn = self.number();
        let range = key.0..entry.end;
        entry.before = self.at_once.conflicting(&range, entry.exclusive)
            + self.line.conflicting(range, entry.exclusive).count();
        let is_granted = entry.before == 0;
        let woken = if is_granted {
            entry.waker.take()
        } else {
            self.waiting.entry(entry.user).or_default().in_line += 1;
            None
        };
        self.line.insert(key, entry);
        (is_granted, woken)
    }

    /// A range of this user waits in line no more, or behind: others follow.
    fn follow(&mut self, user: u64, woken: &mut Vec<Waker>) {
        let limit = self.limit();
        while let Some(own) = self.waiting.get_mut(&user) {
            if own.in_line == 0 && own.order.is_empty() {
                self.waiting.remove(&user);
                return;
            }
            if own.in_line >= limit {
                return;
            }
            let Some((number, start)) = own.order.pop_first() else { return };
            if let Some(entry) = own.behind.remove((start, number)) {
                woken.extend(self.enter_line((start, number), entry).1);
            }
        }
    }

    /// Takes a range out. Returns whom that lets go on.
    fn leave(&mut self, user: u64, key: (u64, u64)) -> Vec<Waker> {
        let mut woken = Vec::new();
        let Some(left) = self.line.remove(key) else {
            if let Some(own) = self.waiting.get_mut(&user) {
                own.behind.remove(key);
                own.order.remove(&key.1);
            }
            self.follow(user, &mut woken);
            return woken;
        };
        if !self.waiting.is_empty() {
            let waited = if left.before > 0 { vec![user] } else { Vec::new() };
            self.left(key.0..left.end, left.exclusive, left.turn, waited, &mut woken);
        }
        woken
    }

    /// A range is in use, or waited for, no more: those that came after it in line may go on. `granted`: users of whom
    /// one range more waits in line no more.
    fn left(
        &mut self,
        range: Range<u64>,
        exclusive: bool,
        turn: u64,
        mut granted: Vec<u64>,
        woken: &mut Vec<Waker>,
    ) {
        for entry in self.line.conflicting(range, exclusive) {
            // Those in front do not wait for this one.
            if entry.turn > turn {
                entry.before -= 1;
                if entry.before == 0 {
                    woken.extend(entry.waker.take());
                    granted.push(entry.user);
                }
            }
        }
        for user in &granted {
            if let Some(own) = self.waiting.get_mut(user) {
                own.in_line -= 1;
            }
        }
        for user in BTreeSet::from_iter(granted) {
            self.follow(user, woken);
        }
    }

    fn find(&mut self, user: u64, key: (u64, u64)) -> Option<(&mut Entry, bool)> {
        if let Some(entry) = self.line.entries.get_mut(&key) {
            let is_granted = entry.before == 0;
            return Some((entry, is_granted));
        }
        let entry = self.waiting.get_mut(&user)?.behind.entries.get_mut(&key)?;
        Some((entry, false))
    }
}

/// Whoever asks for ranges, and has turns with others.
pub(crate) struct User {
    ranges: Arc<Ranges>,
    number: u64,
}

impl Drop for User {
    fn drop(&mut self) {
        lock(&self.ranges.state).users -= 1;
    }
}

/// A range in use, or waited for. Dropping it gives the range back.
pub(crate) struct RangeLock {
    user: Arc<User>,
    start: u64,
    number: u64,
    /// It was granted when it was asked for, and stays so.
    granted_at_once: bool,
}

impl Ranges {
    /// Another user.
    pub(crate) fn user(self: &Arc<Self>) -> Arc<User> {
        let mut state = lock(&self.state);
        state.users += 1;
        Arc::new(User { number: state.number(), ranges: self.clone() })
    }

    /// How many ranges are in use or waited for.
    #[cfg(test)]
    fn len(&self) -> usize {
        let state = lock(&self.state);
        let behind = state.waiting.values().map(|user| user.behind.entries.len());
        let at_once = state.at_once.taken.count_ones() as usize;
        state.line.entries.len() + behind.sum::<usize>() + at_once
    }
}

impl User {
    /// Enters a range; `exclusive`: nobody else may use any part of it. [`RangeLock::granted`] says when it
    /// may be used.
    pub(crate) fn enter(self: &Arc<Self>, range: Range<u64>, exclusive: bool) -> RangeLock {
        let start = range.start;
        let (number, granted_at_once) =
            lock(&self.ranges.state).enter(self.number, range, exclusive);
        RangeLock { user: self.clone(), start, number, granted_at_once }
    }

    /// Calls `f` with the range in use, if it would be granted at once. Waits for nobody: whoever asks may hold what
    /// another one waits for, such as the map of guest memory, which a third one wants to change.
    pub(crate) fn at_once<R>(
        &self,
        range: Range<u64>,
        exclusive: bool,
        f: impl FnOnce() -> R,
    ) -> Option<R> {
        let place = lock(&self.ranges.state).enter_at_once(&range, exclusive)?;
        let _in_use = InUse { ranges: &self.ranges, place };
        Some(f())
    }

    /// Calls `f` as [`User::at_once`] does. It waits for nothing, and is done under the lock.
    pub(crate) fn in_no_time<R>(
        &self,
        range: Range<u64>,
        exclusive: bool,
        f: impl FnOnce() -> R,
    ) -> Option<R> {
        let mut state = lock(&self.ranges.state);
        let is_free = state.waiting.is_empty() && !state.has_conflict(&range, exclusive);
        is_free.then(f)
    }
}

/// A range of what is being done at once. Dropping it gives the range back.
struct InUse<'a> {
    ranges: &'a Ranges,
    place: usize,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let woken = lock(&self.ranges.state).leave_at_once(self.place);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl RangeLock {
    fn key(&self) -> (u64, u64) {
        (self.start, self.number)
    }

    /// Whether the range may be used.
    pub(crate) fn is_granted(&self) -> bool {
        if self.granted_at_once {
            return true;
        }
        let mut state = lock(&self.user.ranges.state);
        state.find(self.user.number, self.key()).is_none_or(|(_, granted)| granted)
    }

    /// Waits until the range may be used.
    pub(crate) async fn granted(&self) {
        if self.granted_at_once {
            return;
        }
        poll_fn(|cx| {
            let mut state = lock(&self.user.ranges.state);
            match state.find(self.user.number, self.key()) {
                Some((entry, false)) => {
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
        let woken = lock(&self.user.ranges.state).leave(self.user.number, self.key());
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_granted_in_their_order() {
        let ranges = Arc::new(Ranges::default());
        let user = ranges.user();
        let write = user.enter(8..16, true);
        let beside = user.enter(16..24, true);
        let read = user.enter(0..9, false);
        let next = user.enter(15..17, true);
        let last = user.enter(15..16, false);
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
        let user = ranges.user();
        let [first, second] = [user.enter(0..8, false), user.enter(0..8, false)];
        let write = user.enter(7..8, true);
        let third = user.enter(0..8, false);
        assert!(first.is_granted() && second.is_granted() && !write.is_granted());
        assert!(!third.is_granted(), "a reader overtook a writer");
        drop(first);
        assert!(!write.is_granted());
        drop(second);
        assert!(write.is_granted() && !third.is_granted());
        drop(write);
        assert!(third.is_granted());
    }

    /// How many of these are granted; those are given back.
    fn give_back(locks: &mut Vec<RangeLock>) -> usize {
        let before = locks.len();
        let granted: Vec<bool> = locks.iter().map(RangeLock::is_granted).collect();
        let mut granted = granted.into_iter();
        locks.retain(|_| granted.next() != Some(true));
        before - locks.len()
    }

    /// A thousand requests of one user, each for the whole disk, are a few in front of another user's, and
    /// these are a few in front of them.
    #[test]
    fn users_have_turns_however_much_one_has_asked_for() {
        let ranges = Arc::new(Ranges::default());
        let (greedy, modest) = (ranges.user(), ranges.user());
        let mut many: Vec<_> = (0..1000).map(|_| greedy.enter(0..1000, true)).collect();
        for _ in 0..10 {
            let one = modest.enter(7..8, false);
            let mut turns = 0;
            while !one.is_granted() {
                assert_eq!(give_back(&mut many), 1);
                turns += 1;
                assert!(turns <= 1 + WAITING, "{turns} requests of another user were in front");
            }
            // The next one is asked for while this one is in use: the other user has turns all the same.
            let next = modest.enter(0..1000, true);
            drop(one);
            let left = many.len();
            while !next.is_granted() {
                assert_eq!(give_back(&mut many), 1);
            }
            assert!(many.len() < left, "only one of the users has turns");
        }
        while !many.is_empty() {
            assert_eq!(give_back(&mut many), 1);
        }
        assert_eq!(ranges.len(), 0);
        assert!(lock(&ranges.state).waiting.is_empty());
    }

    /// What nobody is in the way of is granted, whatever else its user waits for; but nothing passes one that it
    /// must not overlap.
    #[test]
    fn long_one_behind_is_passed_by_none_that_it_must_not_overlap() {
        let ranges = Arc::new(Ranges::default());
        let (user, _other) = (ranges.user(), ranges.user());
        let used = user.enter(0..8, true);
        let waiting: Vec<_> = (0..WAITING).map(|_| user.enter(0..8, true)).collect();
        let long = user.enter(4..1000, true);
        assert!(user.enter(1000..1001, true).is_granted(), "nobody is in its way");
        let short: Vec<_> = (0..100).map(|_| user.enter(999..1000, false)).collect();
        assert!(!short.iter().any(RangeLock::is_granted), "a short one passed a long one");
        drop((used, waiting));
        assert!(long.is_granted());
        drop(long);
        assert!(short.iter().all(RangeLock::is_granted));
    }

    /// What is done at once has its range until it has ended: others wait for it, and it for nobody.
    #[test]
    fn what_is_done_at_once_has_its_range_meanwhile() {
        let ranges = Arc::new(Ranges::default());
        let (user, other) = (ranges.user(), ranges.user());
        let (waits, beside) = user
            .at_once(8..16, true, || {
                let waits = [other.enter(15..20, false), user.enter(0..9, true)];
                let beside = other.enter(16..17, false);
                assert!(!waits.iter().any(RangeLock::is_granted), "beside what is done at once");
                assert!(beside.is_granted(), "it is not in the way");
                assert!(other.at_once(30..31, true, || ()).is_none(), "others wait");
                (waits, beside)
            })
            .expect("nobody is in the way");
        assert!(waits.iter().all(RangeLock::is_granted), "it has ended");
        drop((waits, beside));
        // Those that only read share a range, as many as there are places.
        fn nested(user: &Arc<User>, depth: usize) -> usize {
            user.at_once(0..8, false, || nested(user, depth + 1)).unwrap_or(depth)
        }
        assert_eq!(nested(&user, 0), AT_ONCE);
        let exclusive = user.at_once(0..8, false, || other.at_once(7..9, true, || ()));
        assert_eq!(exclusive, Some(None), "a write beside a read");
        assert_eq!(ranges.len(), 0);
    }

    /// Random ranges: those that are granted never conflict, and all are granted in the end.
    #[test]
    fn ranges_in_use_never_conflict() {
        let ranges = Arc::new(Ranges::default());
        let users = [ranges.user(), ranges.user(), ranges.user()];
        let mut held: Vec<(Range<u64>, bool, RangeLock)> = Vec::new();
        let mut random = 1u64;
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 33
        };
        for _ in 0..20_000 {
            let (start, len, exclusive) = (next() % 64, 1 + next() % 16, next() % 2 == 0);
            let range = start..start + len;
            let user = &users[next() as usize % 3];
            held.push((range.clone(), exclusive, user.enter(range, exclusive)));
            let granted: Vec<_> = held.iter().filter(|(.., lock)| lock.is_granted()).collect();
            for (i, (a, a_exclusive, _)) in granted.iter().enumerate() {
                for (b, b_exclusive, _) in &granted[i + 1..] {
                    let overlap = a.start < b.end && b.start < a.end;
                    assert!(!overlap || !(*a_exclusive || *b_exclusive), "{a:?} beside {b:?}");
                }
            }
            while held.len() > 48 {
                let granted = held.iter().position(|(.., lock)| lock.is_granted());
                held.swap_remove(granted.expect("nobody may go on"));
            }
        }
        while let Some(granted) = held.iter().position(|(.., lock)| lock.is_granted()) {
            held.swap_remove(granted);
        }
        assert_eq!((held.len(), ranges.len()), (0, 0));
        assert!(lock(&ranges.state).waiting.is_empty());
    }
}
