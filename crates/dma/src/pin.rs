//! Accesses in flight that hold no lock: which addresses they use, and waiting for their end.

use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::mapped_file::{Access, MappedFile};
use super::{Perm, failed};
use crate::error::{Errno, Error, Result};
use vfiod_sync::{Arc, Condvar, Mutex, lock};

/// The ranges in use, and who waits for them. Few at a time: one for each large or
/// asynchronous access of one device.
#[derive(Debug, Default)]
pub(super) struct Pins {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ranges: Vec<Option<(u64, u64)>>,
    free: Vec<usize>,
    waiters: usize,
}

impl State {
    fn any(&self, hits: &impl Fn(u64, u64) -> bool) -> bool {
        self.ranges.len() > self.free.len()
            && self.ranges.iter().flatten().any(|(first, last)| hits(*first, *last))
    }
}

impl Pins {
    /// Marks `[first, last]` as in use. Called with the table locked for reading, so that an
    /// unmap, which locks it for writing before it looks here, sees it.
    pub(super) fn add(self: &Arc<Self>, first: u64, last: u64) -> Pin {
        let mut state = lock(&self.state);
        let id = state.free.pop().unwrap_or_else(|| {
            state.ranges.push(None);
            state.ranges.len() - 1
        });
        state.ranges[id] = Some((first, last));
        Pin { pins: self.clone(), id }
    }

    /// Waits until no range that `hits` is in use; whether that came about in time.
    pub(super) fn wait(&self, hits: impl Fn(u64, u64) -> bool, wait: Duration) -> bool {
        let mut state = lock(&self.state);
        if !state.any(&hits) {
            return true;
        }
        let deadline = Instant::now().checked_add(wait);
        state.waiters += 1;
        let clear = loop {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                break false;
            }
            (state, _) = self
                .released
                .wait_timeout(state, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if !state.any(&hits) {
                break true;
            }
        };
        state.waiters -= 1;
        clear
    }

    /// How many accesses are in flight.
    pub(super) fn len(&self) -> usize {
        let state = lock(&self.state);
        state.ranges.len() - state.free.len()
    }
}

/// One range in use, until it is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Arc<Pins>,
    id: usize,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = lock(&self.pins.state);
        state.ranges[self.id] = None;
        state.free.push(self.id);
        if state.waiters > 0 {
            drop(state);
            self.pins.released.notify_all();
        }
    }
}

/// Guest memory held in place for an access that takes its time: an unmap of it waits until
/// this is dropped, or fails with `EBUSY`.
///
/// What is in it may change, and go away, at any moment all the same. The methods here survive
/// that; so does the kernel, given the addresses for I/O (it says `EFAULT`). Nothing else may
/// touch them.
pub struct Pinned {
    // First, so that the mappings are kept until after the range has been given back.
    _pin: Pin,
    segments: Vec<Segment>,
    iova: u64,
    len: usize,
    perm: Perm,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) mapping: Arc<MappedFile>,
    pub(super) at: u64,
    pub(super) len: usize,
}

/// One contiguous piece of [`Pinned`] memory.
#[derive(Clone, Copy, Debug)]
pub struct PinnedSegment<'a> {
    segment: &'a Segment,
    address: NonNull<u8>,
}

impl PinnedSegment<'_> {
    /// Its address, for an `iovec`. Valid as an address as long as the [`Pinned`] lives; to be
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

impl Pinned {
    pub(super) fn new(
        pin: Pin,
        segments: Vec<Segment>,
        iova: u64,
        len: usize,
        perm: Perm,
    ) -> Result<Self> {
        for segment in &segments {
            segment
                .mapping
                .at(segment.at, segment.len)
                .ok_or_else(|| failed(Access::Gone, iova))?;
            if perm.contains(Perm::WRITE) && !segment.mapping.writable() {
                return Err(failed(Access::ReadOnly, iova));
            }
        }
        Ok(Self { _pin: pin, segments, iova, len, perm })
    }

    /// Its length in bytes, not 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The accesses that it was asked for.
    pub fn perm(&self) -> Perm {
        self.perm
    }

    /// Its pieces in order, for scatter-gather I/O.
    pub fn segments(&self) -> impl Iterator<Item = PinnedSegment<'_>> {
        self.segments.iter().filter_map(|segment| {
            let address = segment.mapping.at(segment.at, segment.len)?;
            Some(PinnedSegment { segment, address })
        })
    }

    fn each(
        &self,
        offset: usize,
        len: usize,
        perm: Perm,
        mut f: impl FnMut(&MappedFile, u64, std::ops::Range<usize>) -> Result<(), Access>,
    ) -> Result<()> {
        if !self.perm.contains(perm) {
            return Err(Error::new(Errno::ACCESS, "pinned for other accesses than this"));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(Errno::INVAL, "an access outside the pinned memory"));
        }
        let (mut done, mut skip) = (0, offset);
        for segment in &self.segments {
            if done == len {
                break;
            }
            let part = segment.len.saturating_sub(skip).min(len - done);
            if part > 0 {
                f(&segment.mapping, segment.at + skip as u64, done..done + part)
                    .map_err(|access| failed(access, self.iova))?;
                done += part;
            }
            skip = skip.saturating_sub(segment.len);
        }
        Ok(())
    }

    /// Copies out, from an offset in bytes.
    ///
    /// # Errors
    /// `EINVAL`: outside it; `EACCES`: not pinned for reading; `EFAULT`: the peer cut its file
    /// short.
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.each(offset, dst.len(), Perm::READ, |m, at, range| m.read(at, &mut dst[range]))
    }

    /// Copies in, to an offset in bytes; errors as for [`Pinned::read`].
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.each(offset, src.len(), Perm::WRITE, |m, at, range| m.write(at, &src[range]))
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({:#x}, {} bytes, {:?})", self.iova, self.len, self.perm)
    }
}
