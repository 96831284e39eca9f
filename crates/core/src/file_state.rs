//! What the core keeps of a file: its owner, its states, and what its client has set up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_quota::{Payer, SlowCalls};

use crate::dma::Space;
use crate::error::{Errno, Error, Result};
use crate::ids::{FileId, Owner};
use crate::irq::drain;
use crate::memory::SharedMemory;
use crate::opening::OpeningMemory;
use crate::region::RegionIndex;
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::sync::{Mutex, lock};

/// A file at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct FileStatus {
    /// Its number.
    pub id: FileId,
    /// Who holds it.
    pub owner: Owner,
    /// When it was opened, by the wall clock.
    pub since: SystemTime,
}

/// What connects a file to its client beyond descriptors, such as requests for DMA by message.
pub trait Link: Send + Sync {
    /// The file was revoked: whatever waits for the client ends now, with an error, and nothing waits
    /// for it from now on. Called before anything else is done about the revoke, without a lock of
    /// the core; must not block.
    fn end(&self);
}

/// What the core and the holder share of a file.
pub(crate) struct FileShared {
    pub(crate) id: FileId,
    pub(crate) owner: Owner,
    since: SystemTime,
    state: AtomicU8,
    /// The file may have eventfds, doorbells or mappings, which its release removes.
    set_up: AtomicBool,
    doorbells: Mutex<BTreeMap<RegionIndex, Vec<OwnedFd>>>,
    /// What the device shares in the opening that the file belongs to.
    memory: OnceLock<Arc<OpeningMemory>>,
    /// Spaces that the device was attached to before, where the file may have mappings.
    left_spaces: Mutex<Vec<Space>>,
    link: Mutex<Option<Weak<dyn Link>>>,
    payer: OnceLock<Payer>,
    /// Those of doorbells.
    drains: SlowCalls,
}

/// `open` is running for it.
const OPENING: u8 = 0;
/// In use.
const OPEN: u8 = 1;
/// Released, or about to be by whoever put it into this state.
const GONE: u8 = 2;

impl FileShared {
    pub(crate) fn new(id: FileId, owner: Owner) -> Self {
        Self::make(id, owner, SystemTime::now(), false)
    }

    /// A file that was opened at another time, perhaps in another process.
    pub(crate) fn restored(id: FileId, owner: Owner, since: SystemTime) -> Self {
        Self::make(id, owner, since, true)
    }

    fn make(id: FileId, owner: Owner, since: SystemTime, set_up: bool) -> Self {
        let (state, doorbells) = (AtomicU8::new(OPENING), Mutex::default());
        let set_up = AtomicBool::new(set_up);
        Self {
            id,
            owner,
            since,
            state,
            set_up,
            doorbells,
            memory: OnceLock::new(),
            left_spaces: Mutex::default(),
            link: Mutex::new(None),
            payer: OnceLock::new(),
            drains: SlowCalls::default(),
        }
    }

    /// Sets who pays for what the client sets up; once.
    pub(crate) fn set_payer(&self, payer: Payer) {
        _ = self.payer.set(payer);
    }

    /// Who pays for what the client sets up; `None`: nobody.
    pub(crate) fn payer(&self) -> Option<&Payer> {
        self.payer.get()
    }

    /// Sets what is to be ended when the file is revoked; once.
    pub(crate) fn set_link(&self, link: Weak<dyn Link>) {
        *lock(&self.link) = Some(link);
        // A revoke sets the state first, and then takes the lock: it has found the link, or the state
        // is visible here.
        if !self.is_open() {
            self.end_link();
        }
    }

    /// Ends what waits for the client of a file that is revoked.
    pub(crate) fn end_link(&self) {
        let link = lock(&self.link).take();
        if let Some(link) = link.as_ref().and_then(Weak::upgrade) {
            link.end();
        }
    }

    pub(crate) fn status(&self) -> FileStatus {
        FileStatus { id: self.id, owner: self.owner.clone(), since: self.since }
    }

    /// Whether it is being released, or was.
    pub(crate) fn is_gone(&self) -> bool {
        self.state.load(Ordering::SeqCst) == GONE
    }

