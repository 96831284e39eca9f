//! A completion queue under threads: those who post, and a host that looks only when it is interrupted. The
//! pages of shadow doorbells after the end of the work.

use std::os::fd::OwnedFd;

use futures_util::future::FutureExt;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_core::Context;
use vfiod_core::dma::{Attachment, Backing, MapRequest, Perm, Space};
use vfiod_core::memory::SharedMemory;
use vfiod_sync::atomic::{AtomicU32, Ordering};
use vfiod_sync::{Arc, Condvar, Mutex, lock};

use super::completion::Written;
use super::{
    CompletionQueue, DoorbellPlace, Host, Layout, MappedPage, Pages, Queues, SubmissionQueue,
};
use crate::vectors::{Raise, Vectors};
use vfiod_nvme_spec::registers::DOORBELLS;
use vfiod_nvme_spec::{Completion, Status};

const LEN: u64 = 4096;

/// What a host sees of an interrupt: the pin, and how many messages came.
#[derive(Default)]
struct Line {
    state: Mutex<(bool, u32)>,
    changed: Condvar,
}

impl Raise for Line {
    fn set(&self, _vector: u16, active: bool) {
        let mut state = lock(&self.state);
        *state = (active, state.1 + u32::from(active));
        self.changed.notify_all();
    }

    fn is_pin(&self) -> bool {
        true
    }
}

impl Line {
    /// Waits for a message after `seen` of them.
    fn wait(&self, seen: u32) -> u32 {
        let mut state = lock(&self.state);
        while state.1 == seen {
            state = self.changed.wait(state).expect("not poisoned");
        }
        state.1
    }
}

/// A queue in a host's memory.
struct Rig {
    memory: OwnedFd,
    dma: Attachment,
    queue: CompletionQueue,
    vectors: Vectors,
    line: Line,
    deferred: AtomicU32,
    freed: Condvar,
    frees: Mutex<u32>,
}

impl Rig {
    fn new(entries: u32) -> Arc<Self> {
        let memory = memfd_create("model", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&memory, LEN).expect("size");
        let space = Space::default();
        let fd = memory.try_clone().expect("a descriptor");
        let (perm, backing) = (Perm::READ | Perm::WRITE, Backing::File { fd, offset: 0 });
        space.map(None, MapRequest { iova: 0, size: LEN, perm, backing }).expect("maps");
        Arc::new(Self {
            memory,
            dma: Attachment::new(&space),
            queue: CompletionQueue::new(Layout { base: 0, entries, vector: Some(0) }),
            vectors: Vectors::new(1),
            line: Line::default(),
            deferred: AtomicU32::new(0),
            freed: Condvar::new(),
            frees: Mutex::new(0),
        })
    }

    fn reach(&self) -> Host<'_> {
        let (dma, vectors, raise) = (&self.dma, &self.vectors, &self.line);
        Host { dma, vectors, raise, coalesces: false, deferred: &self.deferred }
    }

    /// Posts completions with these identifiers, each when there is a place.
    fn post(&self, ids: std::ops::Range<u16>) {
        for id in ids {
            let mut frees = lock(&self.frees);
            while self.queue.reserve(self.reach(), 1).expect("reaches memory").count == 0 {
                frees = self.freed.wait(frees).expect("not poisoned");
            }
            drop(frees);
            self.post_one(id);
        }
    }

    /// Posts a completion with this identifier, for which there is a place.
    fn post_one(&self, id: u16) -> Written {
        let completions =
            [Completion { result: 0, head: 0, queue: 1, id, status: Status::SUCCESS }];
        let posted = self.queue.post(self.reach(), &completions);
        // Memory that is mapped makes nobody wait.
        posted.now_or_never().expect("at once").expect("is posted")
    }

    /// Reserves a place, if there is one.
    fn reserve(&self) -> bool {
        self.queue.reserve(self.reach(), 1).expect("reaches memory").count == 1
    }

    /// The identifier of the entry at a place, if it has this phase tag.
    fn entry(&self, at: u32, phase: bool) -> Option<u16> {
        let mut bytes = [0; 4];
        rustix::io::pread(&self.memory, &mut bytes, u64::from(at) * 16 + 12).expect("reads");
        let last = u32::from_le_bytes(bytes);
        ((last >> 16 & 1 == 1) == phase).then_some(last as u16)
    }

    /// Takes `count` entries, looking only after an interrupt.
    fn host(&self, count: usize) -> Vec<u16> {
        let (mut head, mut phase, mut interrupts) = (0, true, 0);
        let mut ids = Vec::new();
        while ids.len() < count {
            interrupts = self.line.wait(interrupts);
            while let Some(id) = self.entry(head, phase) {
                ids.push(id);
                head += 1;
                if head == self.queue.layout.entries {
                    (head, phase) = (0, !phase);
                }
            }
            let heard = self.queue.set_head(self.reach(), head);
            assert!(!heard.invalid, "a sound value");
            if heard.wakes {
                *lock(&self.frees) += 1;
                self.freed.notify_all();
            }
        }
        ids
    }
}

/// Every completion arrives once, no interrupt is missing, none is written over one that was not taken,
/// and the pin falls in the end.
#[test]
fn completions_arrive_once_and_the_pin_falls() {
    for round in 0..300 {
        let rig = Rig::new(3);
        let mut ids = std::thread::scope(|threads| {
            threads.spawn(|| rig.post(0..20));
            threads.spawn(|| rig.post(100..120));
            rig.host(40)
        });
        ids.sort_unstable();
        assert!(ids.into_iter().eq((0..20).chain(100..120)), "round {round}");
        assert!(!lock(&rig.line.state).0, "round {round}: the pin is still high");
    }
}

