//! The interface of devices that wait for their DMA on a thread of their own. It goes when the
//! last of them is a task.

use std::fmt;
use std::time::{Duration, Instant};

use vfiod_sync::atomic::Ordering;

use crate::attachment::Attachment;
use crate::batch::{Batch, Reach};
use crate::error::Result;
use crate::fault::Scalar;
use crate::hold::Hold;
use crate::request::{MapOwner, MapRequest, Perm};
use crate::space::{MappingInfo, Space, Usage};
use crate::transfer::{Message, Transfer, take_reply};

/// How long a request by message may take.
const WAIT: Duration = Duration::from_secs(4);

/// An [`Attachment`] whose reads and writes block until they are done.
#[derive(Clone)]
pub struct DmaSpace {
    attachment: Attachment,
}

impl Default for DmaSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl DmaSpace {
    /// An attachment to a space of its own, without mappings.
    pub fn new() -> Self {
        Self { attachment: Attachment::new(&Space::new()) }
    }

    /// The attachment of the device.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The space that the device is attached to; an empty one if it is detached.
    pub fn space(&self) -> Space {
        self.attachment.space().unwrap_or_default()
    }

    /// As [`Attachment::set_bus_master`].
    pub fn set_bus_master(&self, on: bool) {
        self.attachment.set_bus_master(on);
    }

    /// As [`Attachment::bus_master`].
    #[inline]
    pub fn bus_master(&self) -> bool {
        self.attachment.bus_master()
    }

    /// As [`Attachment::quiesce`] and [`Attachment::resume`].
    pub fn halt(&self, halted: bool) {
        if halted {
            self.attachment.quiesce();
        } else {
            self.attachment.resume();
        }
    }

    /// As [`Space::set_address_space`].
    pub fn set_address_space(&self, bytes: u64) {
        self.space().set_address_space(bytes);
    }

    /// As [`Space::map`].
    ///
    /// # Errors
    /// As [`Space::map`].
    pub fn map(&self, owner: MapOwner, request: MapRequest) -> Result<()> {
        self.space().map(owner, request)
    }

    /// As [`Space::unmap`].
    ///
    /// # Errors
    /// As [`Space::unmap`].
    pub fn unmap(&self, iova: u64, size: u64, wait: Duration) -> Result<u64> {
        self.space().unmap(iova, size, wait)
    }

    /// As [`Space::unmap_all`].
    ///
    /// # Errors
    /// As [`Space::unmap_all`].
    pub fn unmap_all(&self, wait: Duration) -> Result<u64> {
        self.space().unmap_all(wait)
    }

    /// As [`Space::drop_owner`].
    pub fn drop_owner(&self, owner: MapOwner) {
        self.space().drop_owner(owner);
    }

    /// As [`Space::len`].
    pub fn len(&self) -> usize {
        self.space().len()
    }

    /// As [`Space::is_empty`].
    pub fn is_empty(&self) -> bool {
        self.space().is_empty()
    }

    /// As [`Space::mappings`].
    pub fn mappings(&self) -> Vec<MappingInfo> {
        self.space().mappings()
    }

    /// As [`Space::usage`].
    pub fn usage(&self) -> Usage {
        self.space().usage()
    }

    /// As [`Attachment::read`], but blocks.
    ///
    /// # Errors
    /// As [`Attachment::read`]; `ETIMEDOUT`: a request by message took more than four seconds.
    pub fn read(&self, iova: u64, dst: &mut [u8]) -> Result<()> {
        let messages = self.attachment.transfer(iova, Transfer::Read(dst))?;
        if messages.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + WAIT;
        let requests: Vec<_> = messages.into_iter().map(Message::start_read).collect();
        for (part, reply) in requests {
            take_reply(&reply.wait(deadline)?, &mut dst[part])?;
        }
        Ok(())
    }

    /// As [`Attachment::write`], but blocks.
    ///
    /// # Errors
    /// As [`Attachment::write`]; `ETIMEDOUT`: a request by message took more than four seconds.
    pub fn write(&self, iova: u64, src: &[u8]) -> Result<()> {
        let messages = self.attachment.transfer(iova, Transfer::Write(src))?;
        if messages.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + WAIT;
        let requests: Vec<_> = messages.into_iter().map(|m| m.start_write(src)).collect();
        requests.into_iter().try_for_each(|reply| reply.wait(deadline))
    }

    /// As [`Attachment::batch`].
    ///
    /// # Errors
    /// As [`Attachment::batch`].
    #[inline]
    pub fn access(&self) -> Result<Batch<'_>> {
        self.attachment.batch()
    }

    /// As [`Attachment::hold`].
    ///
    /// # Errors
    /// As [`Attachment::hold`].
    pub fn pin(&self, iova: u64, len: usize, perm: Perm) -> Result<Hold> {
        self.attachment.hold(iova, len, perm)
    }

    /// As [`Batch::load`]; blocks where the integer is reached by message.
    ///
    /// # Errors
    /// As [`Batch::load`] and [`DmaSpace::read`].
    #[inline]
    pub fn load<T: Scalar>(&self, iova: u64, _ordering: Ordering) -> Result<T> {
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
    ///
    /// # Errors
    /// As [`Batch::store`] and [`DmaSpace::write`].
    #[inline]
    pub fn store<T: Scalar>(&self, iova: u64, value: T, ordering: Ordering) -> Result<()> {
        let reach = self.access()?.store(iova, value, ordering)?;
        if reach == Reach::Mapped {
            return Ok(());
        }
        let value = value.widen();
        let value = if cfg!(target_endian = "big") { value << (64 - 8 * T::SIZE) } else { value };
        self.write(iova, &value.to_ne_bytes()[..T::SIZE])
    }

    /// As [`Batch::swap`].
    ///
    /// # Errors
    /// As [`Batch::swap`].
    pub fn swap<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.swap(iova, value)
    }

    /// As [`Batch::compare_exchange`].
    ///
    /// # Errors
    /// As [`Batch::compare_exchange`].
    pub fn compare_exchange<T: Scalar>(&self, iova: u64, old: T, new: T) -> Result<T> {
        self.access()?.compare_exchange(iova, old, new)
    }

    /// As [`Batch::fetch_add`].
    ///
    /// # Errors
    /// As [`Batch::fetch_add`].
    pub fn fetch_add<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.fetch_add(iova, value)
    }

    /// As [`Batch::fetch_or`].
    ///
    /// # Errors
    /// As [`Batch::fetch_or`].
    pub fn fetch_or<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.fetch_or(iova, value)
    }

    /// As [`Batch::fetch_and`].
    ///
    /// # Errors
    /// As [`Batch::fetch_and`].
    pub fn fetch_and<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.access()?.fetch_and(iova, value)
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.attachment.fmt(f)
    }
}
