//! Model checks of the ledger. `ci/model-checks.sh` runs them.
//!
//! | invariant | watched by |
//! | --- | --- |
//! | a device's share is there, whatever clients of other devices take and give back | [`share_is_there_while_others_take`] |
//! | a charge that fails takes nothing from another one of its device | [`failed_charge_takes_nothing`] |
//! | no more is in use than there is, and at the end nothing | each of them |

use std::sync::Arc;

use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::thread;

use crate::{Account, Ledger, Limit, Limits, Payer, Resource, Share, Size, User};

const WHAT: Resource = Resource::Memory;
const SHARE: u64 = 2;
const TOTAL: u64 = 8;

fn ledger() -> Arc<Ledger> {
    let limit = |size, share| Limit { size, share, own: 0 };
    let mut limits = Limits::new(|_| limit(Size::Common(1), Share::UpTo(0)));
    limits[WHAT] = limit(Size::Total(TOTAL), Share::Demanded(SHARE));
    Ledger::new(limits)
}

fn open(ledger: &Arc<Ledger>) -> Arc<Account> {
    ledger.open("x").expect("its share").account
}

fn nothing_is_used(ledger: &Ledger) {
    let usage = ledger.usage(WHAT);
    assert_eq!((usage.used, usage.limit), (0, TOTAL), "not all was given back");
}

/// Takes as much as it gets, twice.
fn take(account: Arc<Account>, user: u32) {
    let payer = Payer::new(account.clone(), User::Account(user));
    for _ in 0..2 {
        let charges: Vec<_> = (0..4).map_while(|_| payer.charge(WHAT, 3).ok()).collect();
        let usage = account.ledger().usage(WHAT);
        assert!(usage.used <= usage.limit, "more than there is");
        thread::yield_now();
        drop(charges);
    }
}

fn share_is_there_while_others_take() {
    let ledger = ledger();
    let (mine, other) = (open(&ledger), open(&ledger));
    let others = [1, 2].map(|user| {
        let other = other.clone();
        spawn(move || take(other, user))
    });
    drop(other);
    let me = spawn(move || {
        let payer = Payer::new(mine, User::Account(1));
        for _ in 0..2 {
            let mut charge = payer.charge(WHAT, 1).expect("of the share");
            charge.resize(SHARE).expect("of the share");
        }
    });
    join_all(others);
    join(me);
    nothing_is_used(&ledger);
}

/// One client of a device asks for more than there is, again and again.
fn failed_charge_takes_nothing() {
    let ledger = ledger();
    let account = open(&ledger);
    let greedy = Payer::new(account.clone(), User::Account(1));
    let modest = Payer::new(account, User::Account(2));
    let greedy = spawn(move || {
        for _ in 0..2 {
            assert!(greedy.charge(WHAT, TOTAL).is_err());
        }
    });
    let modest = spawn(move || {
        for _ in 0..2 {
            let charge = modest.charge(WHAT, SHARE).expect("of the share");
            assert!(!charge.is_common(), "a charge that fails took the share");
        }
    });
    join(greedy);
    join(modest);
    nothing_is_used(&ledger);
}

vfiod_sync::checks! {
    share_is_there_while_others_take: 500,
    failed_charge_takes_nothing: 500,
}
