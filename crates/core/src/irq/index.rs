//! The vectors of one interrupt index, and the handle of one of them.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::eventfd::{EventFd, Signalled};
use super::flat::{Bits, GROUP, Group, WORDS, groups};
use super::uapi::{IrqFlags, IrqIndex, IrqInfo};
use super::vector::{Due, Owned, Signal, Vector, VectorCounters};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, lock, point};

/// One interrupt index of a device.
#[derive(Debug)]
pub(super) struct Index {
    /// The device's name, for the log.
    device: Arc<str>,
    number: IrqIndex,
    pub(super) info: IrqInfo,
    vectors: Box<[Mutex<Vector>]>,
    /// What the vectors' states are in the flat form.
    flat: Box<[Group]>,
    /// Vectors with an eventfd.
    armed: AtomicU32,
    /// Whether it was logged that a client blocked a signal.
    warned: AtomicBool,
}

impl Index {
    pub(super) fn new(device: Arc<str>, number: IrqIndex, info: IrqInfo) -> Self {
        let vectors = (0..info.count).map(|_| Mutex::new(Vector::default())).collect();
        let flat = (0..groups(info.count)).map(|_| Group::default()).collect();
        let (armed, warned) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { device, number, info, vectors, flat, armed, warned }
    }

    /// Takes the lock of a vector, which must exist.
    #[inline]
    pub(super) fn lock(&self, at: u32) -> Locked<'_> {
        let vector = lock(&self.vectors[at as usize]);
        Locked { before: vector.bits(), vector, index: self, at }
    }

    /// Every vector, locked while it is looked at.
    pub(super) fn each(&self) -> impl Iterator<Item = Locked<'_>> {
        (0..self.info.count).map(|at| self.lock(at))
    }

    /// The size of the index in the flat form, bytes.
    pub(super) fn flat_len(&self) -> usize {
        self.flat.len() * WORDS * 8
    }

    /// Writes the flat form of the vectors; `image` has [`Index::flat_len`] bytes.
    #[inline]
    pub(super) fn save_flat(&self, image: &mut [u8]) {
        for (bytes, group) in image.chunks_exact_mut(WORDS * 8).zip(&self.flat) {
            group.save(bytes);
        }
    }

    fn automasked(&self) -> bool {
        self.info.flags.contains(IrqFlags::AUTOMASKED)
    }

    /// Whether any vector has an eventfd.
    pub(super) fn enabled(&self) -> bool {
        self.armed.load(Ordering::Acquire) > 0
    }

    /// Changes a vector and decides about the signal that is due then.
    pub(super) fn decide(&self, at: u32, change: impl FnOnce(&mut Vector) -> Due) -> Signal {
        let mut vector = self.lock(at);
        let due = change(&mut vector);
        vector.fire(due, self.automasked())
    }

    /// Changes a vector and signals what is due then. Returns whether something was.
    pub(super) fn apply(&self, at: u32, change: impl FnOnce(&mut Vector) -> Due) -> bool {
        let signal = self.decide(at, change);
        match signal {
            Some(fd) => {
                self.send(at, &fd);
                true
            }
            None => false,
        }
    }

    /// Signals an eventfd of a vector. No lock may be held. One that blocks, or takes long again and
    /// again, is taken from the vector.
    pub(super) fn send(&self, at: u32, fd: &Arc<EventFd>) {
        point();
        match fd.signal() {
            Signalled::Yes => {}
            Signalled::Blocked => {
                self.drop_blocking(at, fd, "the client filled its counter and let a signal block");
            }
            Signalled::Slow => {
                self.drop_blocking(
                    at,
                    fd,
                    "it is watched so often that a signal takes milliseconds",
                );
            }
        }
    }

    #[cold]
    fn drop_blocking(&self, at: u32, fd: &Arc<EventFd>, why: &str) {
        let file;
        {
            let mut vector = self.lock(at);
            match &vector.trigger {
                Some(owned) if Arc::ptr_eq(&owned.fd, fd) => file = owned.file,
                _ => return,
            }
            vector.set_trigger(None);
            vector.counters.blocked += 1;
            self.armed.fetch_sub(1, Ordering::AcqRel);
        }
        // Once for each index: the client can do it again and again.
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                device = &*self.device,
                index = self.number.0,
                vector = at,
                file = file.0,
                "eventfd dropped: {why}"
            );
        }
    }

    /// Changes a vector's eventfd; the old one goes to `retired`.
    pub(super) fn arm(&self, at: u32, new: Option<Owned>, retired: &mut Vec<Arc<EventFd>>) {
        self.apply(at, |vector| {
            let (old, due) = self.set_trigger_of(vector, new);
            retired.extend(old);
            due
        });
    }

    /// Sets or removes a vector's eventfd, with the vector's lock held. Returns the old one, and what
    /// is due then.
    pub(super) fn set_trigger_of(
        &self,
        vector: &mut Vector,
        new: Option<Owned>,
    ) -> (Option<Arc<EventFd>>, Due) {
        let arms = new.is_some();
        let (old, due) = vector.set_trigger(new);
        match (old.is_some(), arms) {
            (false, true) => _ = self.armed.fetch_add(1, Ordering::AcqRel),
            (true, false) => _ = self.armed.fetch_sub(1, Ordering::AcqRel),
            _ => {}
        }
        (old, due)
    }

    /// Removes every eventfd; those of triggers go to `retired`.
    pub(super) fn disable(&self, retired: &mut Vec<Arc<EventFd>>) {
        for mut vector in self.each() {
            if let Some(old) = vector.disable() {
                self.armed.fetch_sub(1, Ordering::AcqRel);
                retired.push(old);
            }
        }
    }
}

