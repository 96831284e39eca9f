//! Hot reset against everything that can happen to the members of a set meanwhile.

use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_sync::model::{join_all, spawn};

use super::scenarios::{NOW, finish, open, register};
use super::witness::{Ledger, Witness};
use crate::irq::{IrqAction, IrqData};
use crate::sync::thread;
use crate::{
    DeviceRef, Errno, Error, File, InUse, IrqIndex, Owner, RegionIndex, Registration, Registry,
    Result,
};

const REGISTERS: RegionIndex = RegionIndex(0);
const LINE: IrqIndex = IrqIndex(0);

struct Stage {
    registry: Registry,
    ledger: Arc<Ledger>,
    members: Vec<Registration>,
}

impl Stage {
    fn new(devices: impl FnOnce(&Arc<Ledger>) -> Vec<(&'static str, Witness)>) -> Self {
        let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
        let devices = devices(&ledger).into_iter();
        let members = devices.map(|(name, device)| register(&registry, &ledger, device, name));
        let members = members.collect();
        Self { registry, ledger, members }
    }

    fn plain() -> Self {
        Self::new(|ledger| ["a", "b"].map(|name| (name, Witness::new(name, ledger))).into())
    }

    fn device(&self, member: usize) -> DeviceRef {
        self.members[member].device().clone()
    }

    fn finish(self) {
        drop(self.registry);
        finish(&self.ledger, self.members);
    }
}

fn read(file: &File) -> Result<()> {
    file.read(REGISTERS, 0, &mut [0; 4])
}

/// Only these may be the outcome of what failed.
#[track_caller]
fn expect<T>(result: &Result<T>, errnos: &[Errno]) {
    let errno = result.as_ref().err().map(Error::errno);
    assert!(errno.is_none_or(|errno| errnos.contains(&errno)), "{errno:?}");
}

/// Two members, both in use, one of them just being opened by another user of the same owner.
pub(crate) fn hot_reset_against_accesses() {
    let stage = Stage::plain();
    let file = open(&stage.device(0)).expect("opens");
    stage.ledger.expect_hot_reset(2);
    let users = [0, 1].map(|member: usize| {
        let device = stage.device(member);
        spawn(move || {
            let file = open(&device).expect("opens");
            for _ in 0..2 {
                expect(&read(&file), &[Errno::BUSY]);
            }
        })
    });
    expect(&file.reset_set(), &[Errno::BUSY]);
    join_all(users);
    read(&file).expect("goes on");
    drop(file);
    stage.finish();
}

/// Another owner opens and closes the other member.
pub(crate) fn hot_reset_against_another_owner() {
    let stage = Stage::plain();
    let file = open(&stage.device(0)).expect("opens");
    stage.ledger.expect_hot_reset(2);
    let device = stage.device(1);
    let other = spawn(move || {
        for _ in 0..2 {
            let file = device.open(Owner::in_process("other")).expect("opens");
            thread::yield_now();
            expect(&read(&file), &[Errno::BUSY]);
        }
    });
    for _ in 0..2 {
        expect(&file.reset_set(), &[Errno::INVAL, Errno::BUSY]);
    }
    join_all([other]);
    file.reset_set().expect("nobody is in the way");
    drop(file);
    stage.finish();
}

/// The administrator's, which open members forbid: no member is open during any of them.
pub(crate) fn administrators_reset_against_opens() {
    let stage = Stage::plain();
    let users = [0, 1].map(|member: usize| {
        let device = stage.device(member);
        spawn(move || {
            let file = open(&device).expect("opens");
            expect(&read(&file), &[Errno::BUSY]);
        })
    });
    expect(&stage.device(0).reset_set(InUse::Refuse), &[Errno::BUSY]);
    join_all(users);
    stage.device(0).reset_set(InUse::Refuse).expect("nobody has one open");
    stage.finish();
}

/// The other member is unregistered, its user's file taken away; another comes into the set.
pub(crate) fn hot_reset_against_unregister() {
    let mut stage = Stage::plain();
    let file = open(&stage.device(0)).expect("opens");
    // How many steps it has depends on who is a member: no check of accesses.
    stage.ledger.expect_hot_reset(1);
    let leaving = stage.members.pop().expect("two members");
    let device = leaving.device().clone();
    let user = spawn(move || {
        if let Ok(file) = open(&device) {
            expect(&read(&file), &[Errno::BUSY, Errno::NODEV]);
        }
    });
    let gone = spawn(move || leaving.unregister(NOW));
    let (registry, ledger) = (stage.registry.clone(), stage.ledger.clone());
    let comes = spawn(move || {
        drop(register(&registry, &ledger, Witness::new("c", &ledger), "c"));
    });
    expect(&file.reset_set(), &[Errno::BUSY]);
    join_all([user, gone, comes]);
    file.reset_set().expect("alone in the set");
    read(&file).expect("goes on");
    drop(file);
    stage.finish();
}

/// The caller's own file is taken away.
pub(crate) fn hot_reset_against_the_callers_end() {
    let mut stage = Stage::plain();
    let mine = stage.members.remove(0);
    let file = open(mine.device()).expect("opens");
    let other = open(&stage.device(0)).expect("opens");
    stage.ledger.expect_hot_reset(1);
    let gone = spawn(move || mine.unregister(NOW));
    expect(&file.reset_set(), &[Errno::BUSY, Errno::NODEV]);
    drop(file);
    join_all([gone]);
    read(&other).expect("goes on");
    drop(other);
    stage.finish();
}

/// A member's reset fails, or panics, while both are used and closed: each was left alone or is in
/// the error state; when the last is closed, or at the next hot reset, all is well again.
pub(crate) fn hot_reset_that_fails() {
    for panics in [false, true] {
        let stage = Stage::new(|ledger| {
            let fault = vec!["reset"];
            let b = Witness::new("b", ledger);
            let b = if panics { b.panicking(fault) } else { b.failing(fault) };
            vec![("a", Witness::new("a", ledger)), ("b", b)]
        });
        let file = open(&stage.device(0)).expect("opens");
        stage.ledger.expect_hot_reset(2);
        let device = stage.device(1);
        let user = spawn(move || match open(&device) {
            Ok(file) => expect(&read(&file), &[Errno::BUSY, Errno::IO]),
            // `b` was opened for the first time after the failure, and its reset failed once more.
            refused => expect(&refused, &[]),
        });
        let outcome = file.reset_set();
        expect(&outcome, &[Errno::BUSY, Errno::IO, Errno::NOSPC]);
        let failed = outcome.as_ref().is_err_and(|error| error.errno() != Errno::BUSY);
        let status = stage.device(0).status();
        assert_eq!(status.failed, failed, "a member that is half reset");
        join_all([user]);
        expect(&file.reset_set(), &[Errno::IO, Errno::NOSPC]);
        file.reset_set().expect("is well");
        read(&file).expect("is well again");
        drop(file);
        stage.finish();
    }
}

/// A client stores into a page of the first member.
pub(crate) fn hot_reset_against_stores() {
    let stage = Stage::new(|ledger| {
        let member = |name| (name, Witness::new(name, ledger).sharing());
        vec![member("a"), member("b")]
    });
    let file = open(&stage.device(0)).expect("opens");
    let page = stage.device(0).registered.context.shared_memory(1).expect("memory");
    // The first one is reset again after the second.
    stage.ledger.expect_hot_reset(3);
    let stored = Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
    let client = {
        let (ledger, page, stored) = (stage.ledger.clone(), page.clone(), stored.clone());
        spawn(move || {
            for _ in 0..3 {
                thread::yield_now();
                page.write(0, &[0xff]).expect("stores");
                stored.store(ledger.hot_steps(), std::sync::atomic::Ordering::SeqCst);
            }
        })
    };
    file.reset_set().expect("nobody is in the way");
    join_all([client]);
    let mut byte = [0];
    page.read(0, &mut byte).expect("reads");
    let before_the_second = stored.load(std::sync::atomic::Ordering::SeqCst) < 2;
    assert!(!before_the_second || byte == [0], "a store from before the end was kept");
    drop(file);
    stage.finish();
}

/// A client rings a doorbell, and the server delivers it.
pub(crate) fn hot_reset_against_doorbells() {
    let stage = Stage::plain();
    let caller = open(&stage.device(0)).expect("opens");
    let file = Arc::new(open(&stage.device(1)).expect("opens"));
    stage.ledger.expect_hot_reset(2);
    let bell = file.doorbells(REGISTERS).expect("has one").remove(0);
    let client = {
        let ledger = stage.ledger.clone();
        spawn(move || {
            thread::yield_now();
            rustix::io::write(&bell, &1u64.to_ne_bytes()).expect("rings");
            ledger.rung();
        })
    };
    let server = {
        let file = file.clone();
        spawn(move || {
            for _ in 0..2 {
                expect(&file.ring(REGISTERS, 0), &[Errno::BUSY]);
                thread::yield_now();
            }
        })
    };
    expect(&caller.reset_set(), &[Errno::BUSY]);
    join_all([client, server]);
    file.ring(REGISTERS, 0).expect("delivers what came after");
    drop((caller, file));
    stage.finish();
}

/// A client signals an unmasking eventfd, and the server hears it.
pub(crate) fn hot_reset_against_unmasks() {
    let stage = Stage::plain();
    let caller = open(&stage.device(0)).expect("opens");
    let file = Arc::new(open(&stage.device(1)).expect("opens"));
    stage.ledger.expect_hot_reset(2);
    let [trigger, unmask] = [0; 2].map(|_| eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
    for (action, fd) in [(IrqAction::Trigger, &trigger), (IrqAction::Unmask, &unmask)] {
        let fds = IrqData::EventFds(vec![fd.try_clone().ok()]);
        file.set_irqs(LINE, 0, 1, action, fds).expect("sets up");
    }
    let watched = file.unmask_fds().remove(0);
    let client = {
        let ledger = stage.ledger.clone();
        spawn(move || {
            thread::yield_now();
            rustix::io::write(&unmask, &1u64.to_ne_bytes()).expect("signals");
            ledger.rung();
        })
    };
    let server = {
        let (file, watched) = (file.clone(), watched.clone());
        spawn(move || {
            file.unmask_signalled(&watched);
        })
    };
    let done = caller.reset_set();
    join_all([client, server]);
    let early = stage.ledger.rung_before(2);
    // It masks itself, and stays so.
    stage.device(1).registered.context.irqs().set_level(LINE, 0, true).expect("raises");
    let unmasked = file.unmask_signalled(&watched);
    assert!(!(done.is_ok() && early && unmasked), "an unmask from before the end was heard");
    drop((caller, file));
    stage.finish();
}

vfiod_sync::checks! {
    hot_reset_against_accesses: 1000,
    hot_reset_against_another_owner: 1000,
    administrators_reset_against_opens: 1000,
    hot_reset_against_unregister: 1000,
    hot_reset_against_the_callers_end: 1000,
    hot_reset_that_fails: 1000,
    hot_reset_against_stores: 1000,
    hot_reset_against_doorbells: 1000,
    hot_reset_against_unmasks: 1000,
}
