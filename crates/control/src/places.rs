//! Places: how many connections there are at the same time, and whose they are.
//!
//! An eighth of the places is for operators: root and the daemon's own user. Of the rest one user has half
//! at most. So a user who takes all that it can get keeps neither others nor an operator out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use vfiod_core::{Errno, Error};
use vfiod_quota::User;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) user: User,
    /// Root, or the daemon's own user.
    pub(crate) is_operator: bool,
}

/// Places, and who has them.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Of those for operators.
    operators: usize,
    /// Of the others, by user, without users who have none.
    users: HashMap<User, usize>,
}

/// A place. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Inner>,
    /// Whose it is; `None`: it is one of those for operators.
    user: Option<User>,
}

/// How many places there are, and how many are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// All.
    pub(crate) max: usize,
    /// For operators only.
    pub(crate) operators_max: usize,
    /// That one user can have of the others.
    pub(crate) user_max: usize,
    pub(crate) used: usize,
}

impl Inner {
    fn operators_max(&self) -> usize {
        self.max / 8
    }

    fn common(&self) -> usize {
        self.max - self.operators_max()
    }

    fn user_max(&self) -> usize {
        self.common().div_ceil(2)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|error| error.into_inner())
    }
}

impl Places {
    /// Places of which nobody has any.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max, taken: Mutex::default() }))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `EAGAIN`: the peer can have no more of them, or none is left.
    pub(crate) fn take(&self, peer: Peer) -> Result<Place, Error> {
        let inner = &self.0;
        let mut taken = inner.taken();
        if peer.is_operator && taken.operators < inner.operators_max() {
            taken.operators += 1;
            return Ok(Place { of: inner.clone(), user: None });
        }
        let (common, most) = (inner.common(), inner.user_max());
        let used: usize = taken.users.values().sum();
        let own = taken.users.get(&peer.user).copied().unwrap_or_default();
        if own < most && used < common {
            *taken.users.entry(peer.user).or_default() += 1;
            return Ok(Place { of: inner.clone(), user: Some(peer.user) });
        }
        let what = if own < most {
            format!(
                "{used} connections are open, as many as users may have together; try again when one \
                 of them has ended"
            )
        } else {
            let who = match peer.user {
                User::Account(uid) => format!("uid {uid}"),
                User::Connection(_) => "this user".to_owned(),
            };
            format!(
                "{who} has {own} connections, as many as one user may have; try again when one of them \
                 has ended"
            )
        };
        Err(Error::new(Errno::AGAIN, what))
    }

    pub(crate) fn usage(&self) -> Usage {
        let inner = &self.0;
        let taken = inner.taken();
        Usage {
            max: inner.max,
            operators_max: inner.operators_max(),
            user_max: inner.user_max(),
            used: taken.operators + taken.users.values().sum::<usize>(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        let Some(user) = self.user else {
            taken.operators -= 1;
            return;
        };
        if let Some(count) = taken.users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                taken.users.remove(&user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> Peer {
        Peer { user: User::Account(uid), is_operator: uid == 0 }
    }

    fn take_all(places: &Places, uid: u32) -> Vec<Place> {
        std::iter::from_fn(|| places.take(peer(uid)).ok()).collect()
    }

    #[test]
    fn each_user_has_half_of_what_is_not_for_operators() {
        let places = Places::new(256);
        let alice = take_all(&places, 1000);
        let bob = take_all(&places, 1001);
        assert_eq!((alice.len(), bob.len()), (112, 112));
        let refused = places.take(peer(1002)).unwrap_err();
        assert_eq!(refused.errno(), Errno::AGAIN);
        assert!(refused.to_string().contains("224 connections are open"), "{refused}");
        let root = take_all(&places, 0);
        assert_eq!(root.len(), 32);
        assert_eq!(places.usage().used, 256);
        drop(bob);
        assert_eq!(take_all(&places, 1002).len(), 112);
        let refused = places.take(peer(1000)).unwrap_err();
        assert!(refused.to_string().contains("uid 1000 has 112 connections"), "{refused}");
        drop((alice, root));
        assert_eq!(places.usage().used, 0);
    }

    #[test]
    fn operators_have_their_own_places_first() {
        let places = Places::new(16);
        let root = take_all(&places, 0);
        assert_eq!(root.len(), 2 + 7);
        assert_eq!(take_all(&places, 1000).len(), 7);
    }

    #[test]
    fn peers_whose_account_has_no_name_are_users_of_their_own() {
        let places = Places::new(16);
        let nobody = |number| Peer { user: User::Connection(number), is_operator: false };
        let taken: Vec<_> = (0..).map_while(|number| places.take(nobody(number)).ok()).collect();
        assert_eq!(taken.len(), 14);
    }
}
