//! Shares of threads: how many calls run at the same time, and for whom.
//!
//! As with connections (`places.rs`), an eighth is for operators, and of the rest one user has half at most:
//! one whose calls do not end keeps neither others nor an operator from theirs. Who has its share waits
//! for the end of a call of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::places::Peer;

/// How many calls run, and for whom.
#[derive(Debug)]
pub(crate) struct Shares {
    operators: Arc<Semaphore>,
    common: Arc<Semaphore>,
    user_max: usize,
    /// What each user may still have of the common ones; those with calls, or waiting.
    users: Mutex<HashMap<Peer, Arc<Semaphore>>>,
}

/// One call's share, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Shares {
    /// Shares of so many calls.
    pub(crate) fn new(max: usize) -> Self {
        let operators = max / 8;
        let common = max - operators;
        Self {
            operators: Arc::new(Semaphore::new(operators)),
            common: Arc::new(Semaphore::new(common)),
            user_max: common.div_ceil(2),
            users: Mutex::default(),
        }
    }

    /// Waits until a call may begin. Those of one user begin in the order in which they came.
    pub(crate) async fn take(&self, peer: Peer) -> Share {
        let of_user = async {
            let own = self.of_user(peer).acquire_owned().await;
            let common = self.common.clone().acquire_owned().await;
            Share { _permits: own.into_iter().chain(common).collect() }
        };
        if !matches!(peer, Peer::Operator(_)) {
            return of_user.await;
        }
        tokio::select! {
            biased;
            permit = self.operators.clone().acquire_owned() => {
                Share { _permits: permit.into_iter().collect() }
            }
            share = of_user => share,
        }
    }

    fn of_user(&self, peer: Peer) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        // Those without calls have all that they may.
        users.retain(|_, user| Arc::strong_count(user) > 1);
        users.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(self.user_max))).clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use vfiod_quota::User;

    use super::*;

    fn user(uid: u32) -> Peer {
        Peer::User(User::Account(uid))
    }

    fn take_all(shares: &Shares, peer: Peer) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(peer).now_or_never()).collect()
    }

    #[test]
    fn user_has_half_of_what_is_not_for_operators() {
        let shares = Shares::new(64);
        let mut alice = take_all(&shares, user(1000));
        let bob = take_all(&shares, user(1001));
        assert_eq!((alice.len(), bob.len()), (28, 28));
        assert!(shares.take(user(1002)).now_or_never().is_none());
        let root = take_all(&shares, Peer::Operator(User::Account(0)));
        assert_eq!(root.len(), 8);
        alice.pop();
        assert_eq!(take_all(&shares, user(1002)).len(), 1);
        drop((alice, bob, root));
        assert_eq!(take_all(&shares, Peer::Operator(User::Account(0))).len(), 8 + 28);
        assert_eq!(shares.users.lock().unwrap().len(), 1, "the others have no calls");
    }

    #[test]
    fn waiting_call_begins_when_one_of_its_user_has_ended() {
        let shares = Shares::new(8);
        let mut own = take_all(&shares, user(1000));
        let mut waiting = Box::pin(shares.take(user(1000)));
        assert!((&mut waiting).now_or_never().is_none());
        own.pop();
        assert!(waiting.now_or_never().is_some());
    }
}
