//! The small pieces, in every order that memory and scheduler allow.

use std::sync::Arc;

use loom::thread;

use super::no_device::NoDevice;
use crate::file_state::FileShared;
use crate::ids::{FileId, Owner, SetId, SetObject};
use crate::set::SetTable;

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "slot".to_owned()
    }
}

fn opened() -> Arc<FileShared> {
    Arc::new(FileShared::new(FileId(0), Owner::in_process("model")))
}

/// Its holder releases a file while two others revoke it: one of them has to do it.
#[test]
fn one_release_is_owed() {
    loom::model(|| {
        let file = opened();
        assert!(file.opened());
        let rivals = [0; 2].map(|_| {
            let file = file.clone();
            thread::spawn(move || usize::from(file.revoke()))
        });
        let mut owed = usize::from(file.take());
        for rival in rivals {
            owed += rival.join().unwrap();
        }
        assert_eq!(owed, 1);
        assert!(!file.is_open());
    });
}

/// A file is revoked while it is being opened: either the opener notices, or the other has to
/// release it; never both, never neither.
#[test]
fn an_open_that_is_revoked_is_released_once() {
    loom::model(|| {
        let file = opened();
        let other = {
            let file = file.clone();
            thread::spawn(move || file.revoke())
        };
        let noticed = !file.opened();
        let owed = other.join().unwrap();
        assert!(noticed ^ owed);
        assert!(!file.take(), "and its holder does nothing");
    });
}

/// Three members come and go: those that are there at a time share a set, and the last one
/// takes it along.
#[test]
fn one_live_set() {
    loom::model(|| {
        let table = Arc::new(SetTable::<NoDevice>::new(1));
        let slot = Arc::new(Slot);
        let (mine, created) = table.join(&SetId::of(&slot));
        assert!(created);
        let others = [0; 2].map(|_| {
            let (table, id) = (table.clone(), SetId::of(&slot));
            thread::spawn(move || {
                let (set, created) = table.join(&id);
                (set.clone(), created, table.leave(&set, || ()).is_some())
            })
        });
        let gone = table.leave(&mine, || ()).is_some();
        let others = others.map(|other| other.join().unwrap());
        let made = 1 + others.iter().filter(|(_, created, _)| *created).count();
        let ended = usize::from(gone) + others.iter().filter(|(_, _, gone)| *gone).count();
        assert_eq!(made, ended, "every set that was made is gone");
        for (set, created, _) in &others {
            assert!(*created || made > 1 || Arc::ptr_eq(set, &mine), "another set at a time");
        }
        let (_again, created) = table.join(&SetId::of(&slot));
        assert!(created, "nothing was left in the table");
    });
}

/// Two join at once, and stay: they are in one set.
fn two_joiners() {
    loom::model(|| {
        let table = Arc::new(SetTable::<NoDevice>::new(1));
        let slot = Arc::new(Slot);
        let other = {
            let (table, id) = (table.clone(), SetId::of(&slot));
            thread::spawn(move || table.join(&id))
        };
        let (mine, made) = table.join(&SetId::of(&slot));
        let (theirs, made_too) = other.join().unwrap();
        assert!(Arc::ptr_eq(&mine, &theirs), "two live sets");
        assert!(made ^ made_too);
        assert!(table.leave(&mine, || ()).is_none());
        assert!(table.leave(&theirs, || ()).is_some());
    });
}

#[test]
fn two_join_one_set() {
    two_joiners();
}

/// A device that knows whether it was released.
struct Quiet(Arc<std::sync::atomic::AtomicBool>);

impl crate::Device for Quiet {
    fn persistence(&mut self) -> crate::state::Persistence<'_> {
        crate::state::Persistence::Stateless
    }

    fn describe(&self) -> crate::Description {
        let regions = vec![crate::Region::registers(4)];
        crate::Description { flags: crate::DeviceFlags::empty(), regions, irqs: Vec::new() }
    }
    fn init(&mut self, _ctx: &crate::Context) -> crate::Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> crate::Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn release(&mut self, _file: FileId) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
    fn read(&mut self, _: crate::RegionIndex, _: u64, _: &mut [u8]) -> crate::Result<()> {
        assert!(!self.0.load(std::sync::atomic::Ordering::SeqCst), "an access after the release");
        Ok(())
    }
    fn write(&mut self, _: crate::RegionIndex, _: u64, _: &[u8]) -> crate::Result<()> {
        Ok(())
    }
    fn reset(&mut self, _: crate::ResetCause) -> crate::Result<()> {
        Ok(())
    }
}

