//! Guest memory that is held for a request to the kernel, such as one of io_uring.

use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use smallvec::SmallVec;
use vfiod_sync::Arc;

use crate::dirty::DirtyLog;
use crate::error::{Errno, Error, Result};
use crate::in_flight::Flight;
use crate::map::failed;
use crate::mapped_file::{Access, MappedFile};
use crate::ranges::InUse;
use crate::request::Perm;

/// A range of guest memory, held for one request to the kernel: an unmap of it waits until this is
/// dropped, or fails with `EBUSY`.
///
/// A hold is moved into the request and comes back with its completion. When it is dropped, its
/// pages are marked as written if it was taken for writing. Who needs memory for longer than one
/// request translates at each use.
///
/// The client may change the memory, and truncate the file behind it, at any moment all the same.
/// The methods here survive that. So does the kernel when it is given the addresses for I/O: the
/// request fails with `EFAULT`, also where the file has a hole, which [`Hold::read`] and
/// [`Hold::write`] pass. Nothing else may touch them.
pub struct Hold {
    /// Where its pages are marked when it ends, if it was taken for writing.
    log: Option<Arc<DirtyLog>>,
    // The memory is kept until the range was given back.
    _in_use: InUse,
    _flight: Flight,
    segments: Segments,
    iova: u64,
    len: usize,
    perm: Perm,
}

/// Most holds are of one mapping: that needs no memory.
pub(crate) type Segments = SmallVec<[Segment; 1]>;

/// A contiguous piece of a mapped file.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) mapped: Arc<MappedFile>,
    pub(crate) at: u64,
    pub(crate) len: usize,
}

/// One contiguous piece of a [`Hold`].
#[derive(Clone, Copy, Debug)]
pub struct HoldSegment<'a> {
    segment: &'a Segment,
    address: NonNull<u8>,
}

impl HoldSegment<'_> {
    /// Its address, for an `iovec`. Valid as an address as long as the [`Hold`] lives; to be
    /// touched by the kernel only.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Its length in bytes, not 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.segment.len
    }
}

impl Hold {
    /// # Errors
    /// `EFAULT`: outside the mapped files; `EACCES`: a file is not open for writing.
    pub(crate) fn new(
        (log, in_use, flight): (Option<Arc<DirtyLog>>, InUse, Flight),
        segments: Segments,
        iova: u64,
        len: usize,
        perm: Perm,
    ) -> Result<Self> {
        let hold = Self { log, _in_use: in_use, _flight: flight, segments, iova, len, perm };
        for Segment { mapped, at, len } in &hold.segments {
            if !mapped.contains(*at, *len) {
                return Err(failed(Access::Gone, iova));
            }
            if perm.contains(Perm::WRITE) && !mapped.writable() {
                return Err(failed(Access::ReadOnly, iova));
            }
        }
        Ok(hold)
    }

    /// Its first address.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Its length in bytes, not 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The accesses that it was taken for.
    pub fn perm(&self) -> Perm {
        self.perm
    }

    /// Its pieces in order, for vectored I/O.
    pub fn segments(&self) -> impl Iterator<Item = HoldSegment<'_>> {
        self.segments.iter().filter_map(|segment| {
            let address = segment.mapped.at(segment.at, segment.len)?;
            Some(HoldSegment { segment, address })
        })
    }

    fn each(
        &self,
        offset: usize,
        len: usize,
        perm: Perm,
        mut f: impl FnMut(&MappedFile, u64, Range<usize>) -> Result<(), Access>,
    ) -> Result<()> {
        if !self.perm.contains(perm) {
            return Err(Error::new(Errno::ACCESS, "memory held for other accesses than this"));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(Errno::INVAL, "an access outside the held memory"));
        }
        let (mut done, mut skip) = (0, offset);
        for segment in &self.segments {
            if done == len {
                break;
            }
            let part = segment.len.saturating_sub(skip).min(len - done);
            if part > 0 {
                f(&segment.mapped, segment.at + skip as u64, done..done + part)
                    .map_err(|access| failed(access, self.iova))?;
                done += part;
            }
            skip = skip.saturating_sub(segment.len);
        }
        Ok(())
    }

    /// The parts of a range of several holds, one behind the other: the hold, the offset in it, and which
    /// bytes of the range. They end where the holds do.
    pub fn parts(
        holds: &[Self],
        offset: usize,
        len: usize,
    ) -> impl Iterator<Item = (&Self, usize, Range<usize>)> {
        let (mut skip, mut done) = (offset, 0);
        holds.iter().filter_map(move |hold| {
            let at = skip.min(hold.len());
            skip -= at;
            let part = done..done + (hold.len() - at).min(len - done);
            done = part.end;
            (!part.is_empty()).then_some((hold, at, part))
        })
    }

    /// Copies out, from an offset in bytes.
    ///
    /// # Errors
    /// `EINVAL`: outside the held memory; `EACCES`: not held for reading; `EFAULT`: the client
    /// truncated its file.
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.each(offset, dst.len(), Perm::READ, |m, at, part| m.read(at, &mut dst[part]))
    }

    /// Copies in, to an offset in bytes.
    ///
    /// # Errors
    /// As [`Hold::read`]; `EACCES`: not held for writing.
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.each(offset, src.len(), Perm::WRITE, |m, at, part| m.write(at, &src[part]))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Pages are marked before the range is given back.
        if let Some(log) = &self.log
            && log.is_on()
        {
            log.mark(self.iova, self.len);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({:#x}, {} bytes, {:?})", self.iova, self.len, self.perm)
    }
}
