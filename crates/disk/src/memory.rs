//! A disk in memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use vfiod_buffer::{NoMemory, copy_of, zeroed};
use vfiod_dma::{Errno, Error, Result};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::Runtime;

use crate::backend::{About, Backend, Channel};
use crate::bytes::{AtOnce, Bytes};
use crate::limits::Limits;
use crate::pending::Pending;
use crate::request::{Done, Request};

/// Bytes that are allocated together.
const PIECE: u64 = 64 << 10;
/// The smallest block.
const BLOCK: u32 = 512;
/// Bytes that are copied at a time from what is written.
const COPIED: usize = 16 << 10;

thread_local! {
    /// What is being written, which is copied before the lock is taken. Taken out while it is used.
    static BYTES: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Allocated bytes of the disk. Whoever reads them keeps them; who changes them meanwhile has a copy.
type Piece = Arc<Vec<u8>>;

/// A disk in memory of this process, which is allocated as it is written, and given back when it is
/// deallocated. Requests that overlap are kept apart by the [`Disk`](crate::Disk).
///
/// Its lock is not held while anything else than its own memory is copied: the copy of guest memory may have to wait
/// for whoever owns that.
pub struct Memory {
    capacity: u64,
    /// By their number; what is missing reads as zeroes.
    pieces: Mutex<BTreeMap<u64, Piece>>,
}

impl Memory {
    /// A disk of zeroes.
    ///
    /// # Errors
    /// `EINVAL`: the capacity is 0, above 2^63, or no multiple of 512.
    pub fn new(capacity: u64) -> Result<Arc<Self>> {
        if capacity == 0 || capacity > i64::MAX as u64 || !capacity.is_multiple_of(BLOCK.into()) {
            let what = format!("a disk of {capacity} bytes: the size is a multiple of 512, not 0");
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(Arc::new(Self { capacity, pieces: Mutex::default() }))
    }

    /// Bytes that are allocated.
    pub fn allocated(&self) -> u64 {
        lock(&self.pieces).len() as u64 * PIECE
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.capacity) {
            let what = format!("{len} bytes at {offset:#x} of a disk of {}", self.capacity);
            return Err(Error::new(Errno::NXIO, what));
        }
        Ok(())
    }

    /// The parts of a range that lie in one piece each: its number, where in it, and where in the range.
    fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done;
            let part = (PIECE - at % PIECE).min(len - done);
            let range = done as usize..(done + part) as usize;
            done += part;
            (part > 0).then_some((at / PIECE, (at % PIECE) as usize, range))
        })
    }

    fn clear(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let mut pieces = lock(&self.pieces);
        let end = offset + len;
        // Whole pieces at once: the range may be the whole disk, of which little is allocated.
        let whole = offset.div_ceil(PIECE)..end / PIECE;
        if whole.start < whole.end {
            let mut tail = pieces.split_off(&whole.start);
            pieces.append(&mut tail.split_off(&whole.end));
        }
        let mut clear = |from: u64, to: u64| -> Result<()> {
            for (piece, at, range) in Self::parts(from, to.saturating_sub(from)) {
                if let Some(piece) = pieces.get_mut(&piece) {
                    own(piece)?[at..at + range.len()].fill(0);
                }
            }
            Ok(())
        };
        if whole.start < whole.end {
            clear(offset, whole.start * PIECE)?;
            clear(whole.end * PIECE, end)
        } else {
            clear(offset, end)
        }
    }

    /// Changes allocated bytes, which are allocated if there are none.
    fn change(&self, piece: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut pieces = lock(&self.pieces);
        let piece = match pieces.entry(piece) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(Arc::new(zeroed(PIECE as usize)?)),
        };
        change(own(piece)?);
        Ok(())
    }

    fn perform(&self, request: Request) -> Done {
        let (result, buffer) = match request {
            Request::Read { offset, mut buffer } => (self.read(offset, &mut buffer), Some(buffer)),
            Request::Write { offset, mut buffer, durable: _ } => {
                (self.write(offset, &mut buffer), Some(buffer))
            }
            Request::Flush => (Ok(()), None),
            Request::Zero { offset, len, .. } | Request::Deallocate { offset, len } => {
                (self.clear(offset, len), None)
            }
        };
        Done { result: result.map_err(Into::into), buffer }
    }
}

