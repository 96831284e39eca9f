use super::*;

use std::sync::Arc;

const ALICE: User = User::Account(1000);
const BOB: User = User::Account(1001);
const CAROL: User = User::Account(1002);
const WHAT: Resource = Resource::Mappings;

/// A ledger with one resource that matters.
fn ledger(size: Size, share: Share) -> Arc<Ledger> {
    let mut limits = Limits::of_process(1);
    limits.set(WHAT, Limit::new(size, share));
    Ledger::new(limits)
}

fn open(ledger: &Arc<Ledger>) -> Arc<Account> {
    ledger.open("edu0").unwrap().account
}

/// Takes as much as there is, one by one.
fn take_all(account: &Arc<Account>, user: User) -> Vec<Charge> {
    let payer = Payer::new(account.clone(), user);
    std::iter::from_fn(|| payer.charge(WHAT, 1).ok()).collect()
}

#[test]
fn user_gets_the_shares_of_its_devices_and_half_of_what_is_common() {
    let ledger = ledger(Size::Common(10), Share::Demanded(3));
    let devices = [open(&ledger), open(&ledger)];
    let taken: Vec<_> = devices.iter().map(|device| take_all(device, ALICE)).collect();
    assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [3 + 5, 3]);
    assert_eq!(ledger.usage(WHAT), Usage { used: 5, limit: 10 });
}

#[test]
fn share_of_a_device_is_there_whatever_others_take() {
    let ledger = ledger(Size::Common(10), Share::Demanded(3));
    let (mine, other) = (open(&ledger), open(&ledger));
    let _all = [take_all(&other, ALICE), take_all(&other, BOB)];
    assert_eq!(ledger.usage(WHAT), Usage { used: 10, limit: 10 });
    assert_eq!(take_all(&mine, CAROL).len(), 3);
    assert_eq!(mine.usage(WHAT), Usage { used: 0, limit: 3 });
}

/// Shares are no part of what is common: whoever takes all of that has not taken them.
#[test]
fn shares_are_left_of_a_total_whatever_is_taken_of_what_is_common() {
    let ledger = ledger(Size::Total(16), Share::Demanded(3));
    let (mine, other) = (open(&ledger), open(&ledger));
    let all = [take_all(&other, ALICE), take_all(&other, BOB), take_all(&other, CAROL)];
    let of_others: usize = all.iter().map(Vec::len).sum();
    assert_eq!(of_others, 3 + 10, "what others have of 16, of which 3 are this device's");
    assert_eq!(take_all(&mine, CAROL).len(), 3);
}

#[test]
fn half_of_what_is_common_is_left_to_another_user() {
    let ledger = ledger(Size::Common(10), Share::Demanded(0));
    let device = open(&ledger);
    let alice = take_all(&device, ALICE);
    let bob = take_all(&device, BOB);
    assert_eq!((alice.len(), bob.len()), (5, 5));
    assert!(take_all(&device, CAROL).is_empty());
    drop(alice);
    assert_eq!(take_all(&device, BOB).len(), 0, "still half");
    assert_eq!(take_all(&device, CAROL).len(), 5);
}

#[test]
fn what_could_be_done_without_leaves_half_of_everything_to_what_could_not() {
    let ledger = ledger(Size::Common(40), Share::Demanded(6));
    let device = open(&ledger);
    let spare = |user| {
        let payer = Payer::new(device.clone(), user);
        std::iter::from_fn(|| payer.charge_spare(WHAT, 1).ok()).collect::<Vec<_>>()
    };
    let mut alice = spare(ALICE);
    assert_eq!(alice.len(), 6 / 2 + 40 / 4);
    assert!(alice[0].resize_spare(2).is_err() && alice[0].amount() == 1);
    let [bob, carol] = [BOB, CAROL].map(spare);
    assert_eq!((bob.len(), carol.len()), (40 / 4, 0), "half of what is common, by all");
    // What they need is there: the rest of the share, and of what a user may have.
    let needed = take_all(&device, ALICE);
    assert_eq!(needed.len(), 3 + 10);
    drop(needed);
    alice[0].resize(2).unwrap();
    alice[0].resize_spare(1).unwrap();
}

