//! The core's part of a device as a flat image, for commits at every message.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 | kind and version |
//! | 4 | flags: bit 0, the device is in the error state |
//! | 8 | the device's number |
//! | 16 | the number of the set-up, which the text form has, too |
//! | 24 | the number of the next event |
//! | 32 | for each interrupt index, for each 64 vectors: levels, pending triggers, masks of the client, masks of the device; a bit for each vector |
//! | then | for each doorbell: flags (bit 0, it was rung; bit 1, the value is known) and the newest value, 8 bytes each |
//!
//! All numbers are little-endian. What is not here changes by a set-up only (files, eventfds,
//! mappings, attachments): the text form has it, and whoever commits writes that again when the number
//! of the set-up has changed.

use super::rings;
use crate::device_ref::DeviceRef;
use crate::error::{Errno, Error, Result};
use crate::ids::{DeviceId, NUMBER_LIMIT};
use crate::registered::Registered;
use crate::sync::atomic::Ordering;

const KIND: [u8; 4] = *b"vfd\x02";
const FAILED: u32 = 1;
const HEADER: usize = 32;

/// What an image says, besides vectors and doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) failed: bool,
    pub(super) device: DeviceId,
    pub(super) setup: u64,
    event: u64,
}

impl Header {
    /// Reads an image, which may be hostile. Returns the rest, too.
    ///
    /// # Errors
    /// `EINVAL`: it is too short, of another kind or version, or has values that cannot be.
    pub(super) fn read(image: &[u8]) -> Result<(Self, &[u8])> {
        let wrong = |what: &str| Error::new(Errno::INVAL, format!("the core's image {what}"));
        let Some((header, rest)) = image.split_at_checked(HEADER) else {
            return Err(wrong("is too short"));
        };
        let number = |from: usize, len: usize| {
            let bytes = header[from..from + len].iter().rev();
            bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        if header[..4] != KIND {
            return Err(wrong("is of another kind or version"));
        }
        let (flags, device, event) = (number(4, 4), number(8, 8), number(24, 8));
        if flags & !u64::from(FAILED) != 0 {
            return Err(wrong("has flags that are not known"));
        }
        if device >= NUMBER_LIMIT || event >= NUMBER_LIMIT {
            return Err(wrong("has a number out of range"));
        }
        let (failed, setup) = (flags != 0, number(16, 8));
        Ok((Self { failed, device: DeviceId(device), setup, event }, rest))
    }
}

impl Registered {
    fn core_image_len(&self) -> usize {
        HEADER + self.context.irqs().flat_len() + rings::flat_len(self.context.work())
    }

    fn save_core_image(&self, image: &mut [u8]) -> Result<()> {
        if image.len() != self.core_image_len() {
            return Err(Error::new(Errno::INVAL, "the image has another size"));
        }
        let (header, rest) = image.split_at_mut(HEADER);
        let (vectors, doorbells) = rest.split_at_mut(self.context.irqs().flat_len());
        let flags = if self.is_in_error_state() { FAILED } else { 0 };
        header[..4].copy_from_slice(&KIND);
        header[4..8].copy_from_slice(&flags.to_le_bytes());
        header[8..16].copy_from_slice(&self.id().0.to_le_bytes());
        header[16..24].copy_from_slice(&self.setup.load(Ordering::Acquire).to_le_bytes());
        header[24..].copy_from_slice(&self.environment.event_numbers().next().to_le_bytes());
        self.context.irqs().save_flat(vectors);
        rings::save_flat(self.context.work(), doorbells);
        Ok(())
    }
}

impl DeviceRef {
    /// The size of the core's image of the device in bytes, which never changes: 32, 32 for each 64
    /// vectors of an interrupt index, and 16 for each doorbell.
    pub fn core_image_len(&self) -> usize {
        self.registered.core_image_len()
    }

    /// Writes the core's image of the device, without allocating and without a lock: the error state,
    /// each vector's level, masks and pending trigger, and each doorbell's newest ring. `image` has [`DeviceRef::core_image_len`]
    /// bytes. What a call changes that runs meanwhile may be in it or not.
    ///
    /// # Errors
    /// `EINVAL`: `image` has another size.
    pub fn save_core_image(&self, image: &mut [u8]) -> Result<()> {
        self.registered.save_core_image(image)
    }
}
