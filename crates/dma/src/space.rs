//! Address spaces: mappings are made, listed, copied, and end with their owner.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use vfiod_buffer::push;
use vfiod_quota::Payer;
use vfiod_sync::atomic::{AtomicU64, Ordering};
use vfiod_sync::{Arc, Mutex, lock};

use crate::control::{Control, Kind};
use crate::dirty::{DirtyLog, Marks};
use crate::error::{Errno, Error, Result};
use crate::files::{AcceptedFiles, Examined, examine, extent, wanted};
use crate::listener::Listeners;
use crate::map::{FileSource, Map, Source};
use crate::mapped_file::{Account, Costs, MappedFile};
use crate::peer::DmaPeer;
use crate::ranges::Ranges;
use crate::request::{Backing, MapOwner, MapRequest, Perm};
use crate::shared::Shared;
use crate::sparse::Holes;
use crate::table::{Mapping, Removed, Table};

/// Mappings of one space.
const MAPPINGS: usize = 1 << 20;
/// Bytes of the process's address space that one space spends on mapped files, at first: 4 TiB.
const ADDRESS_SPACE: u64 = 4 << 40;
/// How long the end of an owner waits for accesses in flight.
const OWNER_END: Duration = Duration::from_secs(1);

/// An address space: DMA mappings that the devices attached to it share (the kernel's IOAS).
/// Cheap to clone; all clones are one space.
///
/// A mapping made for an owner ends with that owner ([`Space::drop_owner`]); one without stays
/// until it is unmapped.
///
/// # Locks
/// The *control* lock is held while mappings come and go, also during `mmap`. The locks of the
/// attachments are taken for the few instructions that change the map. Neither is held while
/// an unmap waits. Order: control, attachments, ranges in use, dirty log.
#[derive(Clone)]
pub struct Space {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) map: Arc<Shared<Map>>,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) dirty: Arc<DirtyLog>,
    pub(crate) listeners: Listeners,
    address_space: AtomicU64,
    account: Arc<Account>,
    accepted: AcceptedFiles,
    pub(crate) control: Mutex<Control>,
}

/// One mapping of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// First IO virtual address.
    pub iova: u64,
    /// Last IO virtual address.
    pub last: u64,
    /// Allowed accesses.
    pub perm: Perm,
    /// Who mapped it; `None`: it stays until it is unmapped.
    pub owner: Option<MapOwner>,
    /// The descriptor behind it, by its place in [`Snapshot::descriptors`], and the offset of the
    /// first byte in bytes; `None`: it is reached by message.
    pub file: Option<(usize, u64)>,
}

impl MappingInfo {
    /// Whether its memory is mapped into this process; if not, it is reached by message.
    pub fn is_mapped(&self) -> bool {
        self.file.is_some()
    }
}

/// All mappings of a space, and the descriptors behind them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// One for each file and access mode.
    pub descriptors: Vec<Arc<OwnedFd>>,
    /// Ascending by address.
    pub mappings: Vec<MappingInfo>,
}

/// A mapping of a [`Summary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingSummary {
    /// First IO virtual address.
    pub iova: u64,
    /// Last IO virtual address.
    pub last: u64,
    /// Allowed accesses.
    pub perm: Perm,
    /// Who mapped it; `None`: it stays until it is unmapped.
    pub owner: Option<MapOwner>,
    /// Whether its memory is mapped into this process; if not, it is reached by message.
    pub is_mapped: bool,
}

/// The mappings of a space, of which there may be very many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many there are.
    pub mappings: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The first of them, by address.
    pub first: Vec<MappingSummary>,
}

/// What a space holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Mappings.
    pub mappings: usize,
    /// Files mapped into this process, in one piece or several.
    pub mapped_files: usize,
    /// Mapped files that no DMA mapping shows now.
    pub idle: usize,
    /// Bytes of this process's address space that they take.
    pub address_space: u64,
    /// Ranges in use by accesses that hold no lock.
    pub in_use: usize,
}

/// What is behind a mapping, with a descriptor that may be known already.
enum Behind {
    File(BehindFile),
    Peer(Arc<dyn DmaPeer>),
}

struct BehindFile {
    fd: Arc<OwnedFd>,
    /// Where the mapping begins and ends in the file.
    offset: u64,
    end: u64,
    file: Examined,
}

