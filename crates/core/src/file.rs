//! Files: one open of a device each; dropping it is its release.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rustix::event::{EventfdFlags, eventfd};

use crate::device::{Description, Device, Features};
use crate::dma::{MapRequest, Space};
use crate::error::{Errno, Error, Result};
use crate::ids::{FileId, Owner};
use crate::irq::{IrqAction, IrqData, IrqIndex, IrqInfo, UnmaskFd, drain};
use crate::memory::SharedMemory;
use crate::opening::OpeningMemory;
use crate::region::{Region, RegionFlags, RegionIndex};
use crate::registered::Registered;
use crate::registry::DeviceRef;
use crate::sync::atomic::{AtomicU8, Ordering};
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

/// What the core and the holder share of a file.
pub(crate) struct FileShared {
    pub(crate) id: FileId,
    pub(crate) owner: Owner,
    since: SystemTime,
    state: AtomicU8,
    doorbells: Mutex<BTreeMap<RegionIndex, Vec<OwnedFd>>>,
    /// What the device shares in the opening that the file belongs to.
    memory: OnceLock<Arc<OpeningMemory>>,
    /// Spaces that the device was attached to before, where the file may have mappings.
    left_spaces: Mutex<Vec<Space>>,
}

/// `open` is running for it.
const OPENING: u8 = 0;
/// In use.
const OPEN: u8 = 1;
/// Released, or about to be by whoever put it into this state.
const GONE: u8 = 2;

impl FileShared {
    pub(crate) fn new(id: FileId, owner: Owner) -> Self {
        Self::restored(id, owner, SystemTime::now())
    }

    /// A file that was opened at another time, perhaps in another process.
    pub(crate) fn restored(id: FileId, owner: Owner, since: SystemTime) -> Self {
        let (state, doorbells) = (AtomicU8::new(OPENING), Mutex::default());
        Self {
            id,
            owner,
            since,
            state,
            doorbells,
            memory: OnceLock::new(),
            left_spaces: Mutex::default(),
        }
    }

