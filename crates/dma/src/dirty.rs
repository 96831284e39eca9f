//! Which pages of an address space devices have written: the log behind VFIO's dirty tracking.
//!
//! The log has a bit for each page of 4 KiB of IO virtual addresses, and memory only for the
//! neighbourhoods of pages that were written. A page is marked *after* it has been written: a
//! report that takes the mark away before the client reads the page cannot miss anything.
//!
//! Whoever starts a log pays for its memory as it grows. A device writes where its client tells it, and
//! its writes are not to fail for a log: where the client may have no more memory, the log is given up,
//! and its reports fail until it is started anew.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};

use vfiod_quota::{Charge, Exceeded, Payer, Resource};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Arc, RwLock, read, write};

use crate::error::{Errno, Error, Result};

/// Bytes in a page of the log.
const PAGE: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;
/// Pages in one chunk of the log: 16 MiB of addresses.
const CHUNK_PAGES: u64 = 1 << CHUNK_SHIFT;
const CHUNK_SHIFT: u32 = 12;
/// Chunks that a log may take: 32 MiB of memory. A device that writes to more places marks all.
const CHUNKS: usize = 1 << 16;
/// Memory that a chunk is charged as, bytes: its bits, and what finds it.
const CHUNK: u64 = CHUNK_PAGES / 8 + 128;
/// Chunks that are charged at once.
const CHARGED: u64 = 64;

type Chunk = [AtomicU64; CHUNK_PAGES as usize / 64];

/// The pages of one space that have been written since logging was started.
#[derive(Debug, Default)]
pub(crate) struct DirtyLog {
    on: AtomicBool,
    pages: RwLock<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// There were too many chunks: every page counts as written.
    all: bool,
    /// What is paid for the chunks.
    charge: Option<Charge>,
    /// Why a chunk could not be paid for. Then there are no marks any more.
    given_up: Option<Exceeded>,
}

/// What so many chunks are charged as, bytes.
fn charged(chunks: usize) -> u64 {
    (chunks as u64).next_multiple_of(CHARGED) * CHUNK
}

impl Pages {
    /// Whether a mark makes no difference any more.
    fn is_final(&self) -> bool {
        self.all || self.given_up.is_some()
    }

    /// Has one chunk more paid for.
    fn charge_next(&mut self) -> Result<(), Exceeded> {
        let bytes = charged(self.chunks.len() + 1);
        match &mut self.charge {
            Some(charge) if charge.amount() < bytes => charge.resize(bytes),
            Some(_) | None => Ok(()),
        }
    }

    /// Gives back what is paid for many chunks more than there are.
    fn settle(&mut self) {
        let bytes = charged(self.chunks.len().max(1));
        if let Some(charge) = &mut self.charge
            && charge.amount() > bytes + CHARGED * CHUNK
        {
            // Less never fails.
            let _ = charge.resize(bytes);
        }
    }

    /// Gives up the log. Returns its chunks, to be dropped once no lock is held.
    fn give_up(&mut self, why: Exceeded) -> BTreeMap<u64, Box<Chunk>> {
        self.given_up = Some(why);
        let chunks = std::mem::take(&mut self.chunks);
        self.settle();
        chunks
    }
}

/// What a report does with the marks that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// They are reported again by the next report.
    Keep,
    /// They are taken away. A page that lies only partly in the range keeps its mark.
    Clear,
}

/// How many bytes a bitmap has, with a bit for each page of `page_size` of a range of `size`
/// bytes: whole 64-bit words, as VFIO counts them. `None` if that is more than a `usize`.
pub fn dirty_bitmap_len(size: u64, page_size: u64) -> Option<usize> {
    let words =
        size.checked_div(page_size)?.checked_add(u64::from(!size.is_multiple_of(page_size)))?;
    usize::try_from(words.div_ceil(64)).ok()?.checked_mul(8)
}

