//! What clients and devices do while a set is being reset: it waits, or has no effect.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{pwrite, write};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::memory::SharedMemory;
use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_core::{Errno, File, IrqFlags, IrqIndex, IrqInfo, Region, RegionIndex, Registration};

use crate::rig::{Fault, Probe, REGISTERS, Rig, Slot, errno, open};

const MEMORY: RegionIndex = RegionIndex(1);
const LINE: IrqIndex = IrqIndex(0);
const BELL: u64 = 0x40;
/// What a reset leaves in shared memory.
const POWER_ON: u8 = 0x11;
/// Bytes that are shared.
const SHARED: usize = 4096;

/// Something that a device's reset does at the end.
type Meanwhile = Arc<Mutex<Box<dyn FnMut() + Send>>>;

fn nothing() -> Meanwhile {
    Arc::new(Mutex::new(Box::new(|| {})))
}

fn during(meanwhile: &Meanwhile, action: impl FnMut() + Send + 'static) {
    *meanwhile.lock().unwrap() = Box::new(action);
}

/// A probe with shared memory, a doorbell and a line.
fn rich(rig: &Rig, name: &'static str, meanwhile: &Meanwhile) -> Probe {
    let mut probe = rig.probe(name);
    probe.description.regions[0].doorbells = vec![Doorbell::eventfd(BELL, 4).matching(7)];
    probe.description.regions.push(Region {
        shared: vec![SparseArea { offset: 0, size: SHARED as u64 }],
        ..Region::registers(8192)
    });
    let flags = IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED;
    probe.description.irqs[0] = IrqInfo { flags, count: 1 };
    let (context, meanwhile) = (probe.context.clone(), meanwhile.clone());
    probe.on_reset = Box::new(move |_| {
        let memory = context.lock().unwrap().as_ref().map(|context| context.shared_memory(1));
        if let Some(Ok(memory)) = memory {
            memory.fill(0, SHARED as u64, POWER_ON).unwrap();
        }
        (meanwhile.lock().unwrap())();
    });
    probe
}

/// Members a and b with shared memory, both open; what b's reset does at its end.
struct Pair {
    rig: Rig,
    memories: [Arc<SharedMemory>; 2],
    files: [File; 2],
    meanwhile: Meanwhile,
    members: [Registration; 2],
    contexts: [vfiod_core::Context; 2],
}

impl Pair {
    fn new() -> Self {
        let (rig, slot) = (Rig::new(), Arc::new(Slot("slot")));
        let meanwhile = nothing();
        let (a, b) = (rich(&rig, "a", &nothing()), rich(&rig, "b", &meanwhile));
        let contexts = [a.context.clone(), b.context.clone()];
        let members = [a, b].map(|probe| rig.join(&slot, probe));
        let contexts = contexts.map(|context| context.lock().unwrap().clone().unwrap());
        let files = members.each_ref().map(|member| open(member).unwrap());
        let memories = contexts.each_ref().map(|context| context.shared_memory(1).unwrap());
        rig.journal.take();
        Self { rig, memories, files, meanwhile, members, contexts }
    }
}

/// What a client's mapping of the memory does.
fn store(memory: &SharedMemory, byte: u8) {
    assert_eq!(pwrite(memory.fd(), &[byte; SHARED], memory.offset()), Ok(SHARED));
}

fn contents(memory: &SharedMemory) -> Vec<u8> {
    let mut bytes = vec![0; SHARED];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_clients_store_in_mapped_pages_until_the_last_member_is_reset_is_gone() {
    let pair = Pair::new();
    pair.memories.iter().for_each(|memory| store(memory, 0xff));
    let memory = pair.memories[0].clone();
    during(&pair.meanwhile, move || store(&memory, 0xee));
    pair.files[0].reset_set().unwrap();
    for memory in &pair.memories {
        assert!(contents(memory).iter().all(|byte| *byte == POWER_ON));
    }
    // A read of the region sees the reset, too.
    let mut data = [0; 4];
    pair.files[0].read(MEMORY, 0, &mut data).unwrap();
    assert_eq!(data, [POWER_ON; 4]);
}

/// Two more threads that store without pause, each until the last member's reset ends.
#[test]
fn stores_of_clients_that_never_stop_are_gone_after_a_hot_reset() {
    for _ in 0..20 {
        let pair = Pair::new();
        let (enough, until) = channel::<()>();
        let enough = Mutex::new(Some(enough));
        let memory = pair.memories[0].clone();
        let client = std::thread::spawn(move || {
            while until.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                store(&memory, 0xff);
            }
        });
        let client = Mutex::new(Some(client));
        during(&pair.meanwhile, move || {
            drop(enough.lock().unwrap().take());
            if let Some(client) = client.lock().unwrap().take() {
                client.join().unwrap();
            }
        });
        pair.files[1].reset_set().unwrap();
        assert!(contents(&pair.memories[0]).iter().all(|byte| *byte == POWER_ON));
    }
}

