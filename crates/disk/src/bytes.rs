//! Memory that back ends read into and write from, and those that do so at once.

use vfiod_dma::Result;

/// A back end whose reads and writes wait for nothing but the memory that they are given: they are done when the call
/// returns. No lock is held while that memory is copied. Whoever calls keeps those apart that overlap. Offsets and
/// lengths are those of a [`Request`](crate::Request).
pub trait AtOnce: Send + Sync {
    /// Whether it copies from or to the memory that it is given. If not, it waits for nothing at all.
    fn copies(&self) -> bool {
        true
    }

    /// Fills memory with the bytes from an offset on.
    ///
    /// # Errors
    /// Those of the back end, and of the memory.
    fn read(&self, offset: u64, into: &mut dyn Bytes) -> Result<()>;

    /// Writes what memory has to an offset.
    ///
    /// # Errors
    /// As [`AtOnce::read`].
    fn write(&self, offset: u64, from: &mut dyn Bytes) -> Result<()>;
}

/// Memory that a back end reads into, or writes from.
#[allow(clippy::len_without_is_empty)]
pub trait Bytes {
    /// Its length in bytes.
    fn len(&self) -> usize;

    /// Copies bytes into it, from an offset in it.
    ///
    /// # Errors
    /// `EINVAL`: past its end; those of the memory.
    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()>;

    /// Copies bytes out of it, from an offset in it.
    ///
    /// # Errors
    /// As [`Bytes::put`].
    fn take(&mut self, at: usize, bytes: &mut [u8]) -> Result<()>;
}