/// An access races with the revoke of its file: it comes first, or not at all. The check of the
/// file's state is a relaxed load under the device lock; this shows that it suffices.
fn access_against_revoke() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let registry = crate::Registry::new();
        let released = Arc::<std::sync::atomic::AtomicBool>::default();
        let spec = crate::DeviceSpec { name: "a".to_owned(), ..Default::default() };
        let device = Box::new(Quiet(released.clone()));
        let registration = registry.register(spec, device).expect("registers");
        let file = registration.device().open(Owner::in_process("model"));
        let file = file.expect("opens");
        let reader =
            thread::spawn(move || match file.read(crate::RegionIndex(0), 0, &mut [0; 4]) {
                Ok(()) => {}
                Err(error) => assert_eq!(error.errno(), crate::Errno::NODEV),
            });
        drop(registration);
        reader.join().expect("the reader");
        assert!(released.load(std::sync::atomic::Ordering::SeqCst));
    });
}

#[test]
fn no_access_after_release() {
    access_against_revoke();
}

/// Counts the resets of its set, where the checker sees it: the order of two devices' calls is
/// nothing to it otherwise.
struct Counting(Arc<loom::sync::atomic::AtomicUsize>, Arc<std::sync::atomic::AtomicBool>);

impl crate::Device for Counting {
    fn persistence(&mut self) -> crate::state::Persistence<'_> {
        crate::state::Persistence::Stateless
    }

    fn describe(&self) -> crate::Description {
        let regions = vec![crate::Region::registers(4)];
        crate::Description { flags: crate::DeviceFlags::empty(), regions, irqs: Vec::new() }
    }
    fn init(&mut self, _ctx: &crate::Context) -> crate::Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> crate::Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _: crate::RegionIndex, _: u64, _: &mut [u8]) -> crate::Result<()> {
        if self.0.load(loom::sync::atomic::Ordering::SeqCst) % 2 == 1 {
            // Told at the end: files cannot be dropped while the model fails.
            self.1.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        Ok(())
    }
    fn write(&mut self, _: crate::RegionIndex, _: u64, _: &[u8]) -> crate::Result<()> {
        Ok(())
    }
    fn reset(&mut self, cause: crate::ResetCause) -> crate::Result<()> {
        if cause == crate::ResetCause::Set {
            self.0.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
        }
        Ok(())
    }
}

/// An access races with a hot reset of two members: it comes before both, or after both. The flag
/// that stops it is set without the device lock; this shows that it suffices to look at it with
/// that lock held.
fn access_against_hot_reset() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let registry = crate::Registry::new();
        let slot = Arc::new(Slot);
        let resets = Arc::<loom::sync::atomic::AtomicUsize>::default();
        let amid = Arc::<std::sync::atomic::AtomicBool>::default();
        let members = ["a", "b"].map(|name| {
            let set = Some(SetId::of(&slot));
            let spec = crate::DeviceSpec { name: name.to_owned(), set, ..Default::default() };
            registry
                .register(spec, Box::new(Counting(resets.clone(), amid.clone())))
                .expect("registers")
        });
        let files = members
            .each_ref()
            .map(|member| member.device().open(Owner::in_process("model")).expect("opens"));
        let [a, b] = files;
        let reader = thread::spawn(move || {
            if let Err(error) = a.read(crate::RegionIndex(0), 0, &mut [0; 4]) {
                assert_eq!(error.errno(), crate::Errno::BUSY);
            }
            a
        });
        if let Err(error) = b.reset_set() {
            assert_eq!(error.errno(), crate::Errno::BUSY);
        }
        let a = reader.join().expect("the reader");
        a.read(crate::RegionIndex(0), 0, &mut [0; 4]).expect("goes on");
        drop((a, b, members));
        assert!(!amid.load(std::sync::atomic::Ordering::SeqCst), "an access amid a hot reset");
    });
}

#[test]
fn no_access_amid_a_hot_reset() {
    access_against_hot_reset();
}

/// A thread enters a write to an eventfd while the watchdog of such writes parks: the watchdog
/// sees it and stays awake, or the thread wakes it.
#[test]
fn no_signal_is_left_without_a_watchdog() {
    use crate::irq::watchdog::{Mark, Parked};
    loom::model(|| {
        let shared = Arc::new((Mark::default(), Parked::default()));
        let signaller = thread::spawn({
            let shared = shared.clone();
            move || shared.0.enter(&shared.1)
        });
        let (mark, parked) = &*shared;
        let parked = parked.park(|| mark.value() % 2 == 1);
        let wakes = signaller.join().unwrap();
        assert!(!parked || wakes, "nobody watches the write");
    });
}