impl Inner {
    /// Takes sources out of the map, to be dropped by the caller once no lock is held: `munmap`
    /// and `close` take their time.
    #[must_use]
    pub(crate) fn reap(&self, control: &mut Control, dead: &[u32]) -> Vec<Option<Source>> {
        if dead.is_empty() {
            return Vec::new();
        }
        let take = |map: &mut Map| dead.iter().map(|at| map.sources[*at as usize].take()).collect();
        let sources = self.map.change(take);
        control.free.extend(dead);
        sources
    }

    /// The source of a mapping of a file, which is mapped into this process now if need be; and
    /// where the mapping begins in it.
    fn file_source(
        &self,
        control: &mut Control,
        behind: &BehindFile,
        payer: Option<&Payer>,
    ) -> Result<(u32, u64, Option<Source>)> {
        let &BehindFile { ref fd, offset, end, ref file } = behind;
        let known = control.files.get(&file.key);
        let fd = known.map_or(fd, |known| &known.fd).clone();
        let current = known.and_then(|known| known.current);
        let mut mapped = 0;
        if let Some(slot) = current {
            mapped = self.map.look(|map| match map.sources.get(slot as usize) {
                Some(Some(Source::File(source))) => source.mapped.len(),
                _ => 0,
            });
            if mapped >= wanted(file, end) {
                return Ok((slot, offset, None));
            }
        }
        let extent = extent(file, offset, end, mapped);
        if let Some(slot) = current
            && extent.whole
            && extent.len <= mapped
        {
            return Ok((slot, offset, None));
        }
        let limit = self.address_space.load(Ordering::Relaxed);
        let (at, len, writable) = (extent.offset, extent.len, file.key.writable);
        let holes = if file.kind.cannot_block() { Holes::Keep(file.kind) } else { Holes::Fill };
        let costs = Costs { account: &self.account, limit, payer };
        let mapped = MappedFile::new(&fd, at, len, writable, holes, costs)?;
        let kind = if extent.whole { Kind::File(file.key) } else { Kind::Part(file.key) };
        let slot = control.file_slot(kind, &fd, payer)?;
        let source = FileSource { mapped: Arc::new(mapped), fd, offset: at };
        Ok((slot, offset - at, Some(Source::File(source))))
    }

    /// Removes the mappings of an owner, in turns, so that no access waits long and nothing needs much
    /// memory. Returns sources to be dropped once no lock is held.
    #[must_use]
    pub(crate) fn take_owned(
        &self,
        control: &mut Control,
        owner: MapOwner,
        gone: &mut Gone,
    ) -> Vec<Option<Source>> {
        let Some(number) = control.find_owner(Some(owner)) else { return Vec::new() };
        let mut remove = |control: &mut Control, removed: &Removed| {
            removed.iter().for_each(|(first, mapping)| gone.add(first, mapping.last));
            let dead = control.discount(removed);
            self.reap(control, &dead)
        };
        if control.owners() == 1 {
            let removed = self.map.change(|map| map.table.take());
            return remove(control, &removed);
        }
        let (mut garbage, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let mut taken = Vec::new();
            from = self.map.change(|map| map.table.take_owned(number as u16, at, &mut taken));
            garbage.append(&mut remove(control, &taken.into()));
        }
        garbage
    }
}

/// The ranges of mappings that were removed.
#[derive(Default)]
pub(crate) struct Gone {
    ranges: Vec<(u64, u64)>,
    /// There was no memory for the list: as if everything had been removed.
    all: bool,
}

impl Gone {
    fn add(&mut self, first: u64, last: u64) {
        if !self.all && push(&mut self.ranges, (first, last)).is_err() {
            *self = Self { ranges: Vec::new(), all: true };
        }
    }

    fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.all
    }

    /// Whether a range touches one of them. They are in order.
    fn hits(&self, first: u64, last: u64) -> bool {
        let after = self.ranges.partition_point(|(start, _)| *start <= last);
        self.all || (after > 0 && self.ranges[after - 1].1 >= first)
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

impl Space {
    /// A space without mappings, for memory that cannot block ([`AcceptedFiles::Memory`]).
    pub fn new() -> Self {
        Self::with_files(AcceptedFiles::default())
    }

    /// A space without mappings, for files of these kinds.
    pub fn with_files(accepted: AcceptedFiles) -> Self {
        let (ranges, dirty) = (Arc::<Ranges>::default(), Arc::<DirtyLog>::default());
        let map = Shared::new(Map {
            table: Table::default(),
            sources: Vec::new(),
            ranges: ranges.clone(),
            dirty: dirty.clone(),
            logging: false,
        });
        Self {
            inner: Arc::new(Inner {
                map,
                ranges,
                dirty,
                listeners: Listeners::default(),
                address_space: AtomicU64::new(ADDRESS_SPACE),
                account: Arc::default(),
                accepted,
                control: Mutex::default(),
            }),
        }
    }

    /// Which files may be mapped here.
    pub fn accepted_files(&self) -> AcceptedFiles {
        self.inner.accepted
    }

    /// Whether both are the same space.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn shared(&self) -> Arc<Shared<Map>> {
        self.inner.map.clone()
    }

    /// Limits the bytes of this process's address space that mapped files may take in all; 4 TiB
    /// at first. What is mapped already stays.
    pub fn set_address_space(&self, bytes: u64) {
        self.inner.address_space.store(bytes, Ordering::Relaxed);
    }

    /// Makes a mapping for an owner, or for nobody. The size, the address and the offset need no
    /// alignment.
    ///
    /// A file is mapped into this process once, whole, however many mappings show it; so a mapping
    /// of a known file costs no `mmap`. The mapping may reach past the file's end; accesses there
    /// fail with `EFAULT` until the file has grown. A file longer than 1 TiB is mapped in parts.
    ///
    /// # Errors
    /// `EEXIST`: it overlaps a mapping; `EINVAL`: no size or no permission, or past 2^64 (the
    /// offset: 2^63); `ENOSPC`: 1,048,576 mappings, or 4,096 files and peers; `ENOMEM`: too much
    /// address space; `ENODEV`: a file that the space does not accept ([`Space::accepted_files`]), or
    /// not a regular one; `EACCES`: not open for reading, or on FUSE; what `mmap` fails with.
    pub fn map(&self, owner: impl Into<Option<MapOwner>>, request: MapRequest) -> Result<()> {
        self.map_for(owner, request, None)
    }

    /// Makes a mapping as [`Space::map`] does, for a client that pays for what of the process it takes
    /// up: the descriptor of a file that the space does not know yet, its mapping into this process, the
    /// address space that takes, and the memory of the DMA mapping itself. Files without DMA mappings that
    /// the space keeps are given up first.
    ///
    /// # Errors
    /// As [`Space::map`]; `EMFILE`, `ENOSPC`, `ENOMEM`: more descriptors, mappings, address space or memory
    /// than the payer's user may have.
    pub fn map_for(
        &self,
        owner: impl Into<Option<MapOwner>>,
        request: MapRequest,
        payer: Option<&Payer>,
    ) -> Result<()> {
        let MapRequest { iova, size, perm, backing } = request;
        let behind = match backing {
            Backing::File { fd, offset } => self.behind_file(Arc::new(fd), offset, iova, size)?,
            Backing::Peer(peer) => Behind::Peer(peer),
        };
        let owner = owner.into();
        match self.add(owner, iova, size, perm, &behind, payer) {
            Err(error)
                if matches!(error.errno(), Errno::MFILE | Errno::NOSPC | Errno::NOMEM)
                    && self.give_up_idle() =>
            {
                self.add(owner, iova, size, perm, &behind, payer)
            }
            added => added,
        }
    }

    /// Unmaps the files that no DMA mapping shows. Returns whether there were some.
    fn give_up_idle(&self) -> bool {
        let (mut control, mut dead) = (lock(&self.inner.control), Vec::new());
        control.forget_idle(&mut dead);
        let garbage = self.inner.reap(&mut control, &dead);
        drop(control);
        !garbage.is_empty()
    }

    /// Looks at a file that is to be mapped at `iova`.
    ///
    /// # Errors
    /// `EINVAL`: past 2^63 in the file; `ENODEV`, `EACCES`: a file that is not accepted.
    fn behind_file(&self, fd: Arc<OwnedFd>, offset: u64, iova: u64, size: u64) -> Result<Behind> {
        let end = offset.checked_add(size).filter(|end| *end <= i64::MAX as u64);
        let Some(end) = end else {
            let what = format!("a DMA mapping at {iova:#x}: offset past 2^63");
            return Err(Error::new(Errno::INVAL, what));
        };
        let file = examine(fd.as_fd(), self.inner.accepted)?;
        Ok(Behind::File(BehindFile { fd, offset, end, file }))
    }

    fn add(
        &self,
        owner: Option<MapOwner>,
        iova: u64,
        size: u64,
        perm: Perm,
        behind: &Behind,
        payer: Option<&Payer>,
    ) -> Result<()> {
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

        // What is dropped late is dropped after the lock: `close` may take its time.
        let mut control = lock(&self.inner.control);
        let leaving = control.leaving.iter().any(|l| l.first <= last && l.last >= iova);
        let (taken, len) =
            self.inner.map.look(|map| (map.table.touching(iova, last).is_some(), map.table.len()));
        if leaving || taken {
            return Err(Error::new(
                Errno::EXIST,
                format!("a DMA mapping at {iova:#x}-{last:#x} overlaps one that exists"),
            ));
        }
        if len >= MAPPINGS {
            return Err(Error::new(
                Errno::NOSPC,
                format!("an address space may have {MAPPINGS} DMA mappings, not more"),
            ));
        }
        let (slot, offset, new) = match behind {
            Behind::File(file) => self.inner.file_source(&mut control, file, payer)?,
            Behind::Peer(peer) => {
                let (slot, new) = control.peer_slot(peer)?;
                (slot, 0, new.then(|| Source::Peer(peer.clone())))
            }
        };
        let mut dead = Vec::new();
        let number = match control.owner_number(owner, payer) {
            Ok(number) => number,
            Err(error) => {
                if new.is_some() {
                    control.forget(slot, &mut dead);
                    control.free.extend(dead);
                }
                return Err(error);
            }
        };
        if new.is_some() {
            // A file that has grown is mapped anew, which takes the place of the one before.
            control.make_current(slot, &mut dead);
        }
        self.inner.map.change(|map| {
            if let Some(source) = new {
                let at = slot as usize;
                if map.sources.len() <= at {
                    map.sources.resize_with(at + 1, || None);
                }
                map.sources[at] = Some(source);
            }
            let fits = map.table.insert(iova, Mapping::new(last, offset, slot, number, perm));
            // Only the holder of the control lock adds mappings, and there was room.
            debug_assert!(fits);
        });
        control.count(slot, number);
        let garbage = self.inner.reap(&mut control, &dead);
        drop(control);
        drop(garbage);
        Ok(())
    }

    /// Copies a part of one mapping to another space, or to another place of this one
    /// (`IOMMU_IOAS_COPY`). The copy is a mapping of its own.
    ///
    /// # Errors
    /// `EFAULT`: nothing is mapped at `from`; `EINVAL`: the part does not lie in one mapping;
    /// `EACCES`: the mapping does not allow `perm`; as [`Space::map`].
    pub fn copy(
        &self,
        from: u64,
        size: u64,
        to: &Self,
        iova: u64,
        perm: Perm,
        owner: impl Into<Option<MapOwner>>,
    ) -> Result<()> {
        let part = || format!("the DMA mapping of {size:#x} bytes at {from:#x}");
        let found = self.inner.map.look(|map| {
            let (first, mapping) = map.table.find(from)?;
            let behind = match map.sources.get(mapping.source as usize)?.as_ref()? {
                Source::File(file) => {
                    let offset = file.offset + mapping.offset + (from - first);
                    Ok((file.fd.clone(), offset))
                }
                Source::Peer(peer) => Err(peer.clone()),
            };
            Some((mapping.last, mapping.perm(), behind))
        });
        let Some((last, allowed, behind)) = found else {
            return Err(Error::new(Errno::FAULT, format!("{} does not exist", part())));
        };
        if size == 0 || size - 1 > last - from {
            let what = format!("{} ends at {last:#x}, and cannot be copied past it", part());
            return Err(Error::new(Errno::INVAL, what));
        }
        if !allowed.contains(perm) {
            let what = format!("{} allows {allowed:?}, not {perm:?}", part());
            return Err(Error::new(Errno::ACCESS, what));
        }
        let behind = match behind {
            Ok((fd, offset)) => to.behind_file(fd, offset, iova, size)?,
            // A peer is asked for the addresses of the mapping that it knows.
            Err(_) if from != iova => {
                let what = format!("{} is reached by message at its own address only", part());
                return Err(Error::new(Errno::OPNOTSUPP, what));
            }
            Err(peer) => Behind::Peer(peer),
        };
        to.add(owner.into(), iova, size, perm, &behind, None)
    }

    /// Removes every mapping of an owner, and blocks for up to a second for accesses in flight and
    /// listeners. The memory of those that have not ended then is kept until they do.
    pub fn drop_owner(&self, owner: MapOwner) {
        let inner = &*self.inner;
        let mut control = lock(&inner.control);
        let mut gone = Gone::default();
        let garbage = inner.take_owned(&mut control, owner, &mut gone);
        control.leaving.iter_mut().for_each(|leaving| leaving.ended.push(owner));
        let mut dead = Vec::new();
        control.forget_idle(&mut dead);
        let idle = inner.reap(&mut control, &dead);
        drop(control);
        drop((garbage, idle));
        if gone.is_empty() {
            return;
        }
        if gone.all {
            // Marks stay: a page that is reported once too often does no harm.
            inner.listeners.unmapping(0, u64::MAX, &inner.ranges);
        }
        for &(first, last) in &gone.ranges {
            inner.listeners.unmapping(first, last, &inner.ranges);
            inner.dirty.forget(first, last);
        }
        gone.ranges.sort_unstable();
        let hits = |first, last| gone.hits(first, last);
        if !inner.ranges.wait(hits, Instant::now().checked_add(OWNER_END)) {
            tracing::warn!(%owner, "a device still accesses memory whose owner has ended");
        }
    }

    /// Whether an owner has mappings here, those included that are being unmapped.
    pub fn has_mappings_of(&self, owner: MapOwner) -> bool {
        lock(&self.inner.control).find_owner(Some(owner)).is_some()
    }

    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.inner.map.look(|map| map.table.len())
    }

    /// Whether there is no mapping.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mappings, ascending by address. Mappers wait meanwhile.
    ///
    /// # Panics
    /// There is no memory for the list: clients choose how long it is. See [`Space::try_snapshot`].
    pub fn mappings(&self) -> Vec<MappingInfo> {
        self.snapshot().mappings
    }

    /// How many mappings there are, their bytes in all, and the first few of them, ascending by address.
    /// Mappers wait meanwhile.
    pub fn summary(&self, few: usize) -> Summary {
        let control = lock(&self.inner.control);
        self.inner.map.look(|map| {
            let size = |(iova, mapping): (u64, &Mapping)| (mapping.last - iova).saturating_add(1);
            let bytes = map.table.iter().map(size).fold(0, u64::saturating_add);
            let is_mapped = |mapping: &Mapping| {
                matches!(map.sources.get(mapping.source as usize), Some(Some(Source::File(_))))
            };
            let first = map.table.iter().take(few).map(|(iova, mapping)| MappingSummary {
                iova,
                last: mapping.last,
                perm: mapping.perm(),
                owner: control.owner(mapping.owner),
                is_mapped: is_mapped(mapping),
            });
            Summary { mappings: map.table.len(), bytes, first: first.collect() }
        })
    }

    /// The mappings and the descriptors behind them. Mappers wait meanwhile.
    ///
    /// # Panics
    /// There is no memory for the lists: clients choose how long they are. See [`Space::try_snapshot`].
    pub fn snapshot(&self) -> Snapshot {
        self.try_snapshot().expect("memory for a list of all mappings")
    }

    /// [`Space::snapshot`], for whoever goes on without it.
    ///
    /// # Errors
    /// `ENOMEM`: there is no memory for the lists, of which clients choose how long they are.
    pub fn try_snapshot(&self) -> Result<Snapshot> {
        let control = lock(&self.inner.control);
        self.inner.map.look(|map| {
            let mut descriptors: Vec<Arc<OwnedFd>> = Vec::new();
            let mut places = vfiod_buffer::list_for(map.sources.len())?;
            for source in &map.sources {
                places.push(match source {
                    Some(Source::File(file)) => {
                        let known = descriptors.iter().position(|fd| Arc::ptr_eq(fd, &file.fd));
                        let at = known.unwrap_or(descriptors.len());
                        if known.is_none() {
                            vfiod_buffer::push(&mut descriptors, file.fd.clone())?;
                        }
                        Some((at, file.offset))
                    }
                    _ => None,
                });
            }
            let mut mappings = vfiod_buffer::list_for(map.table.len())?;
            mappings.extend(map.table.iter().map(|(iova, mapping)| MappingInfo {
                iova,
                last: mapping.last,
                perm: mapping.perm(),
                owner: control.owner(mapping.owner),
                file: places[mapping.source as usize].map(|(at, from)| (at, from + mapping.offset)),
            }));
            Ok(Snapshot { descriptors, mappings })
        })
    }

    /// What the space holds.
    pub fn usage(&self) -> Usage {
        let control = lock(&self.inner.control);
        let files = |map: &Map| {
            let files = map.sources.iter().filter(|s| matches!(s, Some(Source::File(_))));
            (map.table.len(), files.count())
        };
        let (mappings, mapped_files) = self.inner.map.look(files);
        Usage {
            mappings,
            mapped_files,
            idle: control.idle.len(),
            address_space: self.inner.account.bytes(),
            in_use: self.inner.ranges.len(),
        }
    }

    /// Starts to log which pages devices write: by copies, by holds that end, and by message. When
    /// this returns, every write that ends from now on is logged. Goes on, and returns `false`, if it
    /// was started before.
    pub fn start_dirty_log(&self) -> bool {
        // Without a payer nothing is refused.
        self.start_dirty_log_for(None).unwrap_or(false)
    }

    /// Starts the log as [`Space::start_dirty_log`] does, for a client that pays for its memory until it is
    /// stopped: some 40 KiB, and 640 bytes for each 16 MiB of addresses in which a device writes, 40 MiB at
    /// most. Where the client may have no more, the log is given up, and reports fail.
    ///
    /// # Errors
    /// `ENOMEM`: more memory than the payer's user may have.
    pub fn start_dirty_log_for(&self, payer: Option<&Payer>) -> Result<bool> {
        let started = self.inner.dirty.start(payer)?;
        self.inner.map.change(|map| map.logging = true);
        Ok(started)
    }

    /// Stops the log and forgets its marks.
    pub fn stop_dirty_log(&self) {
        self.inner.map.change(|map| map.logging = false);
        self.inner.dirty.stop();
    }

    /// Whether writes are logged.
    pub fn is_dirty_log_on(&self) -> bool {
        self.inner.dirty.is_on()
    }

    /// Sets the bits of `bitmap` for the pages of `[iova, iova + size)` that devices have written:
    /// a bit for each `page_size` bytes from `iova` on, bit 0 of byte 0 first. Other bits stay as
    /// they are. [`dirty_bitmap_len`](crate::dirty_bitmap_len) says how long the bitmap must be.
    ///
    /// The log has pages of 4 KiB; smaller ones are reported together. Of a hold that has not
    /// ended nothing is reported: quiesce the devices before the last report.
    ///
    /// # Errors
    /// `EINVAL`: logging is off, `size` is 0 or passes 2^64, `page_size` is not a power of two, or
    /// the bitmap is too short; `ENOMEM`: the log was given up, as its payer may have no more memory.
    pub fn report_dirty(
        &self,
        iova: u64,
        size: u64,
        page_size: u64,
        marks: Marks,
        bitmap: &mut [u8],
    ) -> Result<()> {
        let last = last_in(iova, size, "a report of dirty pages")?;
        self.inner.dirty.report(iova, last, page_size, marks, bitmap)
    }
}

/// The last address of a range that a client named.
///
/// # Errors
/// `EINVAL`: it is empty, or passes 2^64.
pub(crate) fn last_in(iova: u64, size: u64, what: &str) -> Result<u64> {
    let last = size.checked_sub(1).and_then(|rest| iova.checked_add(rest));
    last.ok_or_else(|| {
        let range = format!("{size:#x} bytes at {iova:#x}");
        Error::new(Errno::INVAL, format!("{what} of {range}: empty, or past 2^64"))
    })
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.usage().fmt(f)
    }
}
