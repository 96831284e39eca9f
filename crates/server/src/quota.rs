//! Who may have how much of a resource that all devices of a server share.
//!
//! Each device has a share that only its own clients can use. The rest is common, and of that one user
//! has half at most: whatever a user takes, others still get something, and every device stays
//! reachable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use vfiod_sync::{Mutex, lock};

/// Who takes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum User {
    /// An account.
    Account(u32),
    /// One connection, whose account the kernel cannot name.
    Connection(u64),
}

/// A resource.
pub(crate) struct Pool {
    /// What each device has for itself.
    share: usize,
    /// What there is besides.
    common: usize,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    total: usize,
    /// By user, without those who have nothing.
    users: HashMap<User, usize>,
}

/// What a device has of a resource.
pub(crate) struct Share {
    pool: Arc<Pool>,
    used: Mutex<usize>,
}

/// One unit in use. Dropping it returns it.
pub(crate) struct Charge {
    share: Arc<Share>,
    /// Whom it counts for if it is of the common part.
    user: Option<User>,
}

/// How much of a resource is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: usize,
    pub(crate) limit: usize,
}

impl Pool {
    /// A resource of which each device has `share` units, and all have `common` together.
    pub(crate) fn new(share: usize, common: usize) -> Arc<Self> {
        Arc::new(Self { share, common, used: Mutex::default() })
    }

    /// What a device more has.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { pool: self.clone(), used: Mutex::new(0) })
    }

    /// The common part.
    pub(crate) fn usage(&self) -> Usage {
        Usage { used: lock(&self.used).total, limit: self.common }
    }

    fn take(&self, user: User) -> bool {
        let mut used = lock(&self.used);
        if used.total >= self.common {
            return false;
        }
        // One at least, so that a small pool is of use.
        let most = (self.common / 2).max(1);
        let of_user = used.users.entry(user).or_default();
        if *of_user >= most {
            return false;
        }
        *of_user += 1;
        used.total += 1;
        true
    }

    fn give_back(&self, user: User) {
        let mut used = lock(&self.used);
        used.total -= 1;
        if let Entry::Occupied(mut of_user) = used.users.entry(user) {
            *of_user.get_mut() -= 1;
            if *of_user.get() == 0 {
                of_user.remove();
            }
        }
    }
}

impl Share {
    /// Takes a unit for `user`: of the device's own, or else of the common part. `None` if there is
    /// none left for it.
    pub(crate) fn charge(self: &Arc<Self>, user: User) -> Option<Charge> {
        let mut used = lock(&self.used);
        if *used < self.pool.share {
            *used += 1;
            return Some(Charge { share: self.clone(), user: None });
        }
        drop(used);
        self.pool.take(user).then(|| Charge { share: self.clone(), user: Some(user) })
    }

    /// The device's own part.
    pub(crate) fn usage(&self) -> Usage {
        Usage { used: *lock(&self.used), limit: self.pool.share }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        match self.user {
            Some(user) => self.share.pool.give_back(user),
            None => *lock(&self.share.used) -= 1,
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const ALICE: User = User::Account(1000);
    const BOB: User = User::Account(1001);

    /// Takes as much as there is.
    fn take_all(share: &Arc<Share>, user: User) -> Vec<Charge> {
        std::iter::from_fn(|| share.charge(user)).collect()
    }

    #[test]
    fn user_gets_the_shares_of_its_devices_and_half_of_what_is_common() {
        let pool = Pool::new(3, 10);
        let devices = [pool.share(), pool.share()];
        let taken: Vec<_> = devices.iter().map(|device| take_all(device, ALICE)).collect();
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [3 + 5, 3]);
        assert_eq!(pool.usage(), Usage { used: 5, limit: 10 });
    }

    #[test]
    fn share_of_a_device_is_there_whatever_others_take() {
        let pool = Pool::new(3, 10);
        let (mine, other) = (pool.share(), pool.share());
        let _all = [take_all(&other, ALICE), take_all(&other, BOB)];
        assert_eq!(pool.usage(), Usage { used: 10, limit: 10 });
        assert_eq!(take_all(&mine, User::Account(1002)).len(), 3);
        assert_eq!(mine.usage(), Usage { used: 0, limit: 3 });
    }

    #[test]
    fn half_of_what_is_common_is_left_to_another_user() {
        let pool = Pool::new(0, 10);
        let device = pool.share();
        let alice = take_all(&device, ALICE);
        let bob = take_all(&device, BOB);
        assert_eq!((alice.len(), bob.len()), (5, 5));
        assert!(device.charge(User::Account(1002)).is_none());
        drop(alice);
        assert_eq!(take_all(&device, BOB).len(), 0, "still half");
        assert_eq!(take_all(&device, User::Account(1002)).len(), 5);
    }

    #[test]
    fn connections_of_unknown_accounts_are_users_of_their_own() {
        let pool = Pool::new(0, 4);
        let device = pool.share();
        let charges: Vec<_> =
            (0..5).map(|number| device.charge(User::Connection(number))).collect();
        assert_eq!(charges.iter().flatten().count(), 4);
    }

    #[test]
    fn what_is_returned_can_be_taken_again() {
        let pool = Pool::new(1, 1);
        let device = pool.share();
        for _ in 0..3 {
            let taken = take_all(&device, ALICE);
            assert_eq!(taken.len(), 2);
        }
        assert_eq!((pool.usage().used, device.usage().used), (0, 0));
        assert!(lock(&pool.used).users.is_empty());
    }
}