#[test]
fn connections_of_unknown_accounts_are_users_of_their_own() {
    let ledger = ledger(Size::Common(4), Share::Demanded(0));
    let device = open(&ledger);
    let charge = |number| Payer::new(device.clone(), User::Connection(number)).charge(WHAT, 1).ok();
    let charges: Vec<_> = (0..5).map(charge).collect();
    assert_eq!(charges.iter().flatten().count(), 4);
}

#[test]
fn what_is_given_back_can_be_taken_again() {
    let ledger = ledger(Size::Common(1), Share::Demanded(1));
    let device = open(&ledger);
    for _ in 0..3 {
        assert_eq!(take_all(&device, ALICE).len(), 2);
    }
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (0, 0));
}

#[test]
fn charge_is_of_the_share_first_and_of_the_common_part_for_the_rest() {
    let ledger = ledger(Size::Common(10), Share::Demanded(3));
    let device = open(&ledger);
    let payer = Payer::new(device.clone(), ALICE);
    let refused = payer.charge(WHAT, 9).unwrap_err();
    assert_eq!((refused.share, refused.user, refused.used), (3, 5, 0));
    assert_eq!(refused.errno(), rustix::io::Errno::NOSPC);
    assert_eq!(
        refused.to_string(),
        "9 mappings more: the device's share of 3 is used up, and of the common 10 one user has at \
         most 5 and all together have 0 (limits.mappings)"
    );
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (0, 0));
    let mut charge = payer.charge(WHAT, 8).unwrap();
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (5, 3));
    charge.resize(4).unwrap();
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (1, 3));
    charge.resize(9).unwrap_err();
    assert_eq!(charge.amount(), 4);
    charge.resize(2).unwrap();
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (0, 2));
    assert!(!charge.is_common());
}

#[test]
fn charge_of_what_is_common_leaves_the_share_alone() {
    let ledger = ledger(Size::Common(4), Share::Demanded(3));
    let device = open(&ledger);
    let payer = Payer::new(device.clone(), ALICE);
    let charge = payer.charge_common(WHAT, 2).unwrap();
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (2, 0));
    assert_eq!(payer.charge_common(WHAT, 1).unwrap_err().user, 2);
    drop(charge);
    assert_eq!(ledger.usage(WHAT).used, 0);
}

#[test]
fn another_user_pays_for_a_charge_that_is_transferred() {
    let ledger = ledger(Size::Common(4), Share::Demanded(1));
    let device = open(&ledger);
    let [alice, bob] = [ALICE, BOB].map(|user| Payer::new(device.clone(), user));
    let mut taken = take_all(&device, ALICE);
    assert_eq!(taken.len(), 1 + 2);
    for charge in &mut taken {
        charge.transfer(&bob).unwrap();
    }
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (2, 1));
    assert!(bob.charge(WHAT, 1).is_err(), "it has half of what is common");
    let mut more = take_all(&device, ALICE);
    assert_eq!(more.len(), 2, "what was alice's is hers again");
    // Nobody has more than half by that.
    let refused = more[0].transfer(&bob).unwrap_err();
    assert_eq!((refused.user, refused.used), (2, 4));
    drop(taken);
    assert!(alice.charge_common(WHAT, 1).is_err(), "it is still hers");
    more[0].transfer(&bob).unwrap();
    let other = Payer::new(open(&ledger), BOB);
    assert!(more[0].transfer(&other).is_err(), "another device");
    drop(more);
    assert_eq!((ledger.usage(WHAT).used, device.usage(WHAT).used), (0, 0));
}

#[test]
fn shares_of_a_total_make_the_common_part_smaller() {
    let ledger = ledger(Size::Total(20), Share::Demanded(4));
    let devices = [open(&ledger), open(&ledger)];
    assert_eq!((ledger.usage(WHAT).limit, ledger.total(WHAT)), (12, 20));
    drop(devices);
    assert_eq!(ledger.usage(WHAT).limit, 20);
}