/// The bytes of a piece, which nobody else reads.
fn own(piece: &mut Piece) -> Result<&mut [u8], NoMemory> {
    if Arc::get_mut(piece).is_none() {
        *piece = Arc::new(copy_of(piece)?);
    }
    Ok(Arc::get_mut(piece).map_or(&mut [], Vec::as_mut_slice))
}

impl AtOnce for Memory {
    fn read(&self, offset: u64, into: &mut dyn Bytes) -> Result<()> {
        static ZEROES: [u8; PIECE as usize] = [0; PIECE as usize];
        let len = into.len() as u64;
        self.check(offset, len)?;
        for (piece, at, range) in Self::parts(offset, len) {
            let piece = lock(&self.pieces).get(&piece).cloned();
            let bytes = piece.as_ref().map_or(ZEROES.as_slice(), |piece| piece.as_slice());
            into.put(range.start, &bytes[at..at + range.len()])?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &mut dyn Bytes) -> Result<()> {
        let len = from.len() as u64;
        self.check(offset, len)?;
        let mut copied = BYTES.take();
        vfiod_buffer::grow(&mut copied, COPIED)?;
        let mut parts = Self::parts(offset, len);
        let written = parts.try_for_each(|(piece, at, range)| {
            for start in range.clone().step_by(COPIED) {
                let bytes = &mut copied[..COPIED.min(range.end - start)];
                from.take(start, bytes)?;
                let at = at + (start - range.start);
                self.change(piece, |piece| piece[at..at + bytes.len()].copy_from_slice(bytes))?;
            }
            Ok(())
        });
        BYTES.set(copied);
        written
    }
}

impl Backend for Memory {
    fn limits(&self) -> Limits {
        Limits {
            capacity: self.capacity,
            block: BLOCK,
            atomic_write: 4096,
            preferred_write: 4096,
            read_only: false,
            volatile: false,
            deallocate: Some(PIECE as u32),
            deallocated_reads_zero: true,
            max_range: self.capacity,
        }
    }

    fn about(&self) -> About {
        About { kind: "memory", ..About::default() }
    }

    fn connect(self: Arc<Self>, _runtime: &Runtime) -> Result<Arc<dyn Channel>> {
        Ok(self)
    }
}

impl Channel for Memory {
    fn start(&self, request: Request) -> Pending {
        Pending::ended(self.perform(request))
    }

    fn at_once(&self) -> Option<&dyn AtOnce> {
        Some(self)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Buffer;

    fn read(disk: &Memory, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = Buffer::Own(vec![0xee; len]);
        disk.read(offset, &mut buffer).unwrap();
        let Buffer::Own(bytes) = buffer else { unreachable!() };
        bytes
    }

    #[test]
    fn bytes_across_pieces_come_back_and_others_stay_zero() {
        let disk = Memory::new(1 << 20).unwrap();
        let bytes: Vec<u8> = (0..3 * PIECE).map(|n| (n % 251) as u8 + 1).collect();
        disk.write(PIECE / 2, &mut Buffer::Own(bytes.clone())).unwrap();
        assert_eq!(read(&disk, PIECE / 2, bytes.len()), bytes);
        assert_eq!(read(&disk, 0, PIECE as usize / 2), vec![0; PIECE as usize / 2]);
        assert_eq!(disk.allocated(), 4 * PIECE);
    }

    #[test]
    fn cleared_range_reads_zero_and_gives_whole_pieces_back() {
        let disk = Memory::new(1 << 20).unwrap();
        let all = vec![7; 1 << 20];
        for (offset, len, left) in
            [(512, 512, 16), (PIECE - 512, 1024, 16), (PIECE / 2, 2 * PIECE, 15), (0, 1 << 20, 0)]
        {
            disk.write(0, &mut Buffer::Own(all.clone())).unwrap();
            disk.clear(offset, len).unwrap();
            let mut expected = all.clone();
            expected[offset as usize..(offset + len) as usize].fill(0);
            assert!(read(&disk, 0, all.len()) == expected, "{len} bytes at {offset}");
            assert_eq!(disk.allocated(), left * PIECE, "{len} bytes at {offset}");
        }
    }

    #[test]
    fn range_past_the_end_is_refused() {
        let disk = Memory::new(1 << 20).unwrap();
        assert!(disk.write((1 << 20) - 512, &mut Buffer::Own(vec![0; 1024])).is_err());
        assert!(disk.clear(u64::MAX - 511, 512).is_err());
        for bad in [0, 511, 1 << 63] {
            assert_eq!(Memory::new(bad).unwrap_err().errno(), Errno::INVAL, "{bad}");
        }
    }
}
