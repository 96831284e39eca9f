//! Files: one open of a device each; dropping it is its release.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use vfiod_quota::Payer;
use vfiod_tasks::{Keeper, hand_over};

use crate::device::{Description, Device, Features, Token};
use crate::device_ref::DeviceRef;
use crate::dma::{MapOwner, MapRequest, Space};
use crate::error::{Errno, Error, Result};
use crate::file_state::{FileShared, Link};
use crate::ids::{FileId, Owner};
use crate::irq::{IrqAction, IrqData, IrqIndex, IrqInfo, UnmaskFd};
use crate::memory::SharedMemory;
use crate::region::{Region, RegionFlags, RegionIndex};
use crate::registered::Registered;

/// One open of a device. Dropping it removes what it has mapped and set up, and releases it. A task
/// that drops it while its thread waits with the device's set marked, or the device stopped, does not
/// wait for itself: the rest of the release follows when that wait has ended.
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

impl DeviceRef {
    /// Opens the device for an owner.
    ///
    /// The first open resets the device (unless its state is retained, sound and this user's) and calls
    /// [`Device::open_device`], with the set marked; then, and for every further open,
    /// [`Device::open`] without the mark. Blocks while a callback of the device runs, and up to two
    /// seconds while its set is being opened, closed, reset or saved. If that is being done by the calling
    /// thread itself, which runs tasks while it waits, an open by a task fails at once (`EBUSY`).
    ///
    /// # Errors
    /// `ENODEV`: the device is being unregistered, or the file was revoked; `EINVAL`: it is
    /// single-open and open; `EBUSY`: another owner has it open, its set does not become idle, or it
    /// is stuck; `EIO`: a callback panicked, or the device is open and in the error state; errors of
    /// `reset`, `open_device` and `open`.
    pub fn open(&self, owner: Owner) -> Result<File> {
        self.open_with(owner, None)
    }

    /// Opens the device for an owner who presents a token, or none
    /// ([`Admission`](crate::Admission), [`crate::DeviceSpec::token`]).
    ///
    /// # Errors
    /// As [`DeviceRef::open`]; `EINVAL`: the device takes no token; errors of
    /// [`Admission::admit`](crate::Admission::admit), such as `EACCES`.
    pub fn open_with(&self, owner: Owner, token: Option<Token>) -> Result<File> {
        let file = self.registered.open_file(owner, token)?;
        Ok(File::new(self.clone(), file))
    }
}

impl File {
    pub(crate) fn new(device: DeviceRef, shared: Arc<FileShared>) -> Self {
        Self { device, shared }
    }

    pub(crate) fn parts(&self) -> (&Arc<Registered>, &Arc<FileShared>) {
        (&self.device.registered, &self.shared)
    }

    fn registered(&self) -> &Arc<Registered> {
        &self.device.registered
    }

    /// The file's number.
    pub fn id(&self) -> FileId {
        self.shared.id
    }

    /// Sets what is to be ended as soon as the file is revoked, so that the revoke does not wait for
    /// the client. Once for each file.
    pub fn set_link(&self, link: Weak<dyn Link>) {
        self.shared.set_link(link);
    }

    /// Sets who pays for the descriptors and mappings that the client sets up from now on, and for memory that
    /// the device keeps for it. Once for each file; without it nobody does.
    pub fn set_payer(&self, payer: Payer) {
        self.registered().context.set_payer(Some(payer.clone()));
        self.shared.set_payer(payer);
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

    /// Lets the calling thread run tasks of the device that its writes of doorbells make ready, one at a time: a
    /// transport that has nothing else to do then need not have a worker woken. What is kept is handed over
    /// before an access that may wait. Whatever else may wait, and every other operation of a file does, follows
    /// [`vfiod_tasks::hand_over`]. `None`: the device's tasks have no workers; or the thread has a keeper.
    pub fn keeper(&self) -> Option<Keeper<'_>> {
        self.registered().context.work().keeper()
    }

    /// Takes what has completed of what devices have asked the kernel for, such as the reads of a disk. Tasks of this
    /// device that become ready by that are kept for the calling thread, those of others go to the workers. For
    /// a transport that polls: where nobody looks, a worker is woken.
    pub fn look(&self, keeper: &Keeper<'_>) {
        self.registered().context.work().look(keeper);
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
        hand_over();
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
                device.ring(self.bell(region, bell), Some(little_endian(data)));
            }
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let device = self.registered();
        let at = self.find_region(region)?;
        if device.works()
            && device.context.serves_directly()
            && let Some(bell) = at.doorbell_of(offset, data)
        {
            device.admit(&self.shared)?;
            device.ring(self.bell(region, bell), Some(little_endian(data)));
            return Ok(());
        }
        hand_over();
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

