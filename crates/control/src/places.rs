//! Places: how many connections there are at the same time, and whose they are.
//!
//! Of the control API an eighth of the places is for operators: root and the daemon's own user. Of the rest
//! one user has half at most. So a user who takes all that it can get keeps neither others nor an operator
//! out. Of metrics, which anybody may read who reaches their address, one host has half of the places, and
//! whoever comes then takes the place of the oldest connection.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use vfiod_core::{Errno, Error};
use vfiod_quota::User;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// Root, or the daemon's own user.
    Operator(User),
    /// Another user.
    User(User),
    /// A host, or what stands for one.
    Host(IpAddr),
}

/// Places, and who has them.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    operators_max: usize,
    when_full: WhenFull,
    taken: Mutex<Taken>,
}

/// What happens where no place is left for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenFull {
    /// It gets none.
    Refuse,
    /// The oldest connection of the peer leaves, or of the peer that has most of them.
    OldestLeaves,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// In the order in which they were taken.
    places: BTreeMap<u64, One>,
}

/// A place that is taken.
#[derive(Debug)]
struct One {
    /// By whom; `None`: it is one of those for operators.
    by: Option<Peer>,
    /// Dropped when the connection is to leave.
    _stay: oneshot::Sender<()>,
}

impl Taken {
    fn count(&self, is_counted: impl Fn(Option<Peer>) -> bool) -> usize {
        self.places.values().filter(|place| is_counted(place.by)).count()
    }

    fn insert(&mut self, of: &Arc<Inner>, by: Option<Peer>) -> Place {
        let (stay, leave) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.places.insert(number, One { by, _stay: stay });
        Place { of: of.clone(), number, leave }
    }

    /// Takes the place of the oldest connection of a peer.
    fn remove_oldest(&mut self, of: Peer) {
        let mut places = self.places.iter();
        let oldest = places.find_map(|(number, place)| (place.by == Some(of)).then_some(*number));
        oldest.map(|number| self.places.remove(&number));
    }

    /// Who has most places.
    fn greediest(&self) -> Option<Peer> {
        let mut counts = HashMap::<Peer, usize>::new();
        for peer in self.places.values().filter_map(|place| place.by) {
            *counts.entry(peer).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(peer, _)| peer)
    }
}

/// A place. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Inner>,
    number: u64,
    leave: oneshot::Receiver<()>,
}

impl Place {
    /// Waits until somebody else has got this place.
    pub(crate) async fn lost(&mut self) {
        let _ = (&mut self.leave).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.taken().places.remove(&self.number);
    }
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
    fn common(&self) -> usize {
        self.max - self.operators_max
    }

    fn user_max(&self) -> usize {
        self.common().div_ceil(2)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|error| error.into_inner())
    }
}

impl Places {
    /// Places of the control API.
    pub(crate) fn by_user(max: usize) -> Self {
        Self::new(max, max / 8, WhenFull::Refuse)
    }

    /// Places of what any host may read.
    pub(crate) fn by_host(max: usize) -> Self {
        Self::new(max, 0, WhenFull::OldestLeaves)
    }