#[test]
fn a_failure_when_pages_are_restored_is_a_failure_of_the_reset() {
    for fault in [Fault::Fail(Errno::TIMEDOUT), Fault::Panic] {
        let pair = Pair::new();
        // Its first reset in the set's is well, its second is not.
        let journal = pair.rig.journal.clone();
        during(&pair.meanwhile, move || journal.fault("a.reset", fault));
        pair.files[0].reset_set().unwrap_err();
        assert!(pair.members.iter().all(|member| member.device().status().failed));
        during(&pair.meanwhile, || {});
        pair.files[0].reset_set().unwrap();
        pair.files.iter().for_each(|file| file.read(REGISTERS, 0, &mut [0; 4]).unwrap());
    }
}

/// Lets a reset of the set get to the end of b's, runs `test`, and lets it go on.
fn amid(pair: &Pair, test: impl FnOnce(&dyn Fn())) {
    let (entered, inside) = channel();
    let (leave, left) = channel::<()>();
    during(&pair.meanwhile, move || {
        let _ = entered.send(());
        let _ = left.recv();
    });
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| pair.files[0].reset_set());
        inside.recv().unwrap();
        let leave = Cell::new(Some(leave));
        test(&|| drop(leave.take()));
        drop(leave);
        reset.join().unwrap().unwrap();
    });
}

/// An access waits for a second. A machine that stands still for so long looks the same, but not again and
/// again.
fn assert_in_one_of_three(what: &str, mut is_so: impl FnMut() -> bool) {
    assert!((0..3).any(|_| is_so()), "{what}");
}

#[test]
fn accesses_wait_for_the_end_of_a_hot_reset() {
    assert_in_one_of_three("accesses are refused", accesses_wait);
}

/// Whether accesses during a reset of the set wait for its end; `false`: one of them gave up.
fn accesses_wait() -> bool {
    let pair = Pair::new();
    let mut results = Vec::new();
    amid(&pair, |go_on| {
        std::thread::scope(|scope| {
            let (told, done) = channel();
            type Access = fn(&File) -> vfiod_core::Result<()>;
            let accesses: [Access; 6] = [
                |file| file.read(REGISTERS, 0, &mut [0; 4]),
                |file| file.write(REGISTERS, 0, &[0; 4]),
                |file| file.read(MEMORY, 0, &mut [0; 4]),
                |file| file.write(MEMORY, 8, &[0; 4]),
                |file| file.feature_get(1, &[]).map(drop),
                |file| file.reset(),
            ];
            for access in accesses {
                for file in &pair.files {
                    let told = told.clone();
                    scope.spawn(move || told.send(access(file)));
                }
            }
            // A right one can never be done by now, unless it gave up; a wrong one most likely is.
            results.extend(done.recv_timeout(Duration::from_millis(50)));
            assert!(results.iter().all(|early| early.is_err()), "done amid the reset");
            go_on();
            drop(told);
            results.extend(done);
            assert_eq!(results.len(), 2 * accesses.len());
        });
    });
    let mut refused = results.into_iter().filter_map(Result::err).map(|error| error.errno());
    if let Some(errno) = refused.next() {
        assert_eq!(errno, Errno::BUSY);
        return false;
    }
    let log = pair.rig.journal.take();
    let last_reset = log.iter().rposition(|line| line == "a.reset Set").unwrap();
    let first_read = log.iter().position(|line| line.contains(".read ")).unwrap();
    assert!(last_reset < first_read, "{log:?}");
    true
}

/// However busy clients keep the members: new accesses stay outside, so it does not take long
/// until nobody is inside.
#[test]
fn clients_that_never_stop_reading_do_not_prevent_a_hot_reset() {
    assert_in_one_of_three("a read or a reset is refused", || {
        let pair = Pair::new();
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let read = |file: &File| {
                let mut outcome = Ok(());
                while outcome.is_ok() && !enough.load(Ordering::Relaxed) {
                    outcome = file.read(REGISTERS, 0, &mut [0; 4]);
                }
                outcome
            };
            let files = pair.files.iter().cycle().take(6);
            let readers: Vec<_> = files.map(|file| scope.spawn(move || read(file))).collect();
            let resets = (0..100).try_for_each(|_| {
                pair.rig.journal.take();
                pair.files[0].reset_set()
            });
            enough.store(true, Ordering::Relaxed);
            let reads = readers.into_iter().map(|reader| reader.join().unwrap());
            let mut refused =
                reads.chain([resets]).filter_map(Result::err).map(|error| error.errno());
            let first = refused.next();
            assert!(matches!(first, None | Some(Errno::BUSY)), "{first:?}");
            first.is_none()
        })
    });
}

