//! The DMA space of a device: mappings come, go, and belong to files.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::files::{Examined, FileKey, examine, extent, wanted};
use super::mapped_file::{Account, MappedFile};
use super::pin::Pins;
use super::table::{Mapping, Removed, Table};
use super::{Backing, DmaPeer, MapOwner, MapRequest, Perm};
use crate::error::{Errno, Error, Result};
use vfiod_sync::atomic::{AtomicU8, AtomicU64, Ordering};
use vfiod_sync::{Arc, Mutex, RwLock, lock, read, write};

/// Mappings of one space.
const MAPPINGS: usize = 1 << 20;
/// Mappings of one space.
const SOURCES: usize = 4096;
/// Files that stay mapped after their last mapping has gone.
const IDLE: usize = 4;
/// Address space that one space spends on mappings, at first: 4 TiB.
const ADDRESS_SPACE: u64 = 4 << 40;
/// How long the end of a file waits for accesses in flight.
const FILE_END: Duration = Duration::from_secs(1);

/// The device masters the bus.
const MASTER: u8 = 1;
/// The device's set is being reset.
const HALTED: u8 = 2;

/// What is behind mappings.
pub(super) enum Source {
    /// A mapped file.
    File(Arc<MappedFile>),
    /// Memory reached by messages.
    Peer(Arc<dyn DmaPeer>),
}

/// What the data path reads.
#[derive(Default)]
pub(super) struct Map {
    pub(super) table: Table,
    pub(super) sources: Vec<Option<Source>>,
}

/// The DMA address space of one device (VFIO's IOAS). Cheap to clone.
#[derive(Clone)]
pub struct DmaSpace {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) map: RwLock<Map>,
    pub(super) pins: Arc<Pins>,
    /// [`MASTER`], [`HALTED`].
    bus: AtomicU8,
    address_space: AtomicU64,
    account: Arc<Account>,
    control: Mutex<Control>,
}

/// What only mapping and unmapping look at.
#[derive(Default)]
struct Control {
    /// For each source, its mappings and what it is.
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The mapping to use for new mappings of a file.
    files: HashMap<FileKey, u32>,
    /// Slots of files without mappings, the longest unused first.
    idle: VecDeque<u32>,
    peers: Vec<(Arc<dyn DmaPeer>, u32)>,
    /// Files with mappings, by the number that mappings know them by.
    owners: Vec<Option<(MapOwner, u64)>>,
    /// Unmaps that wait for accesses.
    leaving: Vec<Leaving>,
    unmaps: u64,
}

struct Slot {
    mappings: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Free,
    File(FileKey),
    Part,
    Peer,
}

struct Leaving {
    id: u64,
    first: u64,
    last: u64,
    /// Owners that ended meanwhile.
    ended: Vec<MapOwner>,
}

/// One mapping, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// First IO virtual address.
    pub iova: u64,
    /// Last IO virtual address.
    pub last: u64,
    /// Allowed accesses.
    pub perm: Perm,
    /// Who mapped it.
    pub owner: MapOwner,
    /// Whether it is memory here, or reached by messages.
    pub mapped: bool,
}

/// What a space holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaUsage {
    /// Mappings.
    pub mappings: usize,
    /// Files mapped into this process, in one piece or several.
    pub mapped_files: usize,
    /// Mapped files that no DMA mapping shows now.
    pub idle: usize,
    /// Bytes of address space that they take.
    pub address_space: u64,
    /// Accesses in flight that hold no lock.
    pub pinned: usize,
}