#[test]
fn device_whose_demanded_share_cannot_be_had_is_refused_and_takes_nothing() {
    let ledger = ledger(Size::Total(20), Share::Demanded(8));
    let first = open(&ledger);
    let taken = take_all(&first, ALICE);
    assert_eq!(taken.len(), 8 + 6);
    let refused = ledger.open("edu1").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "edu1 has 6 of its share of 8 mappings: the shares of other devices are 8 of 20, and 6 of the \
         common rest are in use (limits.mappings and limits.reserved_mappings)"
    );
    assert_eq!(ledger.usage(WHAT), Usage { used: 6, limit: 12 });
    drop(taken);
    assert!(ledger.open("edu1").unwrap().shortfalls.is_empty());
}

#[test]
fn shares_that_were_not_demanded_leave_most_of_the_total() {
    let ledger = ledger(Size::Total(40), Share::UpTo(4));
    let opened: Vec<_> = (0..4).map(|_| ledger.open("edu").unwrap()).collect();
    let shares = opened.iter().map(|opened| opened.account.usage(WHAT).limit);
    assert_eq!(shares.collect::<Vec<_>>(), [4, 4, 2, 0]);
    let short = opened.iter().map(|opened| opened.shortfalls.len());
    assert_eq!(short.collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert_eq!(ledger.usage(WHAT).limit, 30);
}

#[test]
fn there_is_something_for_the_clients_of_very_many_devices() {
    let mut limits = Limits::of_process(1);
    limits.set_total(Resource::Descriptors, 20_000, 1);
    let ledger = Ledger::new(limits);
    let devices: Vec<_> = (0..10_000).map(|_| ledger.open("gpio").unwrap().account).collect();
    let common = ledger.usage(Resource::Descriptors).limit;
    assert!((4_000..6_000).contains(&common), "{common}");
    let last = Payer::new(devices.last().unwrap().clone(), ALICE);
    let _charge = last.charge(Resource::Descriptors, 2).unwrap();
    drop((devices, last));
}

/// Such as for a descriptor that a client of the device has not read yet.
#[test]
fn closed_account_keeps_of_its_share_what_is_in_use_until_that_is_given_back() {
    let ledger = ledger(Size::Total(20), Share::Demanded(8));
    let device = open(&ledger);
    let payer = Payer::new(device.clone(), ALICE);
    let (mut kept, other) = (payer.charge(WHAT, 3).unwrap(), payer.charge(WHAT, 2).unwrap());
    for _ in 0..2 {
        device.close();
        assert_eq!(ledger.usage(WHAT), Usage { used: 0, limit: 20 - 5 });
    }
    drop(other);
    assert_eq!(ledger.usage(WHAT), Usage { used: 0, limit: 20 - 3 });
    kept.resize(4).unwrap();
    assert_eq!(ledger.usage(WHAT), Usage { used: 1, limit: 20 - 3 });
    assert!(kept.is_common());
    kept.resize(2).unwrap();
    assert_eq!(ledger.usage(WHAT), Usage { used: 0, limit: 20 - 2 });
    // The next device of this name has a share of its own.
    let next = open(&ledger);
    assert_eq!(next.usage(WHAT), Usage { used: 0, limit: 8 });
    drop((device, payer, kept));
    assert_eq!(ledger.usage(WHAT), Usage { used: 0, limit: 20 - 8 });
}

#[test]
fn account_lives_as_long_as_its_charges() {
    let ledger = ledger(Size::Total(20), Share::Demanded(4));
    let charge = Payer::new(open(&ledger), ALICE).charge(WHAT, 1).unwrap();
    assert_eq!(ledger.usage(WHAT).limit, 16);
    drop(charge);
    assert_eq!(ledger.usage(WHAT).limit, 20);
}

#[test]
fn process_has_shares_for_as_many_devices_as_are_expected() {
    let limit = |devices, resource: Resource| Limits::of_process(devices)[resource];
    assert_eq!(limit(10_000, Resource::Threads).share, Share::UpTo(2));
    assert_eq!(limit(1, Resource::Memory).share, Share::UpTo(8 << 20));
    assert_eq!(limit(10_000, Resource::AddressSpace).share, Share::UpTo((24 << 40) / 10_000));
    let Size::Total(mappings) = limit(1, Resource::Mappings).size else { panic!("no total") };
    assert!((1..=32_768).contains(&mappings));
    let mut limits = Limits::of_process(1);
    limits.set_total(Resource::Descriptors, 2, 1);
    assert_eq!(limits[Resource::Descriptors].share, Share::UpTo(1));
}
