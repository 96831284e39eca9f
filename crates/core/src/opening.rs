//! The memory that a device shares with its clients: the core makes it from the description, new
//! for each opening.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::dma::{DeviceMemory, SharedRegion};
use crate::error::{Errno, Error, Result};
use crate::ids::Owner;
use crate::memory::SharedMemory;
use crate::region::Region;
use crate::sync::{Mutex, lock};

/// The memory of one opening of a device. It is made when it is first asked for: a client that
/// never looks at it does not pay for it.
pub(crate) struct OpeningMemory {
    regions: Arc<[SharedRegion]>,
    made: OnceLock<DeviceMemory>,
    /// How often the memory was cleared; counted before it is.
    clears: AtomicU64,
    /// Whether the opening has ended. Locked while the memory is being made.
    ended: Mutex<bool>,
}

impl OpeningMemory {
    /// The memory of a region.
    ///
    /// # Errors
    /// `EINVAL`: the region shares nothing; `ENODEV`: the opening has ended; `EMFILE`, `ENOMEM` and
    /// the like: the kernel's errors for the memory's file or mapping.
    #[inline]
    pub(crate) fn region(&self, index: u32) -> Result<&Arc<SharedMemory>> {
        let made = match self.made.get() {
            Some(made) => made,
            None => self.make()?,
        };
        made.region(index).ok_or_else(|| {
            Error::new(Errno::INVAL, format!("region {index} shares no memory with clients"))
        })
    }

    #[cold]
    fn make(&self) -> Result<&DeviceMemory> {
        let ended = lock(&self.ended);
        if *ended {
            return Err(Error::new(Errno::NODEV, "shared memory of an opening that has ended"));
        }
        if self.made.get().is_none() {
            let memory = DeviceMemory::new("vfiod-device", &self.regions)?;
            _ = self.made.set(memory);
        }
        let none = || Error::new(Errno::NODEV, "shared memory of an opening that has ended");
        self.made.get().ok_or_else(none)
    }

    /// How often the memory was cleared, a clear in progress included.
    pub(crate) fn clears(&self) -> u64 {
        self.clears.load(Ordering::Acquire)
    }

    /// The descriptor of the memory, if it has been made.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.made.get().map(DeviceMemory::fd)
    }

    /// Zeroes the memory, for a reset.
    ///
    /// # Errors
    /// The kernel's errors; then some of the memory may be unchanged.
    fn clear(&self) -> Result<()> {
        self.clears.fetch_add(1, Ordering::Release);
        let Some(made) = self.made.get() else { return Ok(()) };
        made.clear()
    }

    /// Ends the opening: from now on the device's accesses to its memory fail with `ENODEV`.
    fn end(&self) {
        let mut ended = lock(&self.ended);
        *ended = true;
        if let Some(made) = self.made.get() {
            made.close();
        }
    }
}

/// The memory that a device shares in its present opening, if it shares any.
pub(crate) struct Openings {
    regions: Arc<[SharedRegion]>,
    now: Mutex<Option<Opening>>,
}

pub(crate) struct Opening {
    /// Whose it is; `None`: it was restored for whoever opens the device next.
    user: Option<Owner>,
    memory: Arc<OpeningMemory>,
}

/// A part of a region's memory that is not zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryPiece {
    region: u32,
    offset: u64,
    #[serde(with = "hex::serde")]
    bytes: Vec<u8>,
}

impl Opening {
    fn is_for(&self, user: &Owner) -> bool {
        self.user.as_ref().is_none_or(|own| own.is_same_user(user))
    }

    /// Ends the opening: another one has taken its place.
    pub(crate) fn end(self) {
        self.memory.end();
    }
}

/// What happens to the memory of the last opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// The device loses it at its last close.
    Forgotten,
    /// It is kept for the next opening, if that is by the same user.
    Kept,
}

impl Openings {
    pub(crate) fn new(regions: &[Region]) -> Self {
        let regions = (0..).zip(regions).filter(|(_, region)| !region.shared.is_empty());
        let regions = regions.map(|(index, region)| {
            let (size, areas) = (region.size, region.shared.clone());
            SharedRegion { index, size, areas }
        });
        Self { regions: regions.collect(), now: Mutex::new(None) }
    }

