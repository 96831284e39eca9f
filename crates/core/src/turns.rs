//! The order in which threads that wait for a set have their turns.
//!
//! They have them in the order in which they came. But whoever waits for one member when a reset or a save
//! of the set ends is before all further resets and saves: so an open waits for one of those, the one that
//! runs or is next, however many threads ask for them.

use std::collections::BTreeMap;

/// A thread's place among those that wait. None is given out twice.
pub(crate) type Place = u64;

/// What a thread wants to do once it is its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To open or release a member, to join or to leave.
    Member,
    /// To reset all members, or to save one: that may wait for devices, and be asked for again and again.
    Whole,
}

/// The threads that wait for a set.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    waiting: BTreeMap<Place, Purpose>,
    next: Place,
    /// Whoever waits for a member in a place below is before those that wait for the whole set.
    preferred: Place,
}

impl Turns {
    /// Whether no thread waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a thread that waits.
    pub(crate) fn enter(&mut self, purpose: Purpose) -> Place {
        let place = self.next;
        self.next += 1;
        self.waiting.insert(place, purpose);
        place
    }

    /// Removes a thread, whose turn it is, or that gives up.
    pub(crate) fn leave(&mut self, place: Place) {
        self.waiting.remove(&place);
    }

    /// Whether the next turn is that of the thread in this place.
    pub(crate) fn is_next(&self, place: Place) -> bool {
        self.members().find(|member| *member < self.preferred).or(self.first()) == Some(place)
    }

    fn first(&self) -> Option<Place> {
        self.waiting.first_key_value().map(|(place, _)| *place)
    }

    /// The places of those that wait for a member.
    pub(crate) fn members(&self) -> impl Iterator<Item = Place> {
        let members = self.waiting.iter().filter(|(_, purpose)| **purpose == Purpose::Member);
        members.map(|(place, _)| *place)
    }

    /// A reset or a save has ended.
    pub(crate) fn whole_is_over(&mut self) {
        self.preferred = self.next;
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// The places in the order of their turns, if nobody comes meanwhile. Each turn ends before the next.
    fn order(mut turns: Turns) -> Vec<Place> {
        let mut order = Vec::new();
        while let Some(next) = turns.waiting.keys().copied().find(|place| turns.is_next(*place)) {
            let whole = turns.waiting[&next] == Purpose::Whole;
            turns.leave(next);
            if whole {
                turns.whole_is_over();
            }
            order.push(next);
        }
        order
    }

    fn waiting(purposes: &[Purpose]) -> Turns {
        let mut turns = Turns::default();
        purposes.iter().for_each(|purpose| _ = turns.enter(*purpose));
        turns
    }

    #[test]
    fn open_waits_for_one_reset_however_many_came_before_it() {
        use Purpose::{Member, Whole};
        assert_eq!(order(waiting(&[Whole, Whole, Whole, Member, Member])), [0, 3, 4, 1, 2]);
        let mut turns = waiting(&[Whole, Whole, Member]);
        turns.whole_is_over();
        assert_eq!(order(turns), [2, 0, 1], "one has just ended");
    }

    #[test]
    fn reset_is_not_passed_by_opens_that_come_later() {
        use Purpose::{Member, Whole};
        assert_eq!(order(waiting(&[Member, Whole, Member, Member])), [0, 1, 2, 3]);
        let mut turns = waiting(&[Whole, Member]);
        turns.whole_is_over();
        turns.enter(Member);
        assert_eq!(order(turns), [1, 0, 2]);
    }

    #[test]
    fn thread_that_gives_up_holds_up_nobody() {
        let mut turns = waiting(&[Purpose::Member, Purpose::Whole]);
        assert!(turns.is_next(0) && !turns.is_next(1));
        turns.leave(0);
        assert!(turns.is_next(1));
        turns.leave(1);
        assert!(turns.is_empty());
    }
}