impl DirtyLog {
    /// Whether logging is on. While it is off, this is all that is done.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// Logs from now on; `false` if that was so before. `payer` pays for the log's memory.
    ///
    /// # Errors
    /// `ENOMEM`: more memory than the payer's user may have.
    pub(crate) fn start(&self, payer: Option<&Payer>) -> Result<bool> {
        let mut pages = write(&self.pages);
        if self.is_on() {
            return Ok(false);
        }
        let pay = |payer: &Payer| payer.charge(Resource::Memory, charged(1));
        pages.charge = payer.map(pay).transpose()?;
        self.on.store(true, Ordering::SeqCst);
        Ok(true)
    }

    /// Logs no more, and forgets every mark; `false` if it did not log.
    pub(crate) fn stop(&self) -> bool {
        let mut pages = write(&self.pages);
        let was = self.on.swap(false, Ordering::SeqCst);
        let before = std::mem::take(&mut *pages);
        drop(pages);
        drop(before);
        was
    }

    /// Marks the pages of a range that has been written. `len` is not 0.
    #[cold]
    pub(crate) fn mark(&self, iova: u64, len: usize) {
        if !self.is_on() {
            return;
        }
        let last = iova.saturating_add(len as u64 - 1) >> PAGE_SHIFT;
        let mut page = iova >> PAGE_SHIFT;
        while page <= last {
            let end = last.min(page | (CHUNK_PAGES - 1));
            self.mark_in_chunk(page, end);
            page = end + 1;
        }
    }

    /// Marks pages of one chunk.
    fn mark_in_chunk(&self, first: u64, last: u64) {
        let number = first >> CHUNK_SHIFT;
        let set = |chunk: &Chunk| {
            for (word, bits) in words(first % CHUNK_PAGES, last % CHUNK_PAGES) {
                // Looked at first: a page that is written again and again stays in every
                // processor's cache.
                if chunk[word].load(StdOrdering::Relaxed) & bits != bits {
                    chunk[word].fetch_or(bits, StdOrdering::Relaxed);
                }
            }
        };
        let pages = read(&self.pages);
        if let Some(chunk) = pages.chunks.get(&number) {
            return set(chunk);
        }
        if pages.is_final() {
            return;
        }
        drop(pages);
        let mut pages = write(&self.pages);
        if !self.is_on() || pages.is_final() {
            return;
        }
        if !pages.chunks.contains_key(&number) {
            if pages.chunks.len() >= CHUNKS {
                pages.all = true;
                return;
            }
            if let Err(exceeded) = pages.charge_next() {
                let chunks = pages.give_up(exceeded);
                drop(pages);
                drop(chunks);
                return;
            }
        }
        let empty = || Box::new([const { AtomicU64::new(0) }; CHUNK_PAGES as usize / 64]);
        set(pages.chunks.entry(number).or_insert_with(empty));
    }