    /// How often the memory of [`File::shared`] was cleared by resets in this opening. A transport
    /// that stores a write as its pieces arrive looks whether there was a reset in between.
    pub fn shared_resets(&self) -> u64 {
        self.shared.memory_clears()
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

    /// DEVICE_SET_IRQS; see [`crate::irq::IrqSet::set`]; or `ENODEV`; or `EMFILE`: more eventfds than the
    /// file's payer may have ([`File::set_payer`]).
    pub fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<()> {
        self.present()?;
        self.shared.sets_up();
        let sets_up = count == 0 || matches!(data, IrqData::EventFds(_));
        let irqs = self.registered().context.irqs();
        let result = {
            let payer = self.shared.payer();
            irqs.set_for(self.id(), payer, (index, start, count), action, data)
        };
        if sets_up {
            self.registered().set_up();
        }
        self.still_present().and(result)
    }

    /// DMA_MAP; see [`crate::dma::Space::map_for`], of which the file's payer is asked
    /// ([`File::set_payer`]); or `ENODEV`.
    pub fn dma_map(&self, request: MapRequest) -> Result<()> {
        self.present()?;
        self.shared.sets_up();
        let space = self.registered().context.attached_space();
        let result = space.map_for(MapOwner::from(self.id()), request, self.shared.payer());
        if !self.registered().context.attached_space().is(&space) {
            // Another file of the device has joined a space meanwhile.
            self.shared.has_left(space);
        }
        self.registered().set_up();
        self.still_present().and(result)
    }

    /// DMA_UNMAP of a range; see [`crate::dma::Space::unmap`]; or `ENODEV`.
    pub fn dma_unmap(&self, iova: u64, size: u64, wait: Duration) -> Result<u64> {
        self.present()?;
        let result = self.registered().context.attached_space().unmap(iova, size, wait);
        self.registered().set_up();
        result
    }

    /// DMA_UNMAP that reports written pages; see [`crate::dma::Space::unmap_reporting`]; or `ENODEV`.
    pub fn dma_unmap_reporting(
        &self,
        iova: u64,
        size: u64,
        wait: Duration,
        page_size: u64,
        bitmap: &mut [u8],
    ) -> Result<u64> {
        self.present()?;
        let space = self.registered().context.attached_space();
        let result = space.unmap_reporting(iova, size, wait, page_size, bitmap);
        self.registered().set_up();
        result
    }

    /// DMA_UNMAP with ALL; see [`crate::dma::Space::unmap_all`]; or `ENODEV`.
    pub fn dma_unmap_all(&self, wait: Duration) -> Result<u64> {
        self.present()?;
        let result = self.registered().context.attached_space().unmap_all(wait);
        self.registered().set_up();
        result
    }

    /// The address space that the device is attached to. Others can be attached to it by
    /// [`File::attach_space`].
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn space(&self) -> Result<Space> {
        // The caller can map in it for this file.
        self.shared.sets_up();
        let space = self.registered().context.attached_space();
        // Checked afterwards: the space of a file that is gone may be the next user's.
        self.present()?;
        Ok(space)
    }

    /// Starts the log of the pages that devices write in the address space; see
    /// [`Space::start_dirty_log_for`], of which the file's payer is asked ([`File::set_payer`]). Returns
    /// `false` if it was started before.
    ///
    /// # Errors
    /// `ENOMEM`: more memory than the payer's user may have; `ENODEV`.
    pub fn start_dirty_log(&self) -> Result<bool> {
        self.space()?.start_dirty_log_for(self.shared.payer())
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
        self.shared.sets_up();
        let bells = self.find_region(region)?.eventfds().count();
        let duplicates = self.shared.doorbells(region, bells);
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
            return self.shared.pass_ring(region, doorbell, || {
                if self.registered().context.serves_directly() {
                    self.registered().ring(self.bell(region, place), bell.datamatch);
                }
            });
        }
        // Taken with the device lock held and nothing being reset: what was rung during a hot
        // reset is still there at its end, to be forgotten.
        let delivered = self.registered().access(&self.shared, |device| {
            if !self.shared.take_ring(region, doorbell)? {
                return Ok(false);
            }
            let value = bell.datamatch.unwrap_or(0).to_le_bytes();
            let size = if bell.size == 0 { 4 } else { usize::from(bell.size) };
            let (offset, value) = (bell.offset, &value[..size]);
            if at.is_shared(offset, size) && self.registered().context.serves_directly() {
                self.shared.shared_memory(region)?.write(offset, value)?;
            } else {
                device.write(region, offset, value)?;
            }
            Ok(true)
        });
        if delivered.is_err() && self.registered().is_in_error_state() {
            // Drain the eventfd: a failed device drops the ring, and a readable eventfd would wake
            // the poller again at once.
            self.shared.take_ring(region, doorbell)?;
        }
        delivered
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
        if self.shared.is_still_open() {
            return Ok(());
        }
        self.registered().drop_resources(&self.shared);
        Err(self.registered().is_gone())
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
        if !region.is_shared(offset, len) || !self.registered().context.serves_directly() {
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
