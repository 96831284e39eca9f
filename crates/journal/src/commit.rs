//! A state of many words that changes by one store.
//!
//! | word | what |
//! | --- | --- |
//! | 0 | sequence: how many commits there were; its lowest bit says which slot is the truth |
//! | 8 | slot 0: checksum, then the state |
//! | then | slot 1, at the next multiple of eight words |
//!
//! A commit writes the other slot, which nobody reads, and then the sequence. A death before that store
//! leaves the state as it was; after it, the state is the new one.
//!
//! The checksum finds damage, such as stray stores of a process that is about to crash. It is not made to
//! withstand somebody who forges it.

use crate::memory::Words;

/// Words of a cache line.
const LINE: usize = 8;

/// Where two slots and their sequence are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    at: usize,
    state: usize,
}

impl Slots {
    /// Slots for a state of `state` words, beginning at the word `at`.
    pub const fn new(at: usize, state: usize) -> Self {
        Self { at, state }
    }

    /// How many words they occupy, behind `at`.
    pub const fn words(self) -> usize {
        LINE + 2 * self.slot_words()
    }

    const fn slot_words(self) -> usize {
        (1 + self.state).next_multiple_of(LINE)
    }

    /// Where the checksum of the slot of a sequence is; its state follows.
    const fn slot(self, sequence: u64) -> usize {
        self.at + LINE + (sequence & 1) as usize * self.slot_words()
    }
}

/// The state is not what was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// The checksum of the slot disagrees with its state.
    #[error("the journal is damaged: the checksum of commit {sequence} is wrong")]
    Checksum {
        /// Which commit it should be.
        sequence: u64,
    },
    /// The memory has not as many words as the slots need.
    #[error("the journal has {has} words, but {needs} are needed")]
    TooShort {
        /// Words of the memory.
        has: usize,
        /// Words up to the end of the slots.
        needs: usize,
    },
}

/// The right to commit: there is one at a time for each [`Slots`].
#[derive(Debug)]
pub struct Commit<'a, W: Words> {
    words: &'a W,
    slots: Slots,
    sequence: u64,
}

impl<'a, W: Words> Commit<'a, W> {
    /// Finds what was committed last; zeros if nothing was.
    ///
    /// # Errors
    /// The memory is too short, or what is there is not what was committed.
    pub fn open(words: &'a W, slots: Slots) -> Result<Self, Damaged> {
        let (has, needs) = (words.count(), slots.at.saturating_add(slots.words()));
        if has < needs {
            return Err(Damaged::TooShort { has, needs });
        }
        let sequence = words.load(slots.at);
        let this = Self { words, slots, sequence };
        let slot = slots.slot(sequence);
        let state = (1..=slots.state).map(|at| words.load(slot + at));
        // Memory that is new is all zeros, and has no checksum.
        let is_new = sequence == 0 && state.clone().all(|word| word == 0);
        if is_new || words.load(slot) == checksum(sequence, state) {
            Ok(this)
        } else {
            Err(Damaged::Checksum { sequence })
        }
    }

    /// How many commits there were.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Reads what was committed last.
    ///
    /// # Panics
    /// `state` is longer than the state.
    pub fn read(&self, state: &mut [u64]) {
        assert!(state.len() <= self.slots.state, "more words than the state has");
        let slot = self.slots.slot(self.sequence) + 1;
        for (at, word) in state.iter_mut().enumerate() {
            *word = self.words.load(slot + at);
        }
    }

    /// Makes `state` the truth.
    ///
    /// # Panics
    /// `state` has not the length of the state.
    pub fn commit(&mut self, state: &[u64]) {
        assert_eq!(state.len(), self.slots.state, "words of the state");
        let sequence = self.sequence.wrapping_add(1);
        let slot = self.slots.slot(sequence);
        for (at, word) in state.iter().enumerate() {
            self.words.store(slot + 1 + at, *word);
        }
        self.words.store(slot, checksum(sequence, state.iter().copied()));
        self.words.publish(self.slots.at, sequence);
        self.sequence = sequence;
    }
}

