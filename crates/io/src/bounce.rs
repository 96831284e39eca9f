//! Memory of our own in place of guest memory that the kernel cannot reach.
//!
//! The kernel does not fill the holes of a client's memory on our behalf: where a request comes to one
//! it fails with `EFAULT`. The rest of the request is then moved through a buffer, piece by piece.
//! Whether the memory was a hole or the client has truncated its file is found out by the copy
//! between the two.

use vfiod_buffer::zeroed;
use vfiod_dma::{Errno, Hold};

/// Most bytes of one piece. A multiple of [`ALIGN`], so that the pieces of an aligned request are
/// aligned.
const PIECE: usize = 64 << 10;
/// What files opened with `O_DIRECT` may ask for.
const ALIGN: usize = 4096;

/// A piece of a request.
pub(crate) struct Bounce {
    memory: Vec<u8>,
    /// Where in `memory` the piece begins.
    start: usize,
    len: usize,
}

impl Bounce {
    /// Room for the first piece of a request that has `rest` bytes to go.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(rest: usize) -> Result<Self, Errno> {
        let memory = zeroed(rest.min(PIECE) + ALIGN).map_err(|_| Errno::NOMEM)?;
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Ok(Self { memory, start, len: 0 })
    }

    /// Begins a piece of a request that has `rest` bytes to go.
    pub(crate) fn begin(&mut self, rest: usize) {
        self.len = rest.min(self.memory.len() - ALIGN);
    }

    /// The piece.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// Takes a piece out of guest memory, from an offset of the hold.
    ///
    /// # Errors
    /// As [`Hold::read`].
    pub(crate) fn take(&mut self, hold: &Hold, offset: usize) -> Result<(), Errno> {
        hold.read(offset, self.bytes()).map_err(|error| error.errno())
    }

    /// Puts the first `len` bytes of a piece into guest memory, which fills holes.
    ///
    /// # Errors
    /// As [`Hold::write`].
    pub(crate) fn put(&mut self, hold: &Hold, offset: usize, len: usize) -> Result<(), Errno> {
        let len = len.min(self.len);
        hold.write(offset, &self.bytes()[..len]).map_err(|error| error.errno())
    }
}
