//! All interrupts of a device: the client's side, and saving.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vfiod_quota::Payer;

use super::eventfd::{EventFd, retire};
use super::flat::{Bits, GROUP, WORDS, bits_in};
use super::index::{Index, IrqVector};
use super::saved::{FdToken, IrqState, SavedEventFd, VectorState};
use super::uapi::{IrqAction, IrqData, IrqFlags, IrqIndex, IrqInfo};
use super::vector::{Due, Owned, VectorCounters};
use crate::error::{Errno, Error, Result};
use crate::ids::FileId;
use crate::sync::Arc;

/// All interrupts of one device.
///
/// Device code triggers through an [`IrqVector`]; the client's side sets up through
/// [`IrqSet::set`].
#[derive(Debug)]
pub struct IrqSet {
    indices: Box<[Arc<Index>]>,
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
    pub(crate) fn new(device: &str, indices: &[IrqInfo]) -> Self {
        let device: Arc<str> = device.into();
        let numbers = (0..).map(IrqIndex);
        let index =
            |(number, info): (_, &IrqInfo)| Arc::new(Index::new(device.clone(), number, *info));
        Self { indices: numbers.zip(indices).map(index).collect() }
    }

    fn index(&self, index: IrqIndex) -> Result<&Arc<Index>> {
        self.indices.get(index.0 as usize).ok_or_else(|| {
            Error::new(Errno::INVAL, format!("the device has no interrupt index {}", index.0))
        })
    }

    /// Looks a vector up, to be triggered again and again.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn vector(&self, index: IrqIndex, vector: u32) -> Result<IrqVector> {
        let found = self.index(index)?;
        if vector >= found.info.count {
            let what = format!("interrupt index {} has no vector {vector}", index.0);
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(IrqVector { index: found.clone(), at: vector })
    }

    /// The attributes of an index; `EINVAL` where there is none.
    pub fn info(&self, index: IrqIndex) -> Result<IrqInfo> {
        Ok(self.index(index)?.info)
    }

    /// Number of indices.
    pub fn indices(&self) -> u32 {
        self.indices.len() as u32
    }

    /// Triggers a vector once; see [`IrqVector::trigger`].
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn trigger(&self, index: IrqIndex, vector: u32) -> Result<bool> {
        Ok(self.vector(index, vector)?.trigger())
    }

    /// Sets the level of a line; see [`IrqVector::set_level`].
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn set_level(&self, index: IrqIndex, vector: u32, asserted: bool) -> Result<()> {
        self.vector(index, vector)?.set_level(asserted);
        Ok(())
    }

    /// Whether a client has any eventfd set up on an index.
    pub fn is_enabled(&self, index: IrqIndex) -> bool {
        self.index(index).is_ok_and(|index| index.enabled())
    }

    /// Sets the device's own mask of a vector; see [`IrqVector::set_device_mask`].
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn set_device_mask(&self, index: IrqIndex, vector: u32, masked: bool) -> Result<()> {
        self.vector(index, vector)?.set_device_mask(masked);
        Ok(())
    }

    /// Whether a trigger of a vector is pending. `false` for a vector that does not exist.
    pub fn is_pending(&self, index: IrqIndex, vector: u32) -> bool {
        self.vector(index, vector).is_ok_and(|vector| vector.is_pending())
    }