/// A sum to which every word contributes by its value and its place, each independently of the others, so
/// that the processor computes several at a time.
fn checksum(sequence: u64, state: impl Iterator<Item = u64>) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |place: u64, word: u64| {
        let key = ODD.wrapping_mul(2 * place + 1);
        let product = u128::from(word ^ key) * u128::from(key | 1);
        (product as u64) ^ (product >> 64) as u64
    };
    let words = state.zip(1..).map(|(word, place)| mix(place, word));
    words.fold(mix(0, sequence), u64::wrapping_add)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Words, and after how many more stores their writer dies.
    struct Mortal {
        words: Vec<Cell<u64>>,
        left: Cell<usize>,
    }

    impl Mortal {
        fn new(count: usize) -> Self {
            Self { words: vec![Cell::new(0); count], left: Cell::new(usize::MAX) }
        }
    }

    impl Words for Mortal {
        fn load(&self, at: usize) -> u64 {
            self.words[at].get()
        }

        fn store(&self, at: usize, value: u64) {
            if let Some(left) = self.left.get().checked_sub(1) {
                self.left.set(left);
                self.words[at].set(value);
            }
        }

        fn publish(&self, at: usize, value: u64) {
            self.store(at, value);
        }

        fn count(&self) -> usize {
            self.words.len()
        }
    }

    fn state(words: &Mortal, slots: Slots) -> [u64; 9] {
        let mut state = [0; 9];
        Commit::open(words, slots).unwrap().read(&mut state);
        state
    }

    #[test]
    fn death_before_any_store_leaves_the_old_state_or_the_new_one() {
        let slots = Slots::new(5, 9);
        // Nine words, the checksum and the sequence.
        let stores = 11;
        for before in 0..3 {
            for dies in 0..=stores {
                let words = Mortal::new(5 + slots.words());
                let mut commit = Commit::open(&words, slots).unwrap();
                (1..=before).for_each(|value| commit.commit(&[value; 9]));
                words.left.set(dies);
                commit.commit(&[100; 9]);
                words.left.set(usize::MAX);
                let expected = if dies == stores { 100 } else { before };
                assert_eq!(state(&words, slots), [expected; 9], "{before} {dies}");
                // Its successor goes on.
                Commit::open(&words, slots).unwrap().commit(&[200; 9]);
                assert_eq!(state(&words, slots), [200; 9]);
            }
        }
    }

    #[test]
    fn damage_of_any_bit_is_found() {
        let slots = Slots::new(0, 9);
        let words = Mortal::new(slots.words());
        let mut commit = Commit::open(&words, slots).unwrap();
        commit.commit(&[3; 9]);
        commit.commit(&[4; 9]);
        let slot = slots.slot(2);
        for at in (slot..slot + 10).chain([0]) {
            for bit in 0..64 {
                let whole = words.words[at].get();
                words.words[at].set(whole ^ 1 << bit);
                let sequence = words.load(0);
                let found = Commit::open(&words, slots).map(|_| ());
                assert_eq!(found, Err(Damaged::Checksum { sequence }), "{at} {bit}");
                words.words[at].set(whole);
            }
        }
        assert_eq!(state(&words, slots), [4; 9]);
    }

    #[test]
    fn new_memory_that_is_not_zero_is_damaged() {
        let slots = Slots::new(0, 2);
        let words = Mortal::new(slots.words());
        words.store(LINE + 2, 1);
        assert!(Commit::open(&words, slots).is_err());
    }

    #[test]
    fn memory_that_is_too_short_is_refused() {
        let slots = Slots::new(1, 9);
        let words = Mortal::new(slots.words());
        let (has, needs) = (slots.words(), slots.words() + 1);
        let refused = Commit::open(&words, slots).map(|_| ());
        assert_eq!(refused, Err(Damaged::TooShort { has, needs }));
    }
}
