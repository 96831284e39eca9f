//! The flat form of vectors: four bits of each, kept beside the vectors so that a commit copies words
//! and takes no lock.

use super::vector::Vector;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Vectors in one group.
pub(super) const GROUP: u32 = 64;
/// Words of a group: level, pending, masked by the client, masked by the device; bit *n* is vector *n*
/// of the group.
pub(super) const WORDS: usize = 4;

/// Four bits of each vector of a group, as the vectors have them.
#[derive(Debug, Default)]
pub(super) struct Group([AtomicU64; WORDS]);

/// The four bits of one vector, in the order of [`Group`]'s words.
pub(super) type Bits = [bool; WORDS];

impl Vector {
    #[inline]
    pub(super) fn bits(&self) -> Bits {
        [self.level, self.pending, self.client_masked, self.device_masked]
    }

    pub(super) fn set_bits(&mut self, bits: Bits) {
        [self.level, self.pending, self.client_masked, self.device_masked] = bits;
    }
}

impl Group {
    /// Changes the bits of a vector, whose lock the caller holds.
    pub(super) fn change(&self, vector: u32, before: Bits, after: Bits) {
        let bit = 1 << (vector % GROUP);
        for (word, (before, after)) in self.0.iter().zip(before.into_iter().zip(after)) {
            match (before, after) {
                (false, true) => _ = word.fetch_or(bit, Ordering::Relaxed),
                (true, false) => _ = word.fetch_and(!bit, Ordering::Relaxed),
                _ => {}
            }
        }
    }

    /// Writes the group's words, little-endian; `image` has [`WORDS`] times 8 bytes.
    #[inline]
    pub(super) fn save(&self, image: &mut [u8]) {
        let words = self.0.each_ref().map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        image.copy_from_slice(words.as_flattened());
    }
}

/// The groups that `count` vectors take.
pub(super) fn groups(count: u32) -> usize {
    count.div_ceil(GROUP) as usize
}

/// The bits of a vector in an image of its index.
pub(super) fn bits_in(image: &[u8], vector: u32) -> Bits {
    let group = (vector / GROUP) as usize * WORDS * 8;
    let (byte, bit) = ((vector % GROUP / 8) as usize, vector % 8);
    [0, 1, 2, 3].map(|word| image[group + word * 8 + byte] >> bit & 1 == 1)
}
