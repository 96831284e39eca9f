//! Interrupts: indices, vectors, masks and the eventfds behind them
//! (VFIO uAPI `struct vfio_irq_info`, `struct vfio_irq_set`).
//!
//! # What it does not implement
//! A masking eventfd (`MASK` with `EVENTFD`): the kernel has none either.

mod eventfd;
mod vector;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use self::eventfd::{EventFd, retire};
use self::vector::{Owned, Signal, Vector};
use crate::error::{Errno, Error, Result};
use crate::ids::FileId;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, lock, point};

pub use self::vector::VectorCounters;

/// The number of an interrupt kind in its device (`VFIO_PCI_INTX_IRQ_INDEX` and so on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IrqIndex(pub u32);

bitflags::bitflags! {
    /// Attributes of an interrupt index (`VFIO_IRQ_INFO_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// Can be signalled by eventfd.
        const EVENTFD = 1;
        /// Can be masked and unmasked.
        const MASKABLE = 2;
        /// Masks itself when triggered.
        const AUTOMASKED = 4;
        /// Vectors are set up as one set.
        const NORESIZE = 8;
    }
}

/// One interrupt index as a device describes it. Count 0 stands for "not there".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Attributes.
    pub flags: IrqFlags,
    /// Number of vectors.
    pub count: u32,
}

/// What a SET_IRQS asks for (`VFIO_IRQ_SET_ACTION_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold back triggers.
    Mask,
    /// Let triggers through again; a level still asserted triggers at once.
    Unmask,
    /// Signal, or set up what is signalled.
    Trigger,
}

/// The data that comes with an action (`VFIO_IRQ_SET_DATA_*`).
#[derive(Debug)]
pub enum IrqData<'a> {
    /// Act on every vector of the range. With count 0 and `Trigger`: disable the index.
    None,
    /// Act on the vectors whose byte is not 0.
    Bool(&'a [u8]),
    /// Set these eventfds; `None` in a place, or an empty list, takes them away.
    EventFds(Vec<Option<OwnedFd>>),
}

/// All interrupts of one device.
///
/// Device code triggers from any thread; the client's side sets up through [`IrqSet::set`].
/// Each vector has a lock of its own, held for a few instructions and never while an eventfd
/// is signalled.
#[derive(Debug)]
pub struct IrqSet {
    indices: Box<[Index]>,
}

#[derive(Debug)]
struct Index {
    info: IrqInfo,
    vectors: Box<[Mutex<Vector>]>,
    /// Vectors with an eventfd.
    armed: AtomicU32,
}

impl Index {
    fn automasked(&self) -> bool {
        self.info.flags.contains(IrqFlags::AUTOMASKED)
    }

    fn enabled(&self) -> bool {
        self.armed.load(Ordering::Acquire) > 0
    }

    /// Runs `f` on a vector and sends what it asks for; whether there was something to send.
    fn apply(&self, vector: &Mutex<Vector>, f: impl FnOnce(&mut Vector) -> Signal) -> bool {
        let signal = f(&mut lock(vector));
        let fires = signal.is_some();
        if let Some(fd) = signal {
            point();
            fd.signal();
        }
        fires
    }

    /// Changes a vector's eventfd; the old one goes to `retired`.
    fn arm(&self, vector: &Mutex<Vector>, new: Option<Owned>, retired: &mut Vec<Arc<EventFd>>) {
        self.apply(vector, |v| {
            let arms = new.is_some();
            let (old, signal) = v.set_trigger(new, self.automasked());
            match (old.is_some(), arms) {
                (false, true) => _ = self.armed.fetch_add(1, Ordering::AcqRel),
                (true, false) => _ = self.armed.fetch_sub(1, Ordering::AcqRel),
                _ => {}
            }
            retired.extend(old);
            signal
        });
    }

    fn disable(&self, retired: &mut Vec<Arc<EventFd>>) {
        for vector in &self.vectors {
            let mut vector = lock(vector);
            if let Some(old) = vector.disable() {
                self.armed.fetch_sub(1, Ordering::AcqRel);
                retired.push(old);
            }
        }
    }
}

/// An eventfd by which a client unmasks a vector (`UNMASK` with `EVENTFD`; the kernel's
/// *virqfd*). Whoever polls it for reading calls [`IrqSet::unmask_signalled`] when it is ready.
#[derive(Clone, Debug)]
pub struct UnmaskFd {
    index: IrqIndex,
    vector: u32,
    fd: Arc<EventFd>,
}

impl UnmaskFd {
    /// The index that it unmasks a vector of.
    pub fn index(&self) -> IrqIndex {
        self.index
    }

    /// The vector that it unmasks.
    pub fn vector(&self) -> u32 {
        self.vector
    }
}

impl AsFd for UnmaskFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl IrqSet {
    pub(crate) fn new(indices: &[IrqInfo]) -> Self {
        let index = |info: &IrqInfo| Index {
            info: *info,
            vectors: (0..info.count).map(|_| Mutex::new(Vector::default())).collect(),
            armed: AtomicU32::new(0),
        };
        Self { indices: indices.iter().map(index).collect() }
    }

