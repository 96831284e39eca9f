//! A transfer between the buffer and guest memory, apart from the registers.

use std::ops::Range;

use vfiod_core::dma::Attachment;
use vfiod_core::{Errno, Error, Result};

use super::registers::{BUFFER, BUFFER_LEN};

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToRam,
    FromRam,
}

/// A transfer, with what it brings or takes.
#[derive(Debug)]
pub(super) struct Transfer {
    way: Way,
    /// Where in the buffer.
    range: Range<usize>,
    /// Where in guest memory.
    guest: u64,
    bytes: Vec<u8>,
}

impl Transfer {
    /// A transfer of `count` bytes of the buffer. `EINVAL`: they are not within it.
    pub(super) fn new(
        way: Way,
        buffer: &[u8; BUFFER_LEN],
        local: u64,
        guest: u64,
        count: u64,
    ) -> Result<Self> {
        let range = || {
            let start = usize::try_from(local.checked_sub(BUFFER)?).ok()?;
            let end = start.checked_add(usize::try_from(count).ok()?)?;
            (end <= BUFFER_LEN).then_some(start..end)
        };
        let Some(range) = range() else {
            let what = format!("{count} bytes at {local:#x} are not in the buffer");
            return Err(Error::new(Errno::INVAL, what));
        };
        let bytes = buffer[range.clone()].to_vec();
        Ok(Self { way, range, guest, bytes })
    }

    /// Moves the bytes. Repeated, it does the same.
    pub(super) async fn run(mut self, dma: &Attachment) -> Result<Self> {
        match self.way {
            Way::ToRam => dma.write(self.guest, &self.bytes).await?,
            Way::FromRam => dma.read(self.guest, &mut self.bytes).await?,
        }
        Ok(self)
    }

    /// Puts what was read into the buffer.
    pub(super) fn finish(self, buffer: &mut [u8; BUFFER_LEN]) {
        if self.way == Way::FromRam {
            buffer[self.range].copy_from_slice(&self.bytes);
        }
    }
}