    /// The order of this load does not matter: where it must be exact, the device lock is held.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) == OPEN
    }

    /// Sets the opening that the file belongs to, before it is used.
    pub(crate) fn enter_opening(&self, memory: Option<Arc<OpeningMemory>>) {
        if let Some(memory) = memory {
            _ = self.memory.set(memory);
        }
    }

    /// How often the memory of the opening was cleared.
    pub(crate) fn memory_clears(&self) -> u64 {
        self.memory.get().map_or(0, |memory| memory.clears())
    }

    /// The memory that a region shares.
    #[inline]
    pub(crate) fn shared_memory(&self, region: RegionIndex) -> Result<&SharedMemory> {
        let none = || Error::new(Errno::NODEV, "shared memory of a device that is not open");
        Ok(self.memory.get().ok_or_else(none)?.region(region.0)?)
    }

    /// Before the file sets up something that its release removes. Afterwards
    /// [`FileShared::is_still_open`] says whether that release has come before.
    pub(crate) fn sets_up(&self) {
        self.set_up.store(true, Ordering::SeqCst);
    }

    /// Whether the file may have something that is to be removed. Asked after it has become `GONE`:
    /// either this sees what was set up, or whoever has set it up sees that the file is not open.
    pub(crate) fn has_set_up(&self) -> bool {
        self.set_up.load(Ordering::SeqCst)
    }

    /// Whether the file is open, after it has set up something.
    pub(crate) fn is_still_open(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OPEN
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    /// `open` has succeeded; `false` if the file was revoked meanwhile.
    pub(crate) fn opened(&self) -> bool {
        self.step(OPENING, OPEN)
    }

    /// Takes the duty to release the file; `false` if another thread has it.
    pub(crate) fn take(&self) -> bool {
        self.step(OPEN, GONE)
    }

    /// Revokes the file; `true` if the caller has to release it now.
    pub(crate) fn revoke(&self) -> bool {
        // An opener that finds `GONE` releases by itself.
        !self.step(OPENING, GONE) && self.take()
    }

    /// Duplicates of the eventfds of a region's doorbells, which the first call makes.
    pub(crate) fn doorbells(&self, region: RegionIndex, count: usize) -> Result<Vec<OwnedFd>> {
        let mut made = lock(&self.doorbells);
        let fds = match made.entry(region) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let make = |_| eventfd(0, flags).map_err(|e| failed("make an eventfd", e));
                entry.insert((0..count).map(make).collect::<Result<Vec<_>>>()?)
            }
        };
        fds.iter().map(duplicate).collect()
    }

    /// Takes the counter of a doorbell's eventfd. Returns whether it was rung.
    pub(crate) fn take_ring(&self, region: RegionIndex, doorbell: usize) -> Result<bool> {
        self.pass_ring(region, doorbell, || {})
    }

    /// Takes the counter of a doorbell's eventfd, and calls `ring` if it was rung. Returns whether it was.
    ///
    /// Nobody silences the doorbells between both: a reset forgets what was rung before, and the next ring
    /// would come after it otherwise.
    pub(crate) fn pass_ring(
        &self,
        region: RegionIndex,
        doorbell: usize,
        ring: impl FnOnce(),
    ) -> Result<bool> {
        let made = lock(&self.doorbells);
        let Some(fd) = made.get(&region).and_then(|fds| fds.get(doorbell)) else {
            return Ok(false);
        };
        let rung = self.drain_doorbell(fd).map_err(|errno| failed("read an eventfd", errno))?;
        if rung {
            ring();
        }
        Ok(rung)
    }

    /// Drains the doorbells that were rung and not delivered.
    pub(crate) fn silence_doorbells(&self) {
        for fd in lock(&self.doorbells).values().flatten() {
            // It fails only if the descriptor is no eventfd.
            let _ = self.drain_doorbell(fd);
        }
    }

    /// Drains a doorbell. If that takes long, as the client has it watched very often, its user owes the
    /// time.
    fn drain_doorbell(&self, fd: &OwnedFd) -> std::result::Result<bool, Errno> {
        let (rung, took) = self.drains.time(|| drain(fd));
        if let (Some(took), Some(payer)) = (took, self.payer()) {
            payer.debt().owe(took);
        }
        rung
    }

    /// Remembers a space that the device has left, where the file may have mappings.
    pub(crate) fn has_left(&self, space: Space) {
        self.sets_up();
        let mut left = lock(&self.left_spaces);
        // Bounded, as a client may join one space after the other.
        left.retain(|known| known.has_mappings_of(self.id.into()));
        if !left.iter().any(|known| known.is(&space)) {
            left.push(space);
        }
    }

    /// The spaces that the device has left.
    pub(crate) fn left_spaces(&self) -> Vec<Space> {
        lock(&self.left_spaces).clone()
    }

    /// Removes the file's mappings from spaces that the device has left.
    pub(crate) fn drop_left_mappings(&self) {
        for space in std::mem::take(&mut *lock(&self.left_spaces)) {
            space.drop_owner(self.id.into());
        }
    }

    pub(crate) fn drop_doorbells(&self) {
        drop(std::mem::take(&mut *lock(&self.doorbells)));
    }
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|errno| failed("duplicate an eventfd", errno))
}

fn failed(what: &'static str, errno: Errno) -> Error {
    Error::new(errno, format!("could not {what}")).because(errno)
}

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    /// The table of states in the crate's documentation: from each state, each event.
    #[test]
    fn every_transition() {
        let file = || FileShared::new(FileId(0), Owner::in_process("test"));
        let reach = |file: &FileShared, state| file.state.store(state, Ordering::Relaxed);
        type Happens = fn(&FileShared) -> bool;
        // For each state before: what it returns, and the state after.
        let cases: [(Happens, [(bool, u8); 3]); 3] = [
            (FileShared::opened, [(true, OPEN), (false, OPEN), (false, GONE)]),
            (FileShared::take, [(false, OPENING), (true, GONE), (false, GONE)]),
            (FileShared::revoke, [(false, GONE), (true, GONE), (false, GONE)]),
        ];
        for (event, outcomes) in cases {
            for (before, outcome) in [OPENING, OPEN, GONE].into_iter().zip(outcomes) {
                let file = file();
                reach(&file, before);
                let result = event(&file);
                assert_eq!((result, file.state.load(Ordering::Relaxed)), outcome, "from {before}");
                assert_eq!(file.is_open(), outcome.1 == OPEN);
            }
        }
    }
}
