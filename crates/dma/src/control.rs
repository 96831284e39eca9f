//! What only mapping and unmapping look at: sources, the files behind them, and owners.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use vfiod_quota::{Charge, Exceeded, Payer, Resource};
use vfiod_sync::Arc;

use crate::error::{Errno, Error, Result};
use crate::files::FileKey;
use crate::peer::DmaPeer;
use crate::request::MapOwner;
use crate::table::Removed;

/// Sources of one space: files, parts of files, peers.
pub(crate) const SOURCES: usize = 4096;
/// Memory that a mapping is charged as, bytes: a full table has 32 for each, a sparse one up to four times
/// that.
const MAPPING: u64 = 128;
/// Mappings that are charged at once.
const CHARGED: u64 = 64;
/// Files that stay mapped into this process after their last DMA mapping was removed.
const IDLE: usize = 4;

/// The state of a space that its data path does not need.
#[derive(Default)]
pub(crate) struct Control {
    /// By the numbers of the map's sources.
    pub(crate) slots: Vec<Slot>,
    pub(crate) free: Vec<u32>,
    pub(crate) files: HashMap<FileKey, FileEntry>,
    /// Slots of files without DMA mappings, the longest unused first.
    pub(crate) idle: VecDeque<u32>,
    pub(crate) peers: Vec<(Arc<dyn DmaPeer>, u32)>,
    /// Owners with mappings, by the number that the table knows them by.
    owners: Vec<Option<Owner>>,
    /// Unmaps that wait.
    pub(crate) leaving: Vec<Leaving>,
    pub(crate) unmaps: u64,
}

/// What a source is, and how many mappings it has.
pub(crate) struct Slot {
    pub(crate) mappings: u64,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Free,
    /// A file, mapped from its beginning.
    File(FileKey),
    /// A part of a file, for one mapping.
    Part(FileKey),
    Peer,
}

/// A file of which something is mapped.
pub(crate) struct FileEntry {
    /// The one descriptor that is kept for this file and access mode.
    pub(crate) fd: Arc<OwnedFd>,
    /// The source to use for new mappings.
    pub(crate) current: Option<u32>,
    /// Sources of this file.
    sources: u32,
    /// What the client is charged for the descriptor.
    _charge: Option<Charge>,
}

struct Owner {
    /// `None`: the mappings stay until they are unmapped.
    who: Option<MapOwner>,
    mappings: u64,
    /// What the client is charged for the memory that its mappings take in the table.
    charge: Option<Charge>,
}

impl Owner {
    /// Charges `payer` for one mapping more.
    fn charge_next(&mut self, payer: &Payer) -> Result<(), Exceeded> {
        let bytes = charged(self.mappings + 1);
        match &mut self.charge {
            Some(charge) if charge.amount() >= bytes => Ok(()),
            Some(charge) => charge.resize(bytes),
            None => {
                self.charge = Some(payer.charge(Resource::Memory, bytes)?);
                Ok(())
            }
        }
    }

    /// Gives back what is charged for much more than there is.
    fn settle(&mut self) {
        let bytes = charged(self.mappings);
        if let Some(charge) = &mut self.charge
            && charge.amount() > bytes + CHARGED * MAPPING
        {
            // Less never fails.
            let _ = charge.resize(bytes);
        }
    }
}

/// What so many mappings are charged as, bytes.
fn charged(mappings: u64) -> u64 {
    mappings.next_multiple_of(CHARGED) * MAPPING
}

/// An unmap that waits.
pub(crate) struct Leaving {
    pub(crate) id: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Owners that ended meanwhile.
    pub(crate) ended: Vec<MapOwner>,
}

impl Control {
    /// The number of a new source of a file. A client pays for the file's descriptor.
    ///
    /// # Errors
    /// `ENOSPC`: too many sources; `EMFILE`: more descriptors than the payer's user may have.
    pub(crate) fn file_slot(
        &mut self,
        kind: Kind,
        fd: &Arc<OwnedFd>,
        payer: Option<&Payer>,
    ) -> Result<u32> {
        let new = match kind {
            Kind::File(key) | Kind::Part(key) => !self.files.contains_key(&key),
            Kind::Free | Kind::Peer => false,
        };
        let payer = payer.filter(|_| new);
        let charge = payer.map(|payer| payer.charge(Resource::Descriptors, 1)).transpose()?;
        let slot = self.slot(kind)?;
        if let Kind::File(key) | Kind::Part(key) = kind {
            let new = || FileEntry { fd: fd.clone(), current: None, sources: 0, _charge: charge };
            self.files.entry(key).or_insert_with(new).sources += 1;
        }
        Ok(slot)
    }

    /// The number of the source of a peer, and whether it is new.
    pub(crate) fn peer_slot(&mut self, peer: &Arc<dyn DmaPeer>) -> Result<(u32, bool)> {
        if let Some((_, slot)) = self.peers.iter().find(|(known, _)| Arc::ptr_eq(known, peer)) {
            return Ok((*slot, false));
        }
        let slot = self.slot(Kind::Peer)?;
        self.peers.push((peer.clone(), slot));
        Ok((slot, true))
    }