    pub(crate) fn status(&self) -> FileStatus {
        FileStatus { id: self.id, owner: self.owner.clone(), since: self.since }
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

    /// The memory that a region shares.
    #[inline]
    fn shared_memory(&self, region: RegionIndex) -> Result<&SharedMemory> {
        let none = || Error::new(Errno::NODEV, "shared memory of a device that is not open");
        Ok(self.memory.get().ok_or_else(none)?.region(region.0)?)
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
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

    /// Drains the doorbells that were rung and not delivered.
    pub(crate) fn silence_doorbells(&self) {
        for fd in lock(&self.doorbells).values().flatten() {
            // It fails only if the descriptor is no eventfd.
            let _ = drain(fd);
        }
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

/// One open of a device.
///
/// Every operation of a revoked file (see [`crate::DeviceRef::revoke`]) fails with `ENODEV`. While
/// the device is stopped, accesses and features wait, for a second at most, and then fail with
/// `EBUSY`. In the device's error state accesses and features fail with `EIO`; mapping, interrupt
/// set-up and [`File::reset`] work, so that a client can recover the device.
pub struct File {
    device: DeviceRef,
    shared: Arc<FileShared>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("device", &self.device.name())
            .field("id", &self.shared.id.0)
            .field("owner", &self.shared.owner)
            .field("revoked", &self.is_revoked())
            .finish()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.registered().release_file(&self.shared);
    }
}

impl File {
    pub(crate) fn new(device: DeviceRef, shared: Arc<FileShared>) -> Self {
        Self { device, shared }
    }

    pub(crate) fn parts(&self) -> (&Arc<Registered>, &FileShared) {
        (&self.device.registered, &self.shared)
    }

    fn registered(&self) -> &Arc<Registered> {
        &self.device.registered
    }

    /// The file's number.
    pub fn id(&self) -> FileId {
        self.shared.id
    }

    /// Who holds it.
    pub fn owner(&self) -> &Owner {
        &self.shared.owner
    }

    /// The device that is open.
    pub fn device(&self) -> &DeviceRef {
        &self.device
    }

    /// What the device has.
    pub fn description(&self) -> &Description {
        &self.registered().description
    }

    /// A region. `EINVAL`: the device has none with this index; `ENODEV`: the file was revoked.
    pub fn region(&self, index: RegionIndex) -> Result<&Region> {
        self.present()?;
        self.find_region(index)
    }

    /// An interrupt index. `EINVAL`: the device does not have it; `ENODEV`: the file was revoked.
    pub fn irq(&self, index: IrqIndex) -> Result<IrqInfo> {
        self.present()?;
        self.registered().context.irqs().info(index)
    }

    /// Reads a region. Takes the device's lock, unless the access is within a shared area.
    ///
    /// # Errors
    /// `EINVAL`: no such region, or outside it; `EACCES`: not readable; `ENODEV`, `EIO`; what
    /// the device says.
    #[inline]
    pub fn read(&self, region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        let memory = self.check(region, offset, data.len(), RegionFlags::READ)?;
        if let Some(memory) = memory {
            return memory.read(offset, data);
        }
        if data.is_empty() {
            return Ok(());
        }
        let waits = self.find_region(region)?.waits_for_reset;
        let device = self.registered();
        let read = |device: &mut dyn Device| device.read(region, offset, data);
        match device.access_region(&self.shared, waits, read)? {
            Some(()) => {}
            None => data.fill(0xff),
        }
        Ok(())
    }

    /// Writes a region; errors as for [`File::read`].
    #[inline]
    pub fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        let memory = self.check(region, offset, data.len(), RegionFlags::WRITE)?;
        if let Some(memory) = memory {
            memory.write(offset, data)?;
            let device = self.registered();
            if device.works()
                && let Some(bell) = self.find_region(region)?.doorbell_of(offset, data)
            {
                device.context.ring(self.bell(region, bell), Some(little_endian(data)));
            }
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let device = self.registered();
        let at = self.find_region(region)?;
        if device.works()
            && let Some(bell) = at.doorbell_of(offset, data)
        {
            device.admit(&self.shared)?;
            device.context.ring(self.bell(region, bell), Some(little_endian(data)));
            return Ok(());
        }
        let write = |device: &mut dyn Device| device.write(region, offset, data);
        device.access_region(&self.shared, at.waits_for_reset, write).map(drop)
    }

    /// The memory that serves an access without a call of the device, if it lies within one
    /// shared area: offsets are those of the region. For transports that can send from and
    /// receive into it without a copy in between. `access` is one or both directions.
    ///
    /// # Errors
    /// Those of [`File::read`] and [`File::write`] that do not come from the device.
    pub fn shared(
        &self,
        region: RegionIndex,
        offset: u64,
        len: usize,
        access: RegionFlags,
    ) -> Result<Option<&SharedMemory>> {
        self.check(region, offset, len, access)
    }

    /// The memory that a region shares with clients, for handing its descriptor to them; `None`
    /// if it shares nothing. Made at the first call, or the first access, in an opening.
    ///
    /// # Errors
    /// `EINVAL` where there is no such region; `ENODEV`; `EMFILE`, `ENOMEM` and the like.
    pub fn shared_memory(&self, region: RegionIndex) -> Result<Option<&SharedMemory>> {
        self.present()?;
        if self.find_region(region)?.shared.is_empty() {
            return Ok(None);
        }
        self.shared.shared_memory(region).map(Some)
    }

    /// DEVICE_RESET: the device quiesces, is reset, and resumes. Blocks for up to two seconds until it
    /// has quiesced.
    ///
    /// # Errors
    /// `EINVAL`: the device cannot be reset; `ENODEV`: the file was revoked; `EBUSY`: another reset
    /// or a call takes too long; `EIO`: the device did not quiesce and is stuck, or it panicked;
    /// errors of [`Device::reset`], after which it is in the error state.
    pub fn reset(&self) -> Result<()> {
        self.present()?;
        self.registered().reset_for(&self.shared)
    }

    /// DEVICE_SET_IRQS; see [`crate::irq::IrqSet::set`]; or `ENODEV`.
    pub fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<()> {
        self.present()?;
        let irqs = self.registered().context.irqs();
        let result = irqs.set(self.id(), index, start, count, action, data);
        self.still_present().and(result)
    }

    /// DMA_MAP; see [`crate::dma::DmaSpace::map`]; or `ENODEV`.
    pub fn dma_map(&self, request: MapRequest) -> Result<()> {
        self.present()?;
        let result = self.registered().context.dma().map(self.id().into(), request);
        self.still_present().and(result)
    }

    /// DMA_UNMAP of a range; see [`crate::dma::DmaSpace::unmap`]; or `ENODEV`.
    pub fn dma_unmap(&self, iova: u64, size: u64, wait: Duration) -> Result<u64> {
        self.present()?;
        self.registered().context.dma().unmap(iova, size, wait)
    }

    /// DMA_UNMAP with ALL; see [`crate::dma::DmaSpace::unmap_all`]; or `ENODEV`.
    pub fn dma_unmap_all(&self, wait: Duration) -> Result<u64> {
        self.present()?;
        self.registered().context.dma().unmap_all(wait)
    }

    /// The address space that the device is attached to. Others can be attached to it by
    /// [`File::attach_space`].
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn space(&self) -> Result<Space> {
        self.present()?;
        Ok(self.registered().context.dma().space())
    }

    /// Attaches the device to another address space, which other devices may be attached to. An
    /// access of the device finds one or the other; one that is in flight goes on where it began.
    /// What the device's files map from now on is in the new space; what this file has mapped in
    /// the old one stays there until the file is gone. After its last close the device is attached
    /// to an empty space of its own.
    ///
    /// Blocks until the copies of the device that are under way have ended, and not for a client.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn attach_space(&self, space: &Space) -> Result<()> {
        self.present()?;
        if let Some(left) = self.registered().context.dma().attachment().attach(space) {
            lock(&self.shared.left_spaces).push(left);
        }
        self.still_present()
    }

    /// DEVICE_FEATURE probe: (get, set) work for this index. `ENODEV`, `EIO`.
    pub fn feature_probe(&self, index: u16) -> Result<(bool, bool)> {
        self.registered().access(&self.shared, |device| {
            Ok(device.as_features().map_or((false, false), |power| power.probe(index)))
        })
    }

    /// DEVICE_FEATURE get. `ENOTTY` for an unknown index, `ENODEV`, `EIO`, what the device says.
    pub fn feature_get(&self, index: u16, argument: &[u8]) -> Result<Vec<u8>> {
        self.registered()
            .access(&self.shared, |device| features(device, index)?.get(index, argument))
    }

    /// DEVICE_FEATURE set. `ENOTTY` for an unknown index, `ENODEV`, `EIO`, what the device says.
    pub fn feature_set(&self, index: u16, data: &[u8]) -> Result<()> {
        self.registered().access(&self.shared, |device| features(device, index)?.set(index, data))
    }

    /// The eventfds of a region's doorbells, in the order of [`Region::eventfds`], for handing to
    /// the client (DEVICE_GET_REGION_IO_FDS). Made at the first call, non-blocking; every call
    /// returns duplicates of the same. Whoever serves the file waits for them to become
    /// readable, and calls [`File::ring`] then.
    ///
    /// # Errors
    /// `EINVAL` where there is no such region; `ENODEV`; what `eventfd` says.
    pub fn doorbells(&self, region: RegionIndex) -> Result<Vec<OwnedFd>> {
        self.present()?;
        let bells = self.find_region(region)?.eventfds().count();
        let duplicates = {
            let mut made = lock(&self.shared.doorbells);
            let fds = match made.entry(region) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                    let make = |_| eventfd(0, flags).map_err(|e| failed("make an eventfd", e));
                    entry.insert((0..bells).map(make).collect::<Result<Vec<_>>>()?)
                }
            };
            fds.iter().map(duplicate).collect::<Result<Vec<_>>>()
        };
        self.still_present().and(duplicates)
    }