    fn new(max: usize, operators_max: usize, when_full: WhenFull) -> Self {
        Self(Arc::new(Inner { max, operators_max, when_full, taken: Mutex::default() }))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `EAGAIN`: the peer can have no more of them, or none is left.
    pub(crate) fn take(&self, peer: Peer) -> Result<Place, Error> {
        let inner = &self.0;
        let mut taken = inner.taken();
        if matches!(peer, Peer::Operator(_)) && taken.count(|by| by.is_none()) < inner.operators_max
        {
            return Ok(taken.insert(inner, None));
        }
        let own = taken.count(|by| by == Some(peer));
        let used = taken.count(|by| by.is_some());
        let (is_greedy, is_full) = (own >= inner.user_max(), used >= inner.common());
        if (is_greedy || is_full) && inner.when_full == WhenFull::OldestLeaves {
            let leaves = if is_greedy { Some(peer) } else { taken.greediest() };
            leaves.into_iter().for_each(|peer| taken.remove_oldest(peer));
        } else if is_greedy {
            return Err(Error::new(Errno::AGAIN, greedy(peer, own)));
        } else if is_full {
            let what = format!(
                "{used} connections are open, as many as users may have together; try again when one \
                 of them has ended"
            );
            return Err(Error::new(Errno::AGAIN, what));
        }
        Ok(taken.insert(inner, Some(peer)))
    }

    pub(crate) fn usage(&self) -> Usage {
        let inner = &self.0;
        let used = inner.taken().places.len();
        let (operators_max, user_max) = (inner.operators_max, inner.user_max());
        Usage { max: inner.max, operators_max, user_max, used }
    }
}

fn greedy(peer: Peer, own: usize) -> String {
    let who = match peer {
        Peer::Operator(User::Account(uid)) | Peer::User(User::Account(uid)) => format!("uid {uid}"),
        _ => "this user".to_owned(),
    };
    format!(
        "{who} has {own} connections, as many as one user may have; try again when one of them has ended"
    )
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn peer(uid: u32) -> Peer {
        let user = User::Account(uid);
        if uid == 0 { Peer::Operator(user) } else { Peer::User(user) }
    }

    fn take_all(places: &Places, uid: u32) -> Vec<Place> {
        std::iter::from_fn(|| places.take(peer(uid)).ok()).collect()
    }

    #[test]
    fn each_user_has_half_of_what_is_not_for_operators() {
        let places = Places::by_user(256);
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
        let places = Places::by_user(16);
        let root = take_all(&places, 0);
        assert_eq!(root.len(), 2 + 7);
        assert_eq!(take_all(&places, 1000).len(), 7);
    }

    #[test]
    fn peers_whose_account_has_no_name_are_users_of_their_own() {
        let places = Places::by_user(16);
        let nobody = |number| Peer::User(User::Connection(number));
        let taken: Vec<_> = (0..).map_while(|number| places.take(nobody(number)).ok()).collect();
        assert_eq!(taken.len(), 14);
    }

    fn host(number: u8) -> Peer {
        Peer::Host(IpAddr::from([127, 0, 0, number]))
    }

    /// Those of these places that others have now.
    fn lost(places: &mut [Place]) -> Vec<usize> {
        let is_lost = |place: &mut Place| place.leave.try_recv() == Err(TryRecvError::Closed);
        let lost =
            places.iter_mut().enumerate().filter_map(|(at, place)| is_lost(place).then_some(at));
        lost.collect()
    }

    #[test]
    fn host_that_has_its_half_gives_up_its_oldest_connection() {
        let places = Places::by_host(8);
        let mut other = vec![places.take(host(2)).unwrap()];
        let mut own: Vec<_> = (0..6).map(|_| places.take(host(1)).unwrap()).collect();
        assert_eq!((lost(&mut own), lost(&mut other)), (vec![0, 1], vec![]));
        // What others have already is not given back once more.
        drop(own.drain(..2));
        assert_eq!(places.usage().used, 5);
    }

    #[test]
    fn where_all_places_are_taken_the_host_with_most_connections_gives_one_up() {
        let places = Places::by_host(8);
        let mut few: Vec<_> = (0..3).map(|_| places.take(host(1)).unwrap()).collect();
        let mut many: Vec<_> = (0..4).map(|_| places.take(host(2)).unwrap()).collect();
        let mut one = vec![places.take(host(3)).unwrap()];
        assert_eq!(places.usage().used, 8);
        let _new = places.take(host(4)).unwrap();
        assert_eq!((lost(&mut few), lost(&mut many), lost(&mut one)), (vec![], vec![0], vec![]));
        assert_eq!(places.usage().used, 8);
    }
}