    fn slot(&mut self, kind: Kind) -> Result<u32> {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Slot { mappings: 0, kind };
            return Ok(slot);
        }
        if self.slots.len() >= SOURCES {
            return Err(Error::new(
                Errno::NOSPC,
                format!("an address space may show {SOURCES} files and peers, not more"),
            ));
        }
        self.slots.push(Slot { mappings: 0, kind });
        Ok(self.slots.len() as u32 - 1)
    }

    /// The number of an owner, for a mapping of it that is added to the table. A client pays for the
    /// memory that this takes.
    ///
    /// # Errors
    /// `ENOSPC`: too many owners; `ENOMEM`: more memory than the payer's user may have.
    pub(crate) fn owner_number(
        &mut self,
        who: Option<MapOwner>,
        payer: Option<&Payer>,
    ) -> Result<u16> {
        let known = self.find_owner(who);
        let at = known.or_else(|| self.owners.iter().position(Option::is_none));
        let at = at.unwrap_or(self.owners.len());
        let number = u16::try_from(at)
            .map_err(|_| Error::new(Errno::NOSPC, "too many owners map into one address space"))?;
        if at == self.owners.len() {
            self.owners.push(None);
        }
        let entry = &mut self.owners[at];
        let mut owner = entry.take().unwrap_or(Owner { who, mappings: 0, charge: None });
        let charged = payer.map_or(Ok(()), |payer| owner.charge_next(payer));
        if charged.is_ok() || owner.mappings > 0 {
            *entry = Some(owner);
        }
        Ok(charged.map(|()| number)?)
    }

    /// The number of an owner that has mappings.
    pub(crate) fn find_owner(&self, who: Option<MapOwner>) -> Option<usize> {
        self.owners.iter().position(|known| known.as_ref().is_some_and(|known| known.who == who))
    }

    /// Who has a number.
    pub(crate) fn owner(&self, number: u16) -> Option<MapOwner> {
        self.owners.get(number as usize)?.as_ref()?.who
    }

    /// How many owners have mappings.
    pub(crate) fn owners(&self) -> usize {
        self.owners.iter().flatten().count()
    }

    /// A mapping of a source and an owner has been added.
    pub(crate) fn count(&mut self, slot: u32, owner: u16) {
        let counted = &mut self.slots[slot as usize];
        if counted.mappings == 0 && matches!(counted.kind, Kind::File(_)) {
            self.idle.retain(|idle| *idle != slot);
        }
        counted.mappings += 1;
        if let Some(Some(owner)) = self.owners.get_mut(owner as usize) {
            owner.mappings += 1;
        }
    }

    /// Mappings have been removed. Returns the sources that nobody needs any more.
    pub(crate) fn discount(&mut self, removed: &Removed) -> Vec<u32> {
        let mut dead = Vec::new();
        for (_, mapping) in removed.iter() {
            let slot = &mut self.slots[mapping.source as usize];
            slot.mappings -= 1;
            if slot.mappings == 0 {
                self.retire(mapping.source, &mut dead);
            }
            if let Some(entry) = self.owners.get_mut(mapping.owner as usize)
                && let Some(owner) = entry
            {
                owner.mappings -= 1;
                if owner.mappings == 0 {
                    *entry = None;
                }
            }
        }
        self.owners.iter_mut().flatten().for_each(Owner::settle);
        dead
    }

    /// A source has no mappings: it is kept for a while if it is the current one of a file.
    fn retire(&mut self, slot: u32, dead: &mut Vec<u32>) {
        match self.slots[slot as usize].kind {
            Kind::File(key)
                if self.files.get(&key).is_some_and(|file| file.current == Some(slot)) =>
            {
                self.idle.push_back(slot);
                if self.idle.len() > IDLE
                    && let Some(oldest) = self.idle.pop_front()
                {
                    self.forget(oldest, dead);
                }
            }
            _ => self.forget(slot, dead),
        }
    }

    /// Gives up a source.
    pub(crate) fn forget(&mut self, slot: u32, dead: &mut Vec<u32>) {
        match std::mem::replace(&mut self.slots[slot as usize].kind, Kind::Free) {
            Kind::File(key) | Kind::Part(key) => {
                if let Some(file) = self.files.get_mut(&key) {
                    if file.current == Some(slot) {
                        file.current = None;
                    }
                    file.sources -= 1;
                    if file.sources == 0 {
                        self.files.remove(&key);
                    }
                }
            }
            Kind::Peer => self.peers.retain(|(_, at)| *at != slot),
            Kind::Free => {}
        }
        dead.push(slot);
    }

    /// Makes a source the one for new mappings of its file, and gives up the one before if it has
    /// no mappings.
    pub(crate) fn make_current(&mut self, slot: u32, dead: &mut Vec<u32>) {
        let Kind::File(key) = self.slots[slot as usize].kind else { return };
        let Some(file) = self.files.get_mut(&key) else { return };
        if let Some(old) = file.current.replace(slot)
            && self.slots[old as usize].mappings == 0
        {
            self.idle.retain(|idle| *idle != old);
            self.forget(old, dead);
        }
    }

    /// Gives up every source that has no mappings.
    pub(crate) fn forget_idle(&mut self, dead: &mut Vec<u32>) {
        for slot in std::mem::take(&mut self.idle) {
            self.forget(slot, dead);
        }
    }
}
