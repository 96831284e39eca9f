//! Memory at an address that files opened with `O_DIRECT` take.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::{NoMemory, zeroed};

/// Bytes whose first one is at a multiple of an alignment.
pub struct Aligned {
    /// Longer than needed, so that a multiple of the alignment is in it.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes, all zero, at a multiple of `align`, which is a power of two.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn zeroed(len: usize, align: usize) -> Result<Self, NoMemory> {
        let memory = zeroed(len.checked_add(align).ok_or(NoMemory { bytes: usize::MAX })?)?;
        // As the length of a slice, an offset may be reported that is out of reach; then it stays at 0.
        let start = Some(memory.as_ptr().align_offset(align)).filter(|start| *start <= align);
        Ok(Self { memory, start: start.unwrap_or(0), len })
    }

    /// Makes it shorter, or longer again, up to what it was made with.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.memory.len() - self.start);
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Aligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aligned({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_byte_is_at_a_multiple_of_the_alignment() {
        for align in [1, 512, 4096, 65536] {
            let mut bytes = Aligned::zeroed(1000, align).unwrap();
            assert_eq!((bytes.as_ptr().addr() % align, bytes.len()), (0, 1000));
            bytes.set_len(512);
            bytes.fill(7);
            bytes.set_len(1000);
            assert!(bytes[..512] == [7; 512] && bytes[512..] == [0; 488]);
        }
        assert!(Aligned::zeroed(usize::MAX, 4096).is_err());
    }
}
