//! What has changed of namespaces since the host has last read the Changed Namespace List (5.16.1.5), whoever has
//! changed it: an operator, or another controller that has the namespace.

use std::sync::Arc;

use vfiod_sync::{Mutex, lock};

use crate::limits::LARGEST_NAMESPACE;
use crate::queues::Doorbells;

/// Words of a set of namespaces.
pub(crate) const WORDS: usize = (LARGEST_NAMESPACE / 64) as usize;

/// A set of namespaces: a bit for each number, from 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(pub(crate) [u64; WORDS]);

impl Set {
    fn place(id: u32) -> Option<(usize, u64)> {
        let bit = id.checked_sub(1).filter(|bit| *bit < LARGEST_NAMESPACE)?;
        Some(((bit / 64) as usize, 1 << (bit % 64)))
    }

    pub(crate) fn insert(&mut self, id: u32) {
        if let Some((word, bit)) = Self::place(id) {
            self.0[word] |= bit;
        }
    }

    fn contains(&self, id: u32) -> bool {
        Self::place(id).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    /// The numbers, in their order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        (1..=LARGEST_NAMESPACE).filter(|id| self.contains(*id))
    }
}

impl FromIterator<u32> for Set {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut set = Self::default();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

/// The namespaces of a controller that have changed.
#[derive(Debug)]
pub(crate) struct Changes {
    changed: Mutex<Changed>,
    doorbells: Arc<Doorbells>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changed {
    /// Since the list was last read.
    pub(crate) list: Set,
    /// Some of which no event tells.
    pub(crate) is_new: bool,
}

impl Changes {
    pub(crate) fn new(doorbells: Arc<Doorbells>) -> Self {
        Self { changed: Mutex::default(), doorbells }
    }

    /// A namespace has come, has gone, or has other attributes. Takes no lock of a device, so that it can be
    /// told of by another one.
    pub(crate) fn note(&self, id: u32) {
        let mut changed = lock(&self.changed);
        changed.list.insert(id);
        changed.is_new = true;
        drop(changed);
        self.doorbells.notice_events();
    }

    /// Whether something has changed of which no event tells; from now on one does.
    pub(crate) fn take_new(&self) -> bool {
        std::mem::take(&mut lock(&self.changed).is_new)
    }

    /// What has changed; from now on nothing has.
    pub(crate) fn take(&self) -> Changed {
        std::mem::take(&mut *lock(&self.changed))
    }

    /// The host did not get what was taken.
    pub(crate) fn put_back(&self, taken: &Changed) {
        let mut changed = lock(&self.changed);
        changed.list.add(&taken.list);
        changed.is_new |= taken.is_new;
    }

    /// What has changed.
    pub(crate) fn save(&self) -> Changed {
        *lock(&self.changed)
    }

    /// From now on this has changed: what was saved, or nothing for another user.
    pub(crate) fn restore(&self, changed: Changed) {
        *lock(&self.changed) = changed;
    }
}