/// A vector, locked. What was changed is in the flat form, too, when this is dropped.
pub(super) struct Locked<'a> {
    index: &'a Index,
    at: u32,
    before: Bits,
    vector: MutexGuard<'a, Vector>,
}

impl Locked<'_> {
    /// The vector's number in its index.
    pub(super) fn at(&self) -> u32 {
        self.at
    }
}

impl Deref for Locked<'_> {
    type Target = Vector;

    #[inline]
    fn deref(&self) -> &Vector {
        &self.vector
    }
}

impl DerefMut for Locked<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vector {
        &mut self.vector
    }
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        // Before the lock is released.
        let after = self.vector.bits();
        if after != self.before {
            self.index.flat[(self.at / GROUP) as usize].change(self.at, self.before, after);
        }
    }
}

/// One interrupt vector of a device, looked up once ([`IrqSet::vector`](super::IrqSet::vector)).
/// Cheap to clone, usable from any thread.
///
/// It stands for the vector and not for an eventfd: it stays valid whatever clients set up, mask or
/// remove. A signal takes the vector's own lock for a few instructions, and one system call. It does
/// not block, except for some milliseconds if the client makes the eventfd block; the vector then
/// loses its eventfd.
#[derive(Clone)]
pub struct IrqVector {
    pub(super) index: Arc<Index>,
    /// Less than the number of the index's vectors.
    pub(super) at: u32,
}

impl IrqVector {
    /// Triggers the vector once (edge). Masked, or without an eventfd while others of its index
    /// have one, it stays pending and is signalled when it can be. Where the client has not
    /// enabled the index, the trigger is lost.
    ///
    /// Returns whether an eventfd was signalled, or will be when the call that is being
    /// [collected](super::IrqBatch::collect) is over.
    #[inline]
    pub fn trigger(&self) -> bool {
        self.change(|index, vector| vector.edge(index.enabled()))
    }

    /// Sets the level of a line (INTx). Asserted and not masked, it signals, and masks itself
    /// where the index is AUTOMASKED. Still asserted at unmask, or when an eventfd is set up, it
    /// signals again.
    pub fn set_level(&self, asserted: bool) {
        self.change(|_, vector| vector.set_level(asserted));
    }

    /// Sets the device's own mask (MSI-X table, MSI mask bits, PCI command register), which is
    /// apart from the client's.
    pub fn set_device_mask(&self, masked: bool) {
        self.change(|_, vector| vector.set_device_mask(masked));
    }

    /// Whether a trigger is pending.
    pub fn is_pending(&self) -> bool {
        self.state().held()
    }