    /// What a vector has done so far.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn counters(&self, index: IrqIndex, vector: u32) -> Result<VectorCounters> {
        Ok(self.vector(index, vector)?.counters())
    }

    /// DEVICE_SET_IRQS for a file: eventfds set here are removed with the file. All or nothing.
    /// Vectors may be set up in any number of pieces, NORESIZE or not. When an eventfd is removed,
    /// this returns once no signal to it is under way.
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
        self.set_for(file, None, (index, start, count), action, data)
    }

    /// [`IrqSet::set`] of `count` vectors of an index from `start` on, for a client that pays for its
    /// eventfds. `EMFILE`: more than the payer's user may have.
    pub(crate) fn set_for(
        &self,
        file: FileId,
        payer: Option<&Payer>,
        (index, start, count): (IrqIndex, u32, u32),
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<()> {
        let number = index.0;
        let refuse =
            |what: &str| Err(Error::new(Errno::INVAL, format!("interrupt index {number}: {what}")));
        let index = self.index(index)?;
        let range = match start.checked_add(count) {
            Some(end) if end <= index.info.count && start < index.info.count => start..end,
            _ => return refuse("the range has vectors that do not exist"),
        };
        if count == 0 {
            if !matches!((action, &data), (IrqAction::Trigger, IrqData::None)) {
                return refuse("a count of 0 only disables");
            }
            let mut retired = Vec::new();
            index.disable(&mut retired);
            retire(retired);
            return Ok(());
        }
        match &data {
            IrqData::Bool(bytes) if bytes.len() != count as usize => {
                return refuse("the number of bytes differs from that of vectors");
            }
            IrqData::EventFds(fds) if !fds.is_empty() && fds.len() != count as usize => {
                return refuse("the number of descriptors differs from that of vectors");
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
                        let fd = fd.map(|fd| EventFd::new(fd, payer)).transpose()?;
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
                        index.lock(vector).unmask = fd.map(Box::new);
                    }
                }
                retire(retired);
            }
            IrqData::None => act(index, range, action, |_| true)?,
            IrqData::Bool(bytes) => {
                act(index, range, action, |vector| bytes[(vector - start) as usize] != 0)?;
            }
        }
        Ok(())
    }

    /// The unmasking eventfds that a file set up, for its connection's poller. They change
    /// with `set` of `UNMASK` with `EVENTFD`, with disabling, and with the file's end.
    pub fn unmask_fds(&self, file: FileId) -> Vec<UnmaskFd> {
        let mut found = Vec::new();
        for (index, at) in (0..).map(IrqIndex).zip(self.indices.iter()) {
            if !at.info.flags.contains(IrqFlags::MASKABLE) {
                continue;
            }
            for state in at.each() {
                if let Some(owned) = &state.unmask
                    && owned.file == file
                {
                    found.push(UnmaskFd { index, vector: state.at(), fd: owned.fd.clone() });
                }
            }
        }
        found
    }

    /// The poller found an unmasking eventfd readable: takes its counter and unmasks the
    /// vector. Returns whether it did; not if the counter was 0 or the client has set up
    /// another since. Never blocks.
    pub fn unmask_signalled(&self, fd: &UnmaskFd) -> bool {
        let Ok(vector) = self.vector(fd.index, fd.vector) else { return false };
        let mut unmasked = false;
        // The counter is taken with the vector's lock held, too: what came before a reset of the
        // set must not unmask anything after it.
        vector.index.apply(vector.at, |state| {
            let taken = fd.fd.take();
            let current = state.unmask.as_ref().is_some_and(|owned| Arc::ptr_eq(&owned.fd, &fd.fd));
            unmasked = taken && current;
            if unmasked { state.set_client_mask(false) } else { Due::Nothing }
        });
        unmasked
    }

    /// Drains the unmasking eventfds that were signalled and not handled yet.
    pub(crate) fn silence_unmasks(&self) {
        for vector in self.indices.iter().flat_map(|index| index.each()) {
            if let Some(owned) = &vector.unmask {
                owned.fd.take();
            }
        }
    }

    /// Removes every eventfd that a file set up. If none is left on an index, clients' masks and
    /// pending triggers are cleared, too.
    pub(crate) fn drop_file(&self, file: FileId) {
        let owns = |owned: &Owned| owned.file == file;
        let mut retired = Vec::new();
        for index in &self.indices {
            for mut vector in index.each() {
                if vector.unmask.as_deref().is_some_and(owns) {
                    vector.unmask = None;
                }
                let at = vector.at();
                let triggers = vector.trigger.as_ref().is_some_and(owns);
                drop(vector);
                if triggers {
                    index.arm(at, None, &mut retired);
                }
            }
            if !index.enabled() {
                index.each().for_each(|mut vector| vector.forget_client());
            }
        }
        retire(retired);
    }

    /// Clears levels, pending triggers and masks (device reset); eventfds stay.
    pub fn reset(&self) {
        for index in &self.indices {
            index.each().for_each(|mut vector| vector.reset());
        }
    }

    /// Saves levels, masks, pending triggers and eventfds. `token` names a descriptor that a file
    /// set up.
    pub fn save(&self, mut token: impl FnMut(FileId, BorrowedFd<'_>) -> FdToken) -> IrqState {
        let mut saved = |owned: &Owned| SavedEventFd {
            file: owned.file,
            fd: token(owned.file, owned.fd.as_fd()),
        };
        let mut index = |index: &Arc<Index>| {
            let mut vectors = BTreeMap::new();
            for vector in index.each() {
                let state = VectorState {
                    level: vector.level,
                    pending: vector.pending,
                    client_masked: vector.client_masked,
                    device_masked: vector.device_masked,
                    trigger: vector.trigger.as_ref().map(&mut saved),
                    unmask: vector.unmask.as_deref().map(&mut saved),
                };
                if state != VectorState::default() {
                    vectors.insert(vector.at(), state);
                }
            }
            vectors
        };
        IrqState { indices: self.indices.iter().map(&mut index).collect() }
    }

    /// The size of the flat form of the vectors, bytes. It never changes.
    pub(crate) fn flat_len(&self) -> usize {
        self.indices.iter().map(|index| index.flat_len()).sum()
    }

    /// Writes levels, pending triggers and masks of all vectors: four bits each, without a lock.
    /// `image` has [`IrqSet::flat_len`] bytes.
    pub(crate) fn save_flat(&self, mut image: &mut [u8]) {
        for index in &self.indices {
            let (own, rest) = image.split_at_mut(index.flat_len());
            index.save_flat(own);
            image = rest;
        }
    }

    /// Puts what a flat form says into a state that was saved before it: eventfds are as there, levels,
    /// pending triggers and masks as in the flat form.
    ///
    /// # Errors
    /// `EINVAL`: the flat form has another size, or bits of vectors that do not exist; or the state is
    /// of another device.
    pub(crate) fn merge_flat(&self, state: &mut IrqState, mut image: &[u8]) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(Errno::INVAL, what.to_owned()));
        if image.len() != self.flat_len() || state.indices.len() != self.indices.len() {
            return refuse("the core's image is of another device");
        }
        for (index, vectors) in self.indices.iter().zip(&mut state.indices) {
            let (own, rest) = image.split_at(index.flat_len());
            image = rest;
            for at in 0..index.flat_len() as u32 / (WORDS as u32 * 8) * GROUP {
                let bits = bits_in(own, at);
                if at >= index.info.count {
                    if bits != Bits::default() {
                        return refuse("the core's image has a vector that does not exist");
                    }
                    continue;
                }
                let vector = vectors.entry(at).or_default();
                [vector.level, vector.pending, vector.client_masked, vector.device_masked] = bits;
            }
            vectors.retain(|_, vector| *vector != VectorState::default());
        }
        Ok(())
    }

    /// Makes every vector as it was saved; those that the state does not name are as after
    /// power-on. What was pending and can be signalled is signalled. `fd` finds the descriptor
    /// that a token names.
    ///
    /// # Errors
    /// `EINVAL`: the state has other indices or vectors than the device, or a token names no
    /// eventfd; what `fd` returns. Nothing has changed then.
    pub fn restore(
        &self,
        state: &IrqState,
        mut fd: impl FnMut(FdToken) -> Result<OwnedFd>,
    ) -> Result<()> {
        let refuse = |what: String| Err(Error::new(Errno::INVAL, what));
        if state.indices.len() != self.indices.len() {
            let (saved, own) = (state.indices.len(), self.indices.len());
            return refuse(format!("the state has {saved} interrupt indices, the device {own}"));
        }
        let mut open = |saved: &Option<SavedEventFd>| {
            let Some(SavedEventFd { file, fd: token }) = *saved else { return Ok(None) };
            Ok::<_, Error>(Some(Owned { fd: Arc::new(EventFd::new(fd(token)?, None)?), file }))
        };
        let mut found = Vec::new();
        for (index, vectors) in self.indices.iter().zip(&state.indices) {
            let count = index.info.count;
            if let Some((at, _)) = vectors.last_key_value().filter(|(at, _)| **at >= count) {
                return refuse(format!("the state has vector {at} of an index with {count}"));
            }
            for (at, vector) in vectors {
                let (trigger, unmask) = (open(&vector.trigger)?, open(&vector.unmask)?);
                found.push((index, *at, vector, trigger, unmask));
            }
        }
        let mut retired = Vec::new();
        for index in &self.indices {
            index.disable(&mut retired);
            index.each().for_each(|mut vector| vector.reset());
        }
        retire(retired);
        let mut raised = Vec::with_capacity(found.len());
        for (index, at, vector, trigger, unmask) in found {
            let VectorState { level, pending, client_masked, device_masked, .. } = *vector;
            {
                let mut own = index.lock(at);
                own.set_bits([level, pending, client_masked, device_masked]);
                own.unmask = unmask.map(Box::new);
                index.set_trigger_of(&mut own, trigger);
            }
            raised.push(IrqVector { index: index.clone(), at });
        }
        // Now that all are as they were; a restore that is collected and then refused signals
        // nothing.
        raised.iter().for_each(|vector| _ = vector.change(|_, _| Due::Held));
        Ok(())
    }
}

/// An action on the chosen vectors of a range.
fn act(
    index: &Index,
    range: Range<u32>,
    action: IrqAction,
    chosen: impl Fn(u32) -> bool,
) -> Result<()> {
    if action == IrqAction::Trigger && !index.enabled() {
        return Err(Error::new(Errno::INVAL, "a trigger of interrupts that are not set up"));
    }
    for at in range.filter(|at| chosen(*at)) {
        match action {
            IrqAction::Mask => _ = index.apply(at, |vector| vector.set_client_mask(true)),
            IrqAction::Unmask => _ = index.apply(at, |vector| vector.set_client_mask(false)),
            IrqAction::Trigger => {
                let signal = index.lock(at).loopback();
                if let Some(fd) = signal {
                    index.send(at, &fd);
                }
            }
        }
    }
    Ok(())
}
