//! Memory of our own in place of guest memory that the kernel cannot reach.
//!
//! The kernel does not fill the holes of a client's memory on our behalf: where a request comes to one
//! it fails with `EFAULT`. The rest of the request is then moved through a buffer, piece by piece.
//! Whether the memory was a hole or the client has truncated its file is found out by the copy
//! between the two.

use vfiod_buffer::Aligned;
use vfiod_dma::{Errno, Hold};

/// Most bytes of one piece. A multiple of [`ALIGN`], so that the pieces of an aligned request are
/// aligned.
const PIECE: usize = 64 << 10;
/// What files opened with `O_DIRECT` may ask for.
const ALIGN: usize = 4096;

/// A piece of a request.
pub(crate) struct Bounce {
    memory: Aligned,
    /// The longest piece.
    most: usize,
}

impl Bounce {
    /// Room for the first piece of a request that has `rest` bytes to go.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(rest: usize) -> Result<Self, Errno> {
        let most = rest.min(PIECE);
        let memory = Aligned::zeroed(most, ALIGN).map_err(|_| Errno::NOMEM)?;
        Ok(Self { memory, most })
    }

    /// Begins a piece of a request that has `rest` bytes to go.
    pub(crate) fn begin(&mut self, rest: usize) {
        self.memory.set_len(rest.min(self.most));
    }

    /// The piece.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Takes a piece out of guest memory, from an offset of the holds.
    ///
    /// # Errors
    /// As [`Hold::read`].
    pub(crate) fn take(&mut self, holds: &[Hold], offset: usize) -> Result<(), Errno> {
        let piece = self.bytes();
        for (hold, at, part) in Hold::parts(holds, offset, piece.len()) {
            hold.read(at, &mut piece[part]).map_err(|error| error.errno())?;
        }
        Ok(())
    }

    /// Puts the first `len` bytes of a piece into guest memory, which fills holes.
    ///
    /// # Errors
    /// As [`Hold::write`].
    pub(crate) fn put(&mut self, holds: &[Hold], offset: usize, len: usize) -> Result<(), Errno> {
        let piece = self.bytes();
        for (hold, at, part) in Hold::parts(holds, offset, len.min(piece.len())) {
            hold.write(at, &piece[part]).map_err(|error| error.errno())?;
        }
        Ok(())
    }
}