impl Control {
    fn slot(&mut self, kind: Kind) -> Result<u32> {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Slot { mappings: 0, kind };
            return Ok(slot);
        }
        if self.slots.len() >= SOURCES {
            return Err(Error::new(
                Errno::NOSPC,
                format!("a device's clients may have {SOURCES} mappings of files, not more"),
            ));
        }
        self.slots.push(Slot { mappings: 0, kind });
        Ok(self.slots.len() as u32 - 1)
    }

    fn owner(&mut self, file: MapOwner) -> Result<u16> {
        let found = self.owners.iter().position(|o| o.is_some_and(|(owner, _)| owner == file));
        let at = found.or_else(|| self.owners.iter().position(Option::is_none));
        let at = at.unwrap_or(self.owners.len());
        let number = u16::try_from(at)
            .map_err(|_| Error::new(Errno::NOSPC, "too many files map into one device"))?;
        if at == self.owners.len() {
            self.owners.push(None);
        }
        if self.owners[at].is_none() {
            self.owners[at] = Some((file, 0));
        }
        Ok(number)
    }

    /// A mapping of a slot and an owner has been added.
    fn count(&mut self, slot: u32, owner: u16) {
        let counted = &mut self.slots[slot as usize];
        if counted.mappings == 0 && matches!(counted.kind, Kind::File(_)) {
            self.idle.retain(|idle| *idle != slot);
        }
        counted.mappings += 1;
        if let Some(Some((_, mappings))) = self.owners.get_mut(owner as usize) {
            *mappings += 1;
        }
    }

    /// Mappings have been removed. Returns the slots whose sources nobody needs any more.
    fn discount(&mut self, removed: &Removed) -> Vec<u32> {
        let mut dead = Vec::new();
        for (_, mapping) in removed.iter() {
            let slot = &mut self.slots[mapping.source as usize];
            slot.mappings -= 1;
            if slot.mappings == 0 {
                self.retire(mapping.source, &mut dead);
            }
            if let Some(owner) = self.owners.get_mut(mapping.owner as usize)
                && let Some((_, mappings)) = owner
            {
                *mappings -= 1;
                if *mappings == 0 {
                    *owner = None;
                }
            }
        }
        dead
    }

    /// A source without mappings: kept for a while if it is a file's current mapping.
    fn retire(&mut self, slot: u32, dead: &mut Vec<u32>) {
        match self.slots[slot as usize].kind {
            Kind::File(key) if self.files.get(&key) == Some(&slot) => {
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

    fn forget(&mut self, slot: u32, dead: &mut Vec<u32>) {
        match std::mem::replace(&mut self.slots[slot as usize].kind, Kind::Free) {
            Kind::File(key) => {
                if self.files.get(&key) == Some(&slot) {
                    self.files.remove(&key);
                }
            }
            Kind::Peer => self.peers.retain(|(_, at)| *at != slot),
            Kind::Part | Kind::Free => {}
        }
        dead.push(slot);
    }

    /// Gives up every mapping that has no mapping.
    fn forget_idle(&mut self, dead: &mut Vec<u32>) {
        for slot in std::mem::take(&mut self.idle) {
            self.forget(slot, dead);
        }
    }
}

impl Inner {
    /// Takes sources out of the table, to be dropped by the caller once no lock is held.
    #[must_use]
    fn reap(&self, control: &mut Control, dead: &[u32]) -> Vec<Option<Source>> {
        if dead.is_empty() {
            return Vec::new();
        }
        let mut map = write(&self.map);
        let sources = dead.iter().map(|slot| map.sources[*slot as usize].take()).collect();
        drop(map);
        control.free.extend(dead);
        sources
    }

    /// The source of a mapping of a file; mapped now if need be.
    fn file_source(
        &self,
        control: &mut Control,
        fd: BorrowedFd<'_>,
        file: &Examined,
        offset: u64,
        end: u64,
    ) -> Result<(u32, u64, Option<Source>)> {
        let known = control.files.get(&file.key).copied();
        let mut mapped = 0;
        if let Some(slot) = known {
            if let Some(Some(Source::File(mapping))) = read(&self.map).sources.get(slot as usize) {
                mapped = mapping.len();
            }
            if mapped >= wanted(file, end) {
                return Ok((slot, offset, None));
            }
        }
        let extent = extent(fd, file, offset, end, mapped)?;
        if let Some(slot) = known
            && extent.whole
            && extent.len <= mapped
        {
            return Ok((slot, offset, None));
        }
        let limit = self.address_space.load(Ordering::Relaxed);
        let mapping = MappedFile::new(
            fd,
            extent.offset,
            extent.len,
            file.key.writable,
            &self.account,
            limit,
        )?;
        let kind = if extent.whole { Kind::File(file.key) } else { Kind::Part };
        let slot = control.slot(kind)?;
        Ok((slot, offset - extent.offset, Some(Source::File(Arc::new(mapping)))))
    }
}

impl DmaSpace {
    /// A space without mappings, whose device may master the bus.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                map: RwLock::new(Map::default()),
                pins: Arc::new(Pins::default()),
                bus: AtomicU8::new(MASTER),
                address_space: AtomicU64::new(ADDRESS_SPACE),
                account: Arc::new(Account::default()),
                control: Mutex::new(Control::default()),
            }),
        }
    }

    /// Lets the device master the bus, or not (PCI command register bit 2). On at first; PCI
    /// functions turn it off at reset.
    pub fn set_bus_master(&self, on: bool) {
        self.switch(MASTER, on);
    }

    /// Whether the device may access memory now.
    #[inline]
    pub fn bus_master(&self) -> bool {
        self.inner.bus.load(Ordering::Acquire) == MASTER
    }

    /// Keeps the device from beginning an access to memory, whether it masters the bus or not:
    /// for the time in which its set is being reset. What has begun goes on.
    pub fn halt(&self, halted: bool) {
        self.switch(HALTED, halted);
    }

    fn switch(&self, bit: u8, on: bool) {
        if on {
            self.inner.bus.fetch_or(bit, Ordering::Release);
        } else {
            self.inner.bus.fetch_and(!bit, Ordering::Release);
        }
    }

    /// Bytes of address space that mappings of clients' files may take in all; 4 TiB at first.
    pub fn set_address_space(&self, bytes: u64) {
        self.inner.address_space.store(bytes, Ordering::Relaxed);
    }

    /// Adds a mapping for a file. The size, the address and the offset need no alignment.
    ///
    /// A file is mapped once, whole, however many mappings show it; so a mapping of a known file
    /// costs no `mmap`. The mapping may reach past the file's end; accesses there fail with
    /// `EFAULT` until the file has grown. A file longer than 1 TiB is mapped mapping by mapping.
    ///
    /// # Errors
    /// `EEXIST`: it overlaps a mapping; `EINVAL`: no size or no permission, or past 2^64 (the
    /// offset: 2^63); `ENOSPC`: 1,048,576 mappings, or 4,096 mappings; `ENOMEM`: too much
    /// address space; `ENODEV`: no regular file; `EACCES`: not open for reading, or on FUSE;
    /// what `mmap` says.
    pub fn map(&self, owner: MapOwner, request: MapRequest) -> Result<()> {
        let MapRequest { iova, size, perm, backing } = request;
        let invalid = |what| Err(Error::new(Errno::INVAL, what));
        if size == 0 {
            return invalid(format!("a DMA mapping of no size at {iova:#x}"));
        }
        let Some(last) = iova.checked_add(size - 1) else {
            return invalid(format!("a DMA mapping of {size:#x} bytes at {iova:#x}: past 2^64"));
        };
        if perm.is_empty() {
            return invalid(format!("a DMA mapping at {iova:#x} that allows nothing"));
        }
        let examined = match &backing {
            Backing::File { fd, offset } => {
                let end = offset.checked_add(size).filter(|end| *end <= i64::MAX as u64);
                let Some(end) = end else {
                    return invalid(format!("a DMA mapping at {iova:#x}: offset past 2^63"));
                };
                Some((fd.as_fd(), *offset, end, examine(fd.as_fd())?))
            }
            Backing::Peer(_) => None,
        };

        // Dropped after the locks: `munmap` takes its time.
        let mut garbage = Vec::new();
        let mut control = lock(&self.inner.control);
        let taken = || {
            Err(Error::new(
                Errno::EXIST,
                format!("a DMA mapping at {iova:#x}-{last:#x} overlaps one that exists"),
            ))
        };
        if control.leaving.iter().any(|l| l.first <= last && l.last >= iova) {
            return taken();
        }
        {
            let map = read(&self.inner.map);
            if map.table.touching(iova, last).is_some() {
                return taken();
            }
            if map.table.len() >= MAPPINGS {
                return Err(Error::new(
                    Errno::NOSPC,
                    format!("a device may have {MAPPINGS} DMA mappings, not more"),
                ));
            }
        }
        let (slot, offset, new) = match (examined, &backing) {
            (Some((fd, offset, end, file)), _) => {
                self.inner.file_source(&mut control, fd, &file, offset, end)?
            }
            (None, Backing::Peer(peer)) => {
                match control.peers.iter().find(|(known, _)| Arc::ptr_eq(known, peer)) {
                    Some((_, slot)) => (*slot, 0, None),
                    None => {
                        let slot = control.slot(Kind::Peer)?;
                        control.peers.push((peer.clone(), slot));
                        (slot, 0, Some(Source::Peer(peer.clone())))
                    }
                }
            }
            (None, Backing::File { .. }) => return invalid("no file".to_owned()),
        };
        let owner = match control.owner(owner) {
            Ok(owner) => owner,
            Err(error) => {
                if new.is_some() {
                    let mut dead = Vec::new();
                    control.forget(slot, &mut dead);
                    control.free.extend(dead);
                }
                return Err(error);
            }
        };
        // A mapping that has grown takes the place of the one before.
        let mut dead = Vec::new();
        if new.is_some()
            && let Kind::File(key) = control.slots[slot as usize].kind
            && let Some(old) = control.files.insert(key, slot)
            && control.slots[old as usize].mappings == 0
        {
            control.idle.retain(|idle| *idle != old);
            control.forget(old, &mut dead);
        }
        {
            let mut map = write(&self.inner.map);
            if let Some(source) = new {
                let at = slot as usize;
                if map.sources.len() <= at {
                    map.sources.resize_with(at + 1, || None);
                }
                map.sources[at] = Some(source);
            }
            let mapping = Mapping::new(last, offset, slot, owner, perm);
            let fits = map.table.insert(iova, mapping);
            // Only this lock's holder adds mappings, and there was room.
            debug_assert!(fits);
        }
        control.count(slot, owner);
        garbage.extend(self.inner.reap(&mut control, &dead));
        Ok(())
    }

    /// Removes every mapping inside `[iova, iova + size)`; size may reach 2^64 exactly.
    /// Returns how many bytes were mapped there (`u64::MAX` for all 2^64). Returns only when
    /// no access to them is in flight. Messages to a peer do not count: the peer sees to them
    /// itself.
    ///
    /// The file behind the last of its mappings stays mapped while no more than three others
    /// became idle after it, until [`DmaSpace::unmap_all`] or the end of the file that mapped it.
    ///
    /// # Errors
    /// `EINVAL`: a mapping would be cut in two, size 0 or past 2^64; `EBUSY`: accesses were
    /// still in flight after `wait`, and nothing was removed.
    pub fn unmap(&self, iova: u64, size: u64, wait: Duration) -> Result<u64> {
        let last = match size {
            0 => None,
            _ => iova.checked_add(size - 1),
        };
        let Some(last) = last else {
            return Err(Error::new(
                Errno::INVAL,
                format!("DMA unmap of {size:#x} bytes at {iova:#x}: empty, or past 2^64"),
            ));
        };
        self.remove(iova, last, wait, false)
    }

    /// Removes every mapping; otherwise as [`DmaSpace::unmap`]. No file stays mapped.
    pub fn unmap_all(&self, wait: Duration) -> Result<u64> {
        self.remove(0, u64::MAX, wait, true)
    }

    fn remove(&self, first: u64, last: u64, wait: Duration, all: bool) -> Result<u64> {
        let mut garbage = Vec::new();
        let removed;
        let mut control = lock(&self.inner.control);
        {
            let mut map = write(&self.inner.map);
            removed = if all {
                map.table.take()
            } else {
                map.table.remove(first, last).map_err(|cut| {
                    Error::new(
                        Errno::INVAL,
                        format!(
                            "DMA unmap of {first:#x}-{last:#x} would cut the mapping {:#x}-{:#x}",
                            cut.first, cut.last
                        ),
                    )
                })?
            };
        }
        // From here on no access begins. Those that copied under the table lock have ended.
        let hits = |a: u64, b: u64| a <= last && b >= first;
        if !self.inner.pins.wait(hits, Duration::ZERO) {
            let id = control.unmaps;
            control.unmaps += 1;
            control.leaving.push(Leaving { id, first, last, ended: Vec::new() });
            drop(control);
            let clear = self.inner.pins.wait(hits, wait);
            control = lock(&self.inner.control);
            let at = control.leaving.iter().position(|leaving| leaving.id == id);
            let leaving = at.map(|at| control.leaving.swap_remove(at));
            if !clear {
                write(&self.inner.map).table.restore(&removed);
                for owner in leaving.into_iter().flat_map(|leaving| leaving.ended) {
                    let gone = self.take_owned(&mut control, owner);
                    let dead = control.discount(&gone);
                    garbage.extend(self.inner.reap(&mut control, &dead));
                }
                return Err(Error::new(
                    Errno::BUSY,
                    format!("memory at {first:#x}-{last:#x} is in use and stays mapped"),
                ));
            }
        }
        let mut dead = control.discount(&removed);
        if all {
            control.forget_idle(&mut dead);
        }
        garbage.extend(self.inner.reap(&mut control, &dead));
        drop(control);
        Ok(removed.iter().fold(0u64, |sum, (first, mapping)| {
            sum.saturating_add(mapping.last - first).saturating_add(1)
        }))
    }

    /// Takes out a file's mappings, in turns, so that no access waits long.
    fn take_owned(&self, control: &mut Control, owner: MapOwner) -> Removed {
        let owner = control.owners.iter().position(|o| o.is_some_and(|(of, _)| of == owner));
        let Some(owner) = owner else { return Removed::default() };
        let mut map = write(&self.inner.map);
        if control.owners.iter().flatten().count() == 1 {
            return map.table.take();
        }
        let (mut gone, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            from = map.table.take_owned(owner as u16, at, &mut gone);
            drop(map);
            map = write(&self.inner.map);
        }
        gone.into()
    }

    /// Removes every mapping of an owner, and waits a second at most for accesses in
    /// flight: their memory is kept until they end.
    pub fn drop_owner(&self, owner: MapOwner) {
        let mut garbage = Vec::new();
        let mut control = lock(&self.inner.control);
        let removed = self.take_owned(&mut control, owner);
        control.leaving.iter_mut().for_each(|leaving| leaving.ended.push(owner));
        let mut dead = control.discount(&removed);
        control.forget_idle(&mut dead);
        garbage.extend(self.inner.reap(&mut control, &dead));
        drop(control);
        if removed.is_empty() {
            return;
        }
        let mut ranges: Vec<(u64, u64)> = removed.iter().map(|(f, w)| (f, w.last)).collect();
        ranges.sort_unstable();
        let hits = |first: u64, last: u64| {
            let after = ranges.partition_point(|(f, _)| *f <= last);
            after > 0 && ranges[after - 1].1 >= first
        };
        if !self.inner.pins.wait(hits, FILE_END) {
            tracing::warn!(%owner, "a device still accesses memory whose owner has ended");
        }
    }

    /// Number of mappings.
    pub fn len(&self) -> usize {
        read(&self.inner.map).table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mappings, ascending. Mappers wait meanwhile.
    pub fn mappings(&self) -> Vec<MappingInfo> {
        let control = lock(&self.inner.control);
        let map = read(&self.inner.map);
        let owner = |n: u16| control.owners.get(n as usize).copied().flatten();
        map.table
            .iter()
            .map(|(iova, mapping)| MappingInfo {
                iova,
                last: mapping.last,
                perm: mapping.perm(),
                owner: owner(mapping.owner).map_or(MapOwner(u64::MAX), |(owner, _)| owner),
                mapped: matches!(map.sources[mapping.source as usize], Some(Source::File(_))),
            })
            .collect()
    }

    /// What the space holds.
    pub fn usage(&self) -> DmaUsage {
        let control = lock(&self.inner.control);
        let map = read(&self.inner.map);
        DmaUsage {
            mappings: map.table.len(),
            mapped_files: map.sources.iter().filter(|s| matches!(s, Some(Source::File(_)))).count(),
            idle: control.idle.len(),
            address_space: self.inner.account.bytes(),
            pinned: self.inner.pins.len(),
        }
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.usage().fmt(f)
    }
}