    /// Whether a client has an eventfd set up on any vector of the index.
    pub fn is_index_enabled(&self) -> bool {
        self.index.enabled()
    }

    /// Whether a client has an eventfd set up on this vector.
    pub fn has_eventfd(&self) -> bool {
        self.state().trigger.is_some()
    }

    /// What the vector has done so far.
    pub fn counters(&self) -> VectorCounters {
        self.state().counters
    }

    fn state(&self) -> Locked<'_> {
        self.index.lock(self.at)
    }

    /// Changes the vector, and signals what is due then or leaves it to the batch of the call.
    #[inline]
    pub(super) fn change(&self, change: impl FnOnce(&Index, &mut Vector) -> Due) -> bool {
        let change = |vector: &mut Vector| change(&self.index, vector);
        match take_noted() {
            None => self.index.apply(self.at, change),
            Some(mut noted) => {
                let fires = self.defer(&mut noted, change);
                put_noted(noted);
                fires
            }
        }
    }

    /// Changes the vector, and notes what is due then. Returns whether it can be signalled as
    /// things are.
    pub(super) fn defer(&self, noted: &mut Noted, change: impl FnOnce(&mut Vector) -> Due) -> bool {
        let mut state = self.state();
        let due = change(&mut state);
        let fires = due != Due::Nothing && state.can_fire();
        drop(state);
        if due != Due::Nothing {
            noted.push(Raised { vector: self.clone(), due, signal: None });
        }
        fires
    }
}

impl fmt::Debug for IrqVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, vector) = (self.index.number.0, self.at);
        f.debug_struct("IrqVector").field("index", &index).field("vector", &vector).finish()
    }
}

/// A vector that was raised and is not signalled yet.
#[derive(Debug)]
pub(super) struct Raised {
    pub(super) vector: IrqVector,
    pub(super) due: Due,
    /// What was decided when it is being sent.
    pub(super) signal: Signal,
}

/// Vectors that were raised, in that order.
pub(super) type Noted = Vec<Raised>;

/// What a thread collects.
#[derive(Default)]
struct Collecting {
    /// What the call that the thread is in has raised, if that is being collected.
    now: Cell<Option<Noted>>,
    /// Memory for the next call.
    spare: Cell<Noted>,
}

/// The most entries that a thread keeps memory for.
const KEPT: usize = 64;

#[cfg(not(any(loom, shuttle)))]
std::thread_local! {
    static COLLECTING: Collecting =
        const { Collecting { now: Cell::new(None), spare: Cell::new(Vec::new()) } };
}
// Their macros take no `const`.
#[cfg(any(loom, shuttle))]
crate::sync::thread_local! {
    static COLLECTING: Collecting = Collecting::default();
}

/// Takes what the call has raised so far; `None`: it is not collected. [`put_noted`] follows.
#[inline]
fn take_noted() -> Option<Noted> {
    // A thread that is ending collects nothing.
    COLLECTING.try_with(|collecting| collecting.now.take()).ok().flatten()
}

#[inline]
fn put_noted(noted: Noted) {
    _ = COLLECTING.try_with(|collecting| collecting.now.set(Some(noted)));
}

/// Runs a call and notes what it raises on this thread. What a call that panics has raised is
/// forgotten; it stays pending.
#[inline]
pub(super) fn collect<R>(call: impl FnOnce() -> R) -> (R, Noted) {
    /// Puts back what an outer call has raised, also after a panic.
    struct Outer(Option<Noted>);
    impl Drop for Outer {
        fn drop(&mut self) {
            _ = COLLECTING.try_with(|collecting| collecting.now.replace(self.0.take()));
        }
    }
    let outer =
        COLLECTING.try_with(|collecting| collecting.now.replace(Some(collecting.spare.take())));
    let outer = Outer(outer.unwrap_or_default());
    let result = call();
    let noted = take_noted().unwrap_or_default();
    drop(outer);
    (result, noted)
}

/// Keeps the memory of a batch that was sent, for the thread's next call.
#[inline]
pub(super) fn recycle(noted: Noted) {
    if noted.capacity() > 0 && noted.capacity() <= KEPT {
        _ = COLLECTING.try_with(|collecting| collecting.spare.set(noted));
    }
}
