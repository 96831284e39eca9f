//! Requests that are done at once: never in flight, and nothing is held for them.

use vfiod_dma::Result;

use crate::bytes::{AtOnce, Bytes};
use crate::channel::DiskChannel;
use crate::failure::{Failure, FailureKind};

impl DiskChannel {
    /// Whether reads and writes wait for nothing, unless others are in their way.
    pub fn is_at_once(&self) -> bool {
        self.parts.inner.at_once().is_some()
    }

    /// Reads a range at once: that is done when this returns, and never in flight. `None`: it has to be
    /// [started](DiskChannel::start_within), as the back end may wait, or lacks memory, or another request has the range.
    pub fn read_at_once(&self, offset: u64, into: &mut dyn Bytes) -> Option<Result<(), Failure>> {
        let len = into.len() as u64;
        self.at_once(offset, len, false, |backend| backend.read(offset, into))
    }

    /// Writes a range at once, as [`DiskChannel::read_at_once`] reads one.
    pub fn write_at_once(&self, offset: u64, from: &mut dyn Bytes) -> Option<Result<(), Failure>> {
        let len = from.len() as u64;
        if self.is_write_through() || !self.is_at_once() || self.may_change(offset, len).is_err() {
            return None;
        }
        self.at_once(offset, len, true, |backend| backend.write(offset, from))
    }

    fn at_once(
        &self,
        offset: u64,
        len: u64,
        exclusive: bool,
        perform: impl FnOnce(&dyn AtOnce) -> Result<()>,
    ) -> Option<Result<(), Failure>> {
        let backend = self.parts.inner.at_once()?;
        let end = offset.checked_add(len)?;
        // Whoever cuts the end off waits for this after the capacity has become smaller.
        let perform = || self.parts.shared.has(end).then(|| perform(backend));
        let (ranges, range) = (&self.parts.ranges, offset..end);
        let performed = if backend.copies() {
            ranges.at_once(range, exclusive, perform)
        } else {
            ranges.in_no_time(range, exclusive, perform)
        };
        let performed = performed??.map_err(Failure::from);
        // It is begun anew where it can wait for memory.
        let is_short = matches!(&performed, Err(failure) if failure.kind == FailureKind::Short);
        (!is_short).then_some(performed)
    }
}