/// Whoever polls hears a host that stores the value of the last poll, after another one that was taken.
#[test]
fn head_that_is_polled_is_heard_though_one_was_taken_between_polls() {
    let rig = Rig::new(2);
    let memory = SharedMemory::new("bar", 0x2000).expect("memory");
    let page = MappedPage::new(memory.clone());
    rig.queue.set_place(&rig.dma, &DoorbellPlace::Mapped(page.clone()), 1).expect("reaches it");
    let store = |head: u32| memory.store(DOORBELLS + 12, head, Ordering::SeqCst).expect("stores");
    let hear = |_, head| rig.queue.set_head(rig.reach(), head).wakes;
    let pin = || lock(&rig.line.state).0;
    assert!(rig.reserve());
    rig.post_one(1);
    assert!(pin());
    store(1);
    assert!(rig.reserve(), "the place that the host has taken");
    rig.post_one(2);
    assert!(!rig.reserve());
    store(0);
    assert!(page.hear_moved(hear, |_| ()), "who waits is to look");
    assert!(!pin(), "the host has taken the last entry");
    assert!(rig.reserve());
}

/// Whoever posts may be the first who sees that the host has taken entries: what tells of the host's store then
/// says nothing new.
#[test]
fn who_waits_for_places_is_woken_whoever_sees_that_there_are_some() {
    let memory = SharedMemory::new("bar", 0x2000).expect("memory");
    for mapped in [false, true] {
        let rig = Rig::new(2);
        let page = MappedPage::new(memory.clone());
        let place = match mapped {
            false => DoorbellPlace::Shadow(Pages { doorbells: LEN / 2, events: LEN / 4 * 3 }),
            true => DoorbellPlace::Mapped(page.clone()),
        };
        rig.queue.set_place(&rig.dma, &place, 1).expect("reaches memory");
        assert!(rig.reserve());
        assert!(!rig.reserve(), "another queue waits");
        // As a host does that takes the entry before the controller has looked whether it is to interrupt.
        let head = 1_u32.to_le_bytes();
        rustix::io::pwrite(&rig.memory, &head, LEN / 2 + 12).expect("writes");
        memory.store(DOORBELLS + 12, 1_u32, Ordering::SeqCst).expect("stores");
        let posted = rig.post_one(1).wakes;
        let hear = |_, head| rig.queue.set_head(rig.reach(), head).wakes;
        let told = if mapped { page.hear_moved(hear, |_| ()) } else { hear(3, 1) };
        assert!(posted || told, "nobody looks again though there are places, mapped: {mapped}");
        assert!(rig.reserve());
    }
}

/// The host stores a head that is none, which whoever posts finds, and then one that is: the pin falls and whoever
/// waits for places is woken, and that the first one was none is said once.
#[test]
fn valid_head_after_an_invalid_one_counts() {
    let memory = SharedMemory::new("bar", 0x2000).expect("memory");
    let rig = Rig::new(2);
    let page = MappedPage::new(memory.clone());
    rig.queue.set_place(&rig.dma, &DoorbellPlace::Mapped(page.clone()), 1).expect("reaches it");
    let store = |head: u32| memory.store(DOORBELLS + 12, head, Ordering::SeqCst).expect("stores");
    let pin = || lock(&rig.line.state).0;
    assert!(rig.reserve());
    assert!(!rig.reserve(), "another queue waits");
    store(7);
    let posted = rig.post_one(1);
    assert!(pin());
    store(1);
    let mut said = posted.invalid;
    let hear = |_, head| {
        let heard = rig.queue.set_head(rig.reach(), head);
        said |= heard.invalid;
        heard.wakes
    };
    assert!(page.hear_moved(hear, |_| ()), "nobody looks again though there is a place");
    assert!(!pin(), "the host has taken the last entry");
    assert!(said, "the value was none of the queue");
    assert!(!rig.queue.reserve(rig.reach(), 1).expect("reaches memory").invalid, "said once");
}

/// Who still has the queues of a controller whose work has ended reaches the pages no more, and no queue gets
/// them.
#[test]
fn queues_that_were_stopped_reach_no_page() {
    let rig = Rig::new(4);
    let interrupts = vfiod_pci::Interrupts::new(Context::detached("queues", &[]));
    let queues = Queues::new(LEN / 4, 16, Vectors::new(1), interrupts);
    let completions = Arc::new(CompletionQueue::new(rig.queue.layout));
    let submissions = Arc::new(SubmissionQueue::new(0, (0, 4), 0, completions.clone()));
    queues.add_completion(0, completions.clone());
    queues.add_submission(submissions.clone());
    let pages = DoorbellPlace::Shadow(Pages { doorbells: LEN / 2, events: LEN / 4 * 3 });
    let fill = || rustix::io::pwrite(&rig.memory, &[0x55; LEN as usize], 0).expect("writes");
    let page = || {
        let mut bytes = [0; LEN as usize / 2];
        rustix::io::pread(&rig.memory, &mut bytes, LEN / 2).expect("reads");
        bytes
    };
    fill();
    queues.set_place(&rig.dma, pages.clone()).expect("reaches memory");
    assert_ne!(page(), [0x55; LEN as usize / 2]);
    queues.stop();
    fill();
    assert!(queues.set_place(&rig.dma, pages).is_ok());
    queues.with_place(|_| unreachable!("they have ended")).expect("does nothing");
    queues.doorbell(&rig.dma, 0, 1);
    assert!(!submissions.look(&rig.dma).expect("reaches memory"));
    assert!(!submissions.ask(&rig.dma).expect("reaches memory"));
    assert_eq!(completions.reserve(rig.reach(), 4).expect("reaches memory").count, 3);
    assert_eq!(page(), [0x55; LEN as usize / 2], "pages that are left alone");
    assert!(queues.place().is_none());
    assert_eq!(submissions.waiting(), 1);
}