    /// Delivers a doorbell, by its place in [`File::doorbells`]: if its eventfd was signalled since the
    /// last call, rings it, or makes the write that it stands for if the device is no
    /// [`crate::Worker`]. Returns whether it was signalled.
    ///
    /// # Errors
    /// `EINVAL`: no such region or doorbell; as for [`File::write`].
    pub fn ring(&self, region: RegionIndex, doorbell: usize) -> Result<bool> {
        self.present()?;
        let missing = || Error::new(Errno::INVAL, format!("{region} has no doorbell {doorbell}"));
        let at = self.find_region(region)?;
        let (place, &bell) = at.eventfds().nth(doorbell).ok_or_else(missing)?;
        if self.registered().works() {
            // Without the device lock. A ring that comes while the device is stopped waits for it,
            // or is forgotten by a reset.
            self.registered().admit(&self.shared)?;
            let rung = self.take_ring(region, doorbell)?;
            if rung {
                self.registered().context.ring(self.bell(region, place), bell.datamatch);
            }
            return Ok(rung);
        }
        // Taken with the device lock held and nothing being reset: what was rung during a hot
        // reset is still there at its end, to be forgotten.
        let delivered = self.registered().access(&self.shared, |device| {
            if !self.take_ring(region, doorbell)? {
                return Ok(false);
            }
            let value = bell.datamatch.unwrap_or(0).to_le_bytes();
            let size = if bell.size == 0 { 4 } else { usize::from(bell.size) };
            let (offset, value) = (bell.offset, &value[..size]);
            if at.is_shared(offset, size) {
                self.shared.shared_memory(region)?.write(offset, value)?;
            } else {
                device.write(region, offset, value)?;
            }
            Ok(true)
        });
        if delivered.is_err() && self.registered().is_in_error_state() {
            // Drain the eventfd: a failed device drops the ring, and a readable eventfd would wake
            // the poller again at once.
            self.take_ring(region, doorbell)?;
        }
        delivered
    }