    fn index(&self, index: IrqIndex) -> Result<&Index> {
        self.indices.get(index.0 as usize).ok_or_else(|| {
            Error::new(Errno::INVAL, format!("the device has no interrupt index {}", index.0))
        })
    }

    fn vector(&self, index: IrqIndex, vector: u32) -> Result<(&Index, &Mutex<Vector>)> {
        let at = self.index(index)?;
        let vector = at.vectors.get(vector as usize).ok_or_else(|| {
            Error::new(Errno::INVAL, format!("interrupt index {} has no vector {vector}", index.0))
        })?;
        Ok((at, vector))
    }

    /// The attributes of an index; `EINVAL` where there is none.
    pub fn info(&self, index: IrqIndex) -> Result<IrqInfo> {
        Ok(self.index(index)?.info)
    }

    /// Number of indices.
    pub fn indices(&self) -> u32 {
        self.indices.len() as u32
    }

    /// Triggers a vector once (edge). Masked, or without an eventfd while others of its index
    /// have one: it stays pending and is signalled when it can be. Where the client has not
    /// enabled the index it is lost. Returns whether an eventfd was signalled. Never blocks;
    /// one system call.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn trigger(&self, index: IrqIndex, vector: u32) -> Result<bool> {
        let (index, vector) = self.vector(index, vector)?;
        Ok(index.apply(vector, |v| v.edge(index.automasked(), index.enabled())))
    }

    /// Sets the level of a line (INTx). Asserted and not masked, it signals, and masks itself
    /// where the index is AUTOMASKED; still asserted at unmask, or when an eventfd is set up,
    /// it signals again.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn set_level(&self, index: IrqIndex, vector: u32, asserted: bool) -> Result<()> {
        let (index, vector) = self.vector(index, vector)?;
        index.apply(vector, |v| v.set_level(asserted, index.automasked()));
        Ok(())
    }

    /// Whether a client has any eventfd set up on an index.
    pub fn is_enabled(&self, index: IrqIndex) -> bool {
        self.index(index).is_ok_and(Index::enabled)
    }

    /// Whether a client has an eventfd set up on a vector.
    pub fn has_eventfd(&self, index: IrqIndex, vector: u32) -> bool {
        self.vector(index, vector).is_ok_and(|(_, v)| lock(v).trigger.is_some())
    }

    /// The device's own mask of a vector (MSI-X table, MSI mask bits, PCI command register),
    /// apart from the client's.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn set_device_mask(&self, index: IrqIndex, vector: u32, masked: bool) -> Result<()> {
        let (index, vector) = self.vector(index, vector)?;
        index.apply(vector, |v| v.set_device_mask(masked, index.automasked()));
        Ok(())
    }

    /// Whether a trigger is being held back.
    pub fn is_pending(&self, index: IrqIndex, vector: u32) -> bool {
        self.vector(index, vector).is_ok_and(|(_, v)| lock(v).held())
    }

    /// What a vector has done so far.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn counters(&self, index: IrqIndex, vector: u32) -> Result<VectorCounters> {
        Ok(lock(self.vector(index, vector)?.1).counters)
    }

    /// DEVICE_SET_IRQS for a file: eventfds set here go away with the file. All or nothing.
    /// Vectors may be set up in as many pieces as the client likes, NORESIZE or not. When an
    /// eventfd is taken away this returns once no signal to it is under way.
    ///
    /// # Errors
    /// `EINVAL`: no such index, range or combination of action and data, a count of 0 for
    /// anything but disabling, data that does not fit the count, masking where the index is
    /// not MASKABLE, a trigger where nothing is set up, or a descriptor that is not an
    /// eventfd.
    pub fn set(
        &self,
        file: FileId,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<()> {
        let number = index.0;
        let refuse =
            |what: &str| Err(Error::new(Errno::INVAL, format!("interrupt index {number}: {what}")));
        let index = self.index(index)?;
        let range = match start.checked_add(count) {
            Some(end) if end <= index.info.count && start < index.info.count => {
                &index.vectors[start as usize..end as usize]
            }
            _ => return refuse("vectors that it does not have"),
        };
        if count == 0 {
            if !matches!((action, &data), (IrqAction::Trigger, IrqData::None)) {
                return refuse("a count of 0 does not go with this");
            }
            let mut retired = Vec::new();
            index.disable(&mut retired);
            retire(retired);
            return Ok(());
        }
        match &data {
            IrqData::Bool(bytes) if bytes.len() != range.len() => {
                return refuse("not as many bytes as vectors");
            }
            IrqData::EventFds(fds) if !fds.is_empty() && fds.len() != range.len() => {
                return refuse("not as many descriptors as vectors");
            }
            IrqData::EventFds(_) if !index.info.flags.contains(IrqFlags::EVENTFD) => {
                return refuse("cannot be signalled by eventfd");
            }
            _ => {}
        }
        match action {
            IrqAction::Trigger => {}
            _ if !index.info.flags.contains(IrqFlags::MASKABLE) => {
                return refuse("cannot be masked");
            }
            IrqAction::Mask if matches!(data, IrqData::EventFds(_)) => {
                return refuse("cannot be masked by eventfd");
            }
            _ => {}
        }
        match data {
            IrqData::EventFds(fds) => {
                let mut fds = fds
                    .into_iter()
                    .map(|fd| {
                        let fd = fd.map(EventFd::new).transpose()?;
                        Ok(fd.map(|fd| Owned { fd: Arc::new(fd), file }))
                    })
                    .collect::<Result<Vec<_>>>()?
                    .into_iter();
                let mut retired = Vec::new();
                for vector in range {
                    let fd = fds.next().flatten();
                    if action == IrqAction::Trigger {
                        index.arm(vector, fd, &mut retired);
                    } else {
                        lock(vector).unmask = fd.map(Box::new);
                    }
                }
                retire(retired);
            }
            IrqData::None => self.act(index, range, action, |_| true)?,
            IrqData::Bool(bytes) => self.act(index, range, action, |i| bytes[i] != 0)?,
        }
        Ok(())
    }

    /// An action on the chosen vectors of a range.
    fn act(
        &self,
        index: &Index,
        range: &[Mutex<Vector>],
        action: IrqAction,
        chosen: impl Fn(usize) -> bool,
    ) -> Result<()> {
        if action == IrqAction::Trigger && !index.enabled() {
            return Err(Error::new(Errno::INVAL, "a trigger of interrupts that are not set up"));
        }
        let automasked = index.automasked();
        for (_, vector) in range.iter().enumerate().filter(|(i, _)| chosen(*i)) {
            index.apply(vector, |v| match action {
                IrqAction::Mask => v.set_client_mask(true, automasked),
                IrqAction::Unmask => v.set_client_mask(false, automasked),
                IrqAction::Trigger => v.loopback(),
            });
        }
        Ok(())
    }

    /// The unmasking eventfds that a file set up, for its connection's poller. They change
    /// with `set` of `UNMASK` with `EVENTFD`, with disabling, and with the file's end.
    pub fn unmask_fds(&self, file: FileId) -> Vec<UnmaskFd> {
        let mut found = Vec::new();
        for (index, at) in (0..).map(IrqIndex).zip(&self.indices) {
            if !at.info.flags.contains(IrqFlags::MASKABLE) {
                continue;
            }
            for (vector, state) in (0..).zip(&at.vectors) {
                if let Some(owned) = &lock(state).unmask
                    && owned.file == file
                {
                    found.push(UnmaskFd { index, vector, fd: owned.fd.clone() });
                }
            }
        }
        found
    }

    /// The poller found an unmasking eventfd readable: takes its counter and unmasks the
    /// vector. Returns whether it did; not if the counter was 0 or the client has set up
    /// another since. Never blocks.
    pub fn unmask_signalled(&self, fd: &UnmaskFd) -> bool {
        let Ok((index, vector)) = self.vector(fd.index, fd.vector) else { return false };
        let mut unmasked = false;
        // The counter under the vector's lock, too: what came before a reset of the set shall not
        // unmask anything after it.
        index.apply(vector, |v| {
            let taken = fd.fd.take();
            let current = v.unmask.as_ref().is_some_and(|owned| Arc::ptr_eq(&owned.fd, &fd.fd));
            unmasked = taken && current;
            if unmasked { v.set_client_mask(false, index.automasked()) } else { None }
        });
        unmasked
    }

    /// Forgets the unmasking eventfds that were signalled and not heard yet.
    pub(crate) fn silence_unmasks(&self) {
        for vector in self.indices.iter().flat_map(|index| &index.vectors) {
            if let Some(owned) = &lock(vector).unmask {
                owned.fd.take();
            }
        }
    }

    /// Takes away every eventfd that a file set up. Where none is left on an index, the
    /// clients' masks and pending triggers go too.
    pub(crate) fn drop_file(&self, file: FileId) {
        let mut retired = Vec::new();
        for index in &self.indices {
            for vector in &index.vectors {
                let mut vector = lock(vector);
                if vector.unmask.as_ref().is_some_and(|owned| owned.file == file) {
                    vector.unmask = None;
                }
                if vector.trigger.as_ref().is_some_and(|owned| owned.file == file)
                    && let (Some(old), _) = vector.set_trigger(None, false)
                {
                    index.armed.fetch_sub(1, Ordering::AcqRel);
                    retired.push(old);
                }
            }
            if !index.enabled() {
                index.vectors.iter().for_each(|vector| lock(vector).forget_client());
            }
        }
        retire(retired);
    }

    /// Forgets levels, pending triggers and masks (device reset); eventfds stay.
    pub fn reset(&self) {
        for index in &self.indices {
            index.vectors.iter().for_each(|vector| lock(vector).reset());
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