    /// Sets the bits of a bitmap for the pages of `[iova, last]` that have been written: a bit for
    /// each `page_size` bytes from `iova` on.
    ///
    /// # Errors
    /// `EINVAL`: logging is off, `page_size` is not a power of two, or the bitmap is too short; `ENOMEM`:
    /// the log was given up.
    pub(crate) fn report(
        &self,
        iova: u64,
        last: u64,
        page_size: u64,
        marks: Marks,
        bitmap: &mut [u8],
    ) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Errno::INVAL, what));
        if !page_size.is_power_of_two() {
            return invalid(format!("dirty pages of {page_size} bytes: not a power of two"));
        }
        if !self.is_on() {
            return invalid("dirty logging is off".to_owned());
        }
        let pages_wanted = (last - iova) / page_size;
        if pages_wanted / 8 >= bitmap.len() as u64 {
            let bytes = pages_wanted / 8 + 1;
            return invalid(format!("a bitmap of {} bytes, not {bytes}", bitmap.len()));
        }
        // For writing: a mark must not come between its report and its removal unseen.
        let mut pages = write(&self.pages);
        if let Some(exceeded) = pages.given_up {
            let what = format!(
                "the log of dirty pages was given up: {exceeded}. Any page may be written; stop it, and \
                 start it anew"
            );
            return Err(Error::new(exceeded.errno(), what));
        }
        if pages.all {
            set_bits(bitmap, 0, pages_wanted);
            return Ok(());
        }
        let (first_page, last_page) = (iova >> PAGE_SHIFT, last >> PAGE_SHIFT);
        for (number, chunk) in
            pages.chunks.range_mut(first_page >> CHUNK_SHIFT..=last_page >> CHUNK_SHIFT)
        {
            for (at, word) in chunk.iter_mut().enumerate() {
                let word = word.get_mut();
                let mut left = *word;
                while left != 0 {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    let page = (number << CHUNK_SHIFT) + at as u64 * 64 + u64::from(bit);
                    if page < first_page || page > last_page {
                        continue;
                    }
                    let (start, end) = (page << PAGE_SHIFT, (page << PAGE_SHIFT) + (PAGE - 1));
                    let from = (start.max(iova) - iova) / page_size;
                    set_bits(bitmap, from, (end.min(last) - iova) / page_size);
                    if marks == Marks::Clear && start >= iova && end <= last {
                        *word &= !(1 << bit);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes away the marks of the whole pages of `[iova, last]`, where nothing is mapped now.
    pub(crate) fn forget(&self, iova: u64, last: u64) {
        if !self.is_on() {
            return;
        }
        let first_page = iova.div_ceil(PAGE);
        let Some(last_page) =
            (last >> PAGE_SHIFT).checked_sub(u64::from(last & (PAGE - 1) != PAGE - 1))
        else {
            return;
        };
        if first_page > last_page {
            return;
        }
        let mut pages = write(&self.pages);
        let (first_chunk, last_chunk) = (first_page >> CHUNK_SHIFT, last_page >> CHUNK_SHIFT);
        for (number, chunk) in pages.chunks.range_mut(first_chunk..=last_chunk) {
            let start = number << CHUNK_SHIFT;
            let from = first_page.max(start) - start;
            let to = last_page.min(start + (CHUNK_PAGES - 1)) - start;
            for (word, bits) in words(from, to) {
                *chunk[word].get_mut() &= !bits;
            }
        }
        pages.chunks.retain(|number, chunk| {
            (*number < first_chunk || *number > last_chunk)
                || chunk.iter_mut().any(|word| *word.get_mut() != 0)
        });
        pages.settle();
    }
}

/// The words of a chunk that hold the bits `first..=last`, and which bits of each.
fn words(first: u64, last: u64) -> impl Iterator<Item = (usize, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let low = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
        let high = if word == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
        (word as usize, low & high)
    })
}

/// Sets the bits `first..=last` of a bitmap in VFIO's order: bit 0 of byte 0 is the first.
fn set_bits(bitmap: &mut [u8], first: u64, last: u64) {
    let (first_byte, last_byte) = ((first / 8) as usize, (last / 8) as usize);
    let low = u8::MAX << (first % 8);
    let high = u8::MAX >> (7 - last % 8);
    if first_byte == last_byte {
        bitmap[first_byte] |= low & high;
        return;
    }
    bitmap[first_byte] |= low;
    bitmap[first_byte + 1..last_byte].fill(u8::MAX);
    bitmap[last_byte] |= high;
}

/// A range that is being written: its pages are marked when this is dropped.
#[derive(Debug)]
pub(crate) struct Writing {
    log: Arc<DirtyLog>,
    iova: u64,
    len: usize,
}

impl Writing {
    /// `len` is not 0.
    pub(crate) fn new(log: &Arc<DirtyLog>, iova: u64, len: usize) -> Self {
        Self { log: log.clone(), iova, len }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.log.is_on() {
            self.log.mark(self.iova, self.len);
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
#[path = "dirty_tests.rs"]
mod tests;
