//! A device for tests, and its space: its reads and writes block until they are done.

use std::time::Duration;

use vfiod_sync::atomic::Ordering;

use crate::attachment::Attachment;
use crate::batch::{Batch, Reach};
use crate::block_on::block_on;
use crate::error::Result;
use crate::fault::Scalar;
use crate::files::AcceptedFiles;
use crate::hold::Hold;
use crate::request::{MapOwner, MapRequest, Perm};
use crate::space::{MappingInfo, Space, Usage};

/// An [`Attachment`] whose reads and writes block until they are done.
#[derive(Clone)]
pub(crate) struct TestDevice {
    attachment: Attachment,
}

impl Default for TestDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl TestDevice {
    /// An attachment to a space of its own, without mappings.
    pub(crate) fn new() -> Self {
        Self { attachment: Attachment::new(&Space::new()) }
    }

    /// As [`TestDevice::new`], for files of these kinds.
    pub(crate) fn with_files(accepted: AcceptedFiles) -> Self {
        Self { attachment: Attachment::new(&Space::with_files(accepted)) }
    }

    /// The attachment of the device.
    pub(crate) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The space that the device is attached to; an empty one if it is detached.
    pub(crate) fn space(&self) -> Space {
        self.attachment.space().unwrap_or_default()
    }

    /// As [`Attachment::set_bus_master`].
    pub(crate) fn set_bus_master(&self, on: bool) {
        self.attachment.set_bus_master(on);
    }

    /// As [`Attachment::bus_master`].
    #[inline]
    pub(crate) fn bus_master(&self) -> bool {
        self.attachment.bus_master()
    }

    /// As [`Space::set_address_space`].
    pub(crate) fn set_address_space(&self, bytes: u64) {
        self.space().set_address_space(bytes);
    }

    /// As [`Space::map`].
    pub(crate) fn map(&self, owner: MapOwner, request: MapRequest) -> Result<()> {
        self.space().map(owner, request)
    }

    /// As [`Space::unmap`].
    pub(crate) fn unmap(&self, iova: u64, size: u64, wait: Duration) -> Result<u64> {
        self.space().unmap(iova, size, wait)
    }

    /// As [`Space::unmap_all`].
    pub(crate) fn unmap_all(&self, wait: Duration) -> Result<u64> {
        self.space().unmap_all(wait)
    }

    /// As [`Space::drop_owner`].
    pub(crate) fn drop_owner(&self, owner: MapOwner) {
        self.space().drop_owner(owner);
    }

    /// As [`Space::len`].
    pub(crate) fn len(&self) -> usize {
        self.space().len()
    }

    /// As [`Space::is_empty`].
    pub(crate) fn is_empty(&self) -> bool {
        self.space().is_empty()
    }

    /// As [`Space::mappings`].
    pub(crate) fn mappings(&self) -> Vec<MappingInfo> {
        self.space().mappings()
    }

    /// As [`Space::usage`].
    pub(crate) fn usage(&self) -> Usage {
        self.space().usage()
    }

    /// As [`Attachment::read`], but blocks.
    pub(crate) fn read(&self, iova: u64, dst: &mut [u8]) -> Result<()> {
        block_on(self.attachment.read(iova, dst))
    }

    /// As [`Attachment::write`], but blocks.
    pub(crate) fn write(&self, iova: u64, src: &[u8]) -> Result<()> {
        block_on(self.attachment.write(iova, src))
    }

    /// As [`Attachment::batch`].
    #[inline]
    pub(crate) fn access(&self) -> Result<Batch<'_>> {
        self.attachment.batch()
    }

    /// As [`Attachment::hold`].
    pub(crate) fn pin(&self, iova: u64, len: usize, perm: Perm) -> Result<Hold> {
        self.attachment.hold(iova, len, perm)
    }

    /// As [`Batch::load`]; blocks where the integer is reached by message.
    #[inline]
    pub(crate) fn load<T: Scalar>(&self, iova: u64, _ordering: Ordering) -> Result<T> {
        let loaded = self.access()?.load(iova)?;
        loaded.map_or_else(|| self.load_by_message(iova), Ok)
    }

    #[cold]
    fn load_by_message<T: Scalar>(&self, iova: u64) -> Result<T> {
        let mut bytes = [0; 8];
        self.read(iova, &mut bytes[..T::SIZE])?;
        let value = u64::from_le_bytes(bytes);
        let value = if cfg!(target_endian = "big") {
            u64::from_be_bytes(bytes) >> (64 - 8 * T::SIZE)
        } else {
            value
        };
        Ok(T::narrow(value))
    }

    /// As [`Batch::store`]; blocks where the integer is reached by message.
    #[inline]
    pub(crate) fn store<T: Scalar>(&self, iova: u64, value: T, ordering: Ordering) -> Result<()> {
        let reach = self.access()?.store(iova, value, ordering)?;
        if reach == Reach::Mapped {
            return Ok(());
        }
        let value = value.widen();
        let value = if cfg!(target_endian = "big") { value << (64 - 8 * T::SIZE) } else { value };
        self.write(iova, &value.to_ne_bytes()[..T::SIZE])
    }

    /// As [`Batch::swap`].
    pub(crate) fn swap<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.swap(iova, value)
    }

    /// As [`Batch::compare_exchange`].
    pub(crate) fn compare_exchange<T: Scalar>(&self, iova: u64, old: T, new: T) -> Result<T> {
        self.access()?.compare_exchange(iova, old, new)
    }

    /// As [`Batch::fetch_add`].
    pub(crate) fn fetch_add<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.fetch_add(iova, value)
    }

    /// As [`Batch::fetch_or`].
    pub(crate) fn fetch_or<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.fetch_or(iova, value)
    }

    /// As [`Batch::fetch_and`].
    pub(crate) fn fetch_and<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.fetch_and(iova, value)
    }
}
