//! A transfer between the buffer and guest memory, apart from the registers.

use std::ops::Range;

use vfiod_core::dma::Attachment;
use vfiod_core::{Errno, Error, Result};

use super::image::EduImage;
use super::registers::{BUFFER, BUFFER_LEN, DMA_TO_RAM};

/// Which way a transfer goes, with what it brings or takes.
#[derive(Debug)]
pub(super) struct Transfer {
    to_ram: bool,
    /// Where in the buffer.
    range: Range<usize>,
    /// Where in guest memory.
    guest: u64,
    bytes: Vec<u8>,
}

impl Transfer {
    /// The transfer that the registers describe. `EINVAL`: it is not within the buffer.
    pub(super) fn of(state: &EduImage) -> Result<Self> {
        let to_ram = state.command & DMA_TO_RAM != 0;
        let (local, guest) = if to_ram {
            (state.source, state.destination)
        } else {
            (state.destination, state.source)
        };
        let range = || {
            let start = usize::try_from(local.checked_sub(BUFFER)?).ok()?;
            let end = start.checked_add(usize::try_from(state.count).ok()?)?;
            (end <= BUFFER_LEN).then_some(start..end)
        };
        let Some(range) = range() else {
            let what = format!("{} bytes at {local:#x} are not in the buffer", state.count);
            return Err(Error::new(Errno::INVAL, what));
        };
        let bytes = state.buffer[range.clone()].to_vec();
        // The engine has no more address bits than these: the rest is cut off.
        Ok(Self { to_ram, range, guest: guest & state.mask, bytes })
    }

    /// Moves the bytes. Repeated, it does the same.
    pub(super) async fn run(mut self, dma: &Attachment) -> Result<Self> {
        if self.to_ram {
            dma.write(self.guest, &self.bytes).await?;
        } else {
            dma.read(self.guest, &mut self.bytes).await?;
        }
        Ok(self)
    }

    /// Puts what was read into the buffer.
    pub(super) fn finish(self, state: &mut EduImage) {
        if !self.to_ram {
            state.buffer[self.range].copy_from_slice(&self.bytes);
        }
    }
}