    /// Takes the counter of a doorbell's eventfd. Returns whether it was rung.
    fn take_ring(&self, region: RegionIndex, doorbell: usize) -> Result<bool> {
        let made = lock(&self.shared.doorbells);
        let Some(fd) = made.get(&region).and_then(|fds| fds.get(doorbell)) else {
            return Ok(false);
        };
        drain(fd).map_err(|errno| failed("read an eventfd", errno))
    }

    /// The unmasking eventfds that this file set up, for its connection's poller; see
    /// [`crate::irq::IrqSet::unmask_fds`].
    pub fn unmask_fds(&self) -> Vec<UnmaskFd> {
        self.registered().context.irqs().unmask_fds(self.id())
    }

    /// One of them was found readable; see [`crate::irq::IrqSet::unmask_signalled`].
    pub fn unmask_signalled(&self, fd: &UnmaskFd) -> bool {
        self.registered().context.irqs().unmask_signalled(fd)
    }

    /// Whether the file was revoked.
    pub fn is_revoked(&self) -> bool {
        !self.shared.is_open()
    }

    fn present(&self) -> Result<()> {
        if self.is_revoked() { Err(self.registered().is_gone()) } else { Ok(()) }
    }

    /// After the file gave the device something: a revoke that came between has not seen it.
    fn still_present(&self) -> Result<()> {
        // If the revoke's own clean-up came first, the lock that both took makes the state
        // that it had set before visible here.
        self.present().inspect_err(|_| self.registered().drop_resources(&self.shared))
    }

    /// The number of a doorbell in its device, which counts them region by region.
    fn bell(&self, region: RegionIndex, doorbell: usize) -> usize {
        let before = self.description().regions.iter().take(region.0 as usize);
        before.map(|region| region.doorbells.len()).sum::<usize>() + doorbell
    }

    fn find_region(&self, index: RegionIndex) -> Result<&Region> {
        let region = usize::try_from(index.0).ok().and_then(|i| self.description().regions.get(i));
        region.ok_or_else(|| {
            let what = format!("{} has no {index}", self.registered().name());
            Error::new(Errno::INVAL, what)
        })
    }

    /// Checks region, bounds and permission, and finds the memory that serves the access.
    #[inline]
    fn check(
        &self,
        index: RegionIndex,
        offset: u64,
        len: usize,
        access: RegionFlags,
    ) -> Result<Option<&SharedMemory>> {
        self.present()?;
        let region = self.find_region(index)?;
        region.check(index, offset, len as u64, access)?;
        if !region.is_shared(offset, len) {
            return Ok(None);
        }
        self.registered().admit(&self.shared)?;
        self.shared.shared_memory(index).map(Some)
    }
}

/// The value of a write of up to 8 bytes.
fn little_endian(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn features(device: &mut dyn Device, index: u16) -> Result<&mut dyn Features> {
    let none = || Error::new(Errno::NOTTY, format!("no feature {index}"));
    device.as_features().ok_or_else(none)
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
