//! Memory of the driver that the controller reaches.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::BorrowedFd;
use vfiod_dma::memory::SharedMemory;

use crate::error::{Error, Result};

/// Bytes of a memory page: CC.MPS is 0.
pub(crate) const PAGE: u64 = 4096;
/// The IO virtual address of the first byte.
pub(crate) const BASE: u64 = 1 << 32;

/// Memory that the controller reaches, one memfd. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<SharedMemory>,
    /// What is free, ascending, no two adjoining.
    free: Mutex<Vec<Range<u64>>>,
}

impl Memory {
    /// Memory of `size` bytes, a multiple of the page size.
    pub(crate) fn new(size: u64) -> Result<Self> {
        let shared = SharedMemory::new("nvme-driver", size)?;
        let whole = 0..size;
        Ok(Self(Arc::new(Inner { shared, free: Mutex::new(vec![whole]) })))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.shared.fd()
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.shared.size()
    }

    /// Takes `len` bytes, which begin at a page. What they hold is undefined. They are free again when the
    /// last clone is dropped.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn allocate(&self, len: usize) -> Result<Arc<Buffer>> {
        let size = (len.max(1) as u64).next_multiple_of(PAGE);
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.iter().position(|range| range.end - range.start >= size);
        let at = at.ok_or(Error::NoMemory(len))?;
        let start = free[at].start;
        free[at].start += size;
        if free[at].is_empty() {
            free.remove(at);
        }
        Ok(Arc::new(Buffer { memory: self.0.clone(), range: start..start + size, len }))
    }
}

/// A piece of [`Memory`].
///
/// The controller writes it while a command is in flight: what is read meanwhile may be old or new.
#[derive(Debug)]
pub struct Buffer {
    memory: Arc<Inner>,
    range: Range<u64>,
    len: usize,
}

impl Buffer {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the controller finds it.
    pub fn address(&self) -> u64 {
        BASE + self.range.start
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// Past the end of the buffer.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let at = self.place(offset, bytes.len());
        self.memory.shared.read(at, bytes).expect("a buffer is inside the memory");
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// Past the end of the buffer.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let at = self.place(offset, bytes.len());
        self.memory.shared.write(at, bytes).expect("a buffer is inside the memory");
    }

    /// Reads an aligned dword in one piece; what is read after it is not older.
    pub(crate) fn load32(&self, offset: usize) -> u32 {
        let at = self.place(offset, 4);
        u32::from_le(self.memory.shared.load(at).expect("a buffer is inside the memory"))
    }

    /// Writes an aligned dword in one piece; what was written before it is there before.
    pub(crate) fn store32(&self, offset: usize, value: u32) {
        let at = self.place(offset, 4);
        let stored = self.memory.shared.store(at, value.to_le(), Ordering::Release);
        stored.expect("a buffer is inside the memory");
    }

    pub(crate) fn zero(&self) {
        let Range { start, end } = self.range;
        self.memory.shared.fill(start, end - start, 0).expect("a buffer is inside the memory");
    }

    fn place(&self, offset: usize, len: usize) -> u64 {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        assert!(end.is_some(), "{len} bytes at {offset} of a buffer of {} bytes", self.len);
        self.range.start + offset as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.memory.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.partition_point(|range| range.start < self.range.start);
        free.insert(at, self.range.clone());
        free.dedup_by(|next, before| {
            let adjoins = before.end == next.start;
            if adjoins {
                before.end = next.end;
            }
            adjoins
        });
    }
}

/// The data of a command: a buffer, or a part of one. The queue keeps the buffer until the command has
/// completed.
#[derive(Clone, Debug)]
pub struct Data {
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) range: Range<usize>,
}

impl Data {
    /// All of a buffer.
    pub fn of(buffer: &Arc<Buffer>) -> Self {
        Self { buffer: buffer.clone(), range: 0..buffer.len }
    }

    /// Part of a buffer, by offsets in it. An offset that is no multiple of 4 is refused by the controller.
    ///
    /// # Panics
    /// The range is not inside the buffer.
    pub fn part(buffer: &Arc<Buffer>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len, "{range:?} of {}", buffer.len);
        Self { buffer: buffer.clone(), range }
    }

    /// The addresses of the pages behind the first, and that of the data (4.1.1).
    pub(crate) fn pages(&self) -> (u64, Range<u64>) {
        let first = self.buffer.address() + self.range.start as u64;
        let end = self.buffer.address() + self.range.end as u64;
        let second = (first / PAGE + 1) * PAGE;
        (first, second..end.max(second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_free_again_in_one_piece() {
        let memory = Memory::new(8 * PAGE).unwrap();
        let buffers: Vec<_> = (0..8).map(|_| memory.allocate(100).unwrap()).collect();
        assert!(matches!(memory.allocate(1), Err(Error::NoMemory(1))));
        let places: Vec<u64> = buffers.iter().map(|buffer| buffer.address()).collect();
        assert!(places.is_sorted() && places[7] - places[0] == 7 * PAGE);
        // In another order than they were taken.
        for at in [1, 3, 5, 7, 0, 2, 4, 6] {
            drop(buffers[at].clone());
        }
        let mut buffers: Vec<_> = buffers.into_iter().map(Some).collect();
        for at in [1, 3, 5, 7, 0, 2, 4, 6] {
            buffers[at] = None;
        }
        assert!(memory.allocate(8 * PAGE as usize).is_ok());
    }
}
