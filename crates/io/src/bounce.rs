//! Memory of our own in place of guest memory that the kernel cannot reach.
//!
//! The kernel does not fill the holes of a client's memory on our behalf: where a request comes to one
//! it fails with `EFAULT`. The rest of the request is then moved through a buffer, piece by piece.
//! Whether the memory was a hole or the client has truncated its file is found out by the copy
//! between the two.

use std::sync::atomic::{AtomicUsize, Ordering};

use vfiod_buffer::Aligned;
use vfiod_dma::{Errno, Hold};

/// Buffers of all rings: 4 MiB, which nobody is charged for. Who gets none has buffers of its own, or asks again.
const MOST: usize = 64;

/// Those that there are.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Most bytes of one piece. A multiple of [`ALIGN`], so that the pieces of an aligned request are
/// aligned.
const PIECE: usize = 64 << 10;
/// What files opened with `O_DIRECT` may ask for.
const ALIGN: usize = 4096;

/// A place among the buffers.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let more = |count| (count < MOST).then_some(count + 1);
        COUNT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of a request.
pub(crate) struct Bounce {
    memory: Aligned,
    _place: Place,
    /// The longest piece.
    most: usize,
}

impl Bounce {
    /// Room for the first piece of a request that has `rest` bytes to go.
    ///
    /// # Errors
    /// `ENOMEM`: there is no memory, or others have all buffers.
    pub(crate) fn new(rest: usize) -> Result<Self, Errno> {
        let most = rest.min(PIECE);
        let _place = Place::take().ok_or(Errno::NOMEM)?;
        let memory = Aligned::zeroed(most, ALIGN).map_err(|_| Errno::NOMEM)?;
        Ok(Self { memory, _place, most })
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

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn no_more_buffers_are_made_than_allowed() {
        let mut all: Vec<Bounce> = (0..MOST).map(|_| Bounce::new(1).unwrap()).collect();
        assert_eq!(Bounce::new(1).err(), Some(Errno::NOMEM));
        all.pop();
        all.push(Bounce::new(1).unwrap());
        assert_eq!(Bounce::new(1).err(), Some(Errno::NOMEM));
    }
}