    /// A first open: the memory is new, unless that of the last opening is kept and was the same
    /// user's.
    pub(crate) fn begin(&self, user: &Owner, last: Last) {
        if self.regions.is_empty() {
            return;
        }
        let mut now = lock(&self.now);
        let (kept, ended) = match now.take() {
            Some(now) if last == Last::Kept && now.is_for(user) => (Some(now.memory), None),
            other => (None, other),
        };
        if let Some(ended) = ended {
            ended.memory.end();
        }
        let memory = kept.unwrap_or_else(|| self.memory_of(OnceLock::new()));
        *now = Some(Opening { user: Some(user.clone()), memory });
    }

    fn memory_of(&self, made: OnceLock<DeviceMemory>) -> Arc<OpeningMemory> {
        let (regions, clears, ended) = (self.regions.clone(), AtomicU64::new(0), Mutex::new(false));
        Arc::new(OpeningMemory { regions, made, clears, ended })
    }

    /// Makes memory with a content for whoever opens the device next; see [`Openings::begin_restored`].
    ///
    /// # Errors
    /// `EINVAL`: a piece that is not in a region's memory. The kernel's errors. Nothing has changed.
    pub(crate) fn begin_with(&self, pieces: &[MemoryPiece]) -> Result<Option<Opening>> {
        let memory = self.memory_of(OnceLock::new());
        for MemoryPiece { region, offset, bytes } in pieces {
            memory.region(*region)?.write(*offset, bytes)?;
        }
        if self.regions.is_empty() {
            return Ok(None);
        }
        Ok(lock(&self.now).replace(Opening { user: None, memory }))
    }

    /// What of the memory is not zero.
    ///
    /// # Errors
    /// `EFBIG`: more than `most` pages. The kernel's errors.
    pub(crate) fn contents(&self, most: usize) -> Result<Vec<MemoryPiece>> {
        let memory = self.memory();
        let Some(made) = memory.as_ref().and_then(|memory| memory.made.get()) else {
            return Ok(Vec::new());
        };
        let mut pieces = Vec::new();
        for SharedRegion { index: region, .. } in self.regions.iter() {
            let Some(view) = made.region(*region) else { continue };
            for (at, page) in view.pages_in_use(most - pieces.len())? {
                let begin = page.iter().position(|byte| *byte != 0).unwrap_or(0);
                let end = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                let (region, offset) = (*region, at + begin as u64);
                pieces.push(MemoryPiece { region, offset, bytes: page[begin..end].to_vec() });
            }
        }
        Ok(pieces)
    }

    /// An opening for a restore, with the memory that was saved; `None`: none had been made. Returns
    /// what was kept of the last opening, for [`Openings::put_back`].
    ///
    /// # Errors
    /// `EINVAL`: not the memory of such a device. The kernel's errors.
    pub(crate) fn begin_restored(
        &self,
        user: &Owner,
        memory: Option<OwnedFd>,
    ) -> Result<Option<Opening>> {
        let made = match memory {
            Some(fd) => OnceLock::from(DeviceMemory::from_fd(fd, &self.regions)?),
            None if self.regions.is_empty() => return Ok(None),
            None => OnceLock::new(),
        };
        let memory = self.memory_of(made);
        Ok(lock(&self.now).replace(Opening { user: Some(user.clone()), memory }))
    }

    /// After a restore that was refused and the device's close: what was kept before it is kept again.
    pub(crate) fn put_back(&self, before: Option<Opening>) {
        if let Some(refused) = std::mem::replace(&mut *lock(&self.now), before) {
            refused.memory.end();
        }
    }

    /// The last close, or a first open that failed.
    pub(crate) fn end(&self, last: Last) {
        if last == Last::Forgotten
            && !self.regions.is_empty()
            && let Some(opening) = lock(&self.now).take()
        {
            opening.memory.end();
        }
    }

    pub(crate) fn memory(&self) -> Option<Arc<OpeningMemory>> {
        if self.regions.is_empty() {
            return None;
        }
        lock(&self.now).as_ref().map(|opening| opening.memory.clone())
    }

    pub(crate) fn clear(&self) -> Result<()> {
        self.memory().map_or(Ok(()), |memory| memory.clear())
    }
}