#[test]
fn access_gives_up_waiting_for_the_end_of_a_hot_reset() {
    let pair = Pair::new();
    amid(&pair, |_go_on| {
        assert_eq!(errno(pair.files[1].read(REGISTERS, 0, &mut [0; 4])), Errno::BUSY);
        assert_eq!(errno(pair.files[1].write(MEMORY, 0, &[1])), Errno::BUSY);
    });
    pair.files[1].read(REGISTERS, 0, &mut [0; 4]).unwrap();
}

#[test]
fn opens_and_releases_do_not_disturb_a_hot_reset() {
    let pair = Pair::new();
    amid(&pair, |go_on| {
        let Pair { members, rig, .. } = &pair;
        std::thread::scope(|scope| {
            let opener = scope.spawn(|| open(&members[1]));
            rig.journal.take();
            std::thread::yield_now();
            assert!(rig.journal.take().is_empty());
            go_on();
            opener.join().unwrap().unwrap();
        });
    });
}

fn counter() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK).unwrap()
}

fn ring(fd: &OwnedFd) {
    write(fd, &1u64.to_ne_bytes()).unwrap();
}

#[test]
fn doorbells_rung_during_a_hot_reset_are_dropped() {
    let pair = Pair::new();
    let bells = pair.files[0].doorbells(REGISTERS).unwrap();
    let bell = bells[0].try_clone().unwrap();
    during(&pair.meanwhile, move || ring(&bell));
    pair.files[1].reset_set().unwrap();
    assert!(!pair.files[0].ring(REGISTERS, 0).unwrap());
    ring(&bells[0]);
    assert!(pair.files[0].ring(REGISTERS, 0).unwrap());
    assert_eq!(pair.rig.journal.count("a.write 0x40 [7, 0, 0, 0]"), 1);
}

/// A server's thread that has seen the doorbell before the reset, and delivers it now.
#[test]
fn doorbell_under_way_when_a_hot_reset_begins_is_dropped() {
    let pair = Pair::new();
    let bells = pair.files[0].doorbells(REGISTERS).unwrap();
    ring(&bells[0]);
    amid(&pair, |go_on| {
        std::thread::scope(|scope| {
            let ringer = scope.spawn(|| pair.files[0].ring(REGISTERS, 0));
            std::thread::yield_now();
            go_on();
            assert!(!ringer.join().unwrap().unwrap());
        });
    });
    assert_eq!(pair.rig.journal.count("a.write 0x40 [7, 0, 0, 0]"), 0);
}

#[test]
fn doorbell_of_a_member_that_was_not_reset_is_delivered() {
    let pair = Pair::new();
    let bells = pair.files[1].doorbells(REGISTERS).unwrap();
    ring(&bells[0]);
    pair.rig.journal.fault("a.reset", Fault::Fail(Errno::TIMEDOUT));
    assert_eq!(errno(pair.files[0].reset_set()), Errno::TIMEDOUT);
    assert!(pair.files[1].ring(REGISTERS, 0).unwrap());
    // In the error state it is lost, and the server is not told of it again and again.
    let bells = pair.files[0].doorbells(REGISTERS).unwrap();
    ring(&bells[0]);
    assert_eq!(errno(pair.files[0].ring(REGISTERS, 0)), Errno::IO);
    assert_eq!(rustix::io::read(&bells[0], &mut [0; 8]), Err(Errno::AGAIN));
}

#[test]
fn unmask_signalled_during_a_hot_reset_is_dropped() {
    let pair = Pair::new();
    let (file, irqs) = (&pair.files[0], pair.contexts[0].irqs());
    let (trigger, unmask) = (counter(), counter());
    let fds = |fd: &OwnedFd| IrqData::EventFds(vec![fd.try_clone().ok()]);
    file.set_irqs(LINE, 0, 1, IrqAction::Trigger, fds(&trigger)).unwrap();
    file.set_irqs(LINE, 0, 1, IrqAction::Unmask, fds(&unmask)).unwrap();
    let watched = file.unmask_fds().remove(0);
    let rung = unmask.try_clone().unwrap();
    during(&pair.meanwhile, move || ring(&rung));
    pair.files[1].reset_set().unwrap();
    // The line comes up and masks itself: it stays so.
    irqs.set_level(LINE, 0, true).unwrap();
    assert!(irqs.is_pending(LINE, 0));
    assert!(!file.unmask_signalled(&watched));
    assert!(irqs.is_pending(LINE, 0));
    ring(&unmask);
    assert!(file.unmask_signalled(&watched));
}
