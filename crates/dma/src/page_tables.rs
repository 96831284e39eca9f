//! Page tables for clients' memory.
//!
//! The first access of this process to a part of a mapping takes a page table, of a page, which is charged
//! to this process's memory group, and stays when the client makes a hole of what it is for. A client that
//! moves a few pages about in a large sparse file would so have us allocate a five-hundredth of the
//! file. So the tables of each mapping are counted and charged, and all of them are given back when the
//! client may not have more: its next accesses are slower, and nothing else.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MremapFlags, madvise, mremap, mremap_fixed};
use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::{Mutex, lock};

use crate::error::{Errno, Error, Result};
use crate::userfault;

/// Bytes of a table: a page of the smallest size that a processor has.
const TABLE: u64 = 4096;
/// Bytes that one table is for: 512 entries of 4 KiB on x86-64. Where pages are larger a table is for more,
/// and there are fewer than are counted.
const SPAN: u64 = 2 << 20;
/// Spans whose tables are found in one table of the next level.
const SPANS: u64 = 512;
/// Tables that a mapping may have without charge: else a client whose quota is used up by one mapping
/// could not use another.
const FREE: u64 = 4;
/// Tables that are charged at once.
const BATCH: u64 = 16;

/// The tables of one mapping that was made for a client.
#[derive(Debug)]
pub(crate) struct PageTables {
    base: NonNull<u8>,
    len: usize,
    /// Whether holes of the mapping are kept.
    keeps_holes: bool,
    /// The spans that have been accessed since their tables were given back. Not the facade's atomics:
    /// whoever loses a race for a bit has a table that is not counted before the next access.
    spans: Bits,
    payer: Payer,
    counted: Mutex<Counted>,
}

/// A bit for each number.
#[derive(Debug, Default)]
struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// # Errors
    /// `ENOMEM`: no memory for so many.
    fn new(count: u64) -> Result<Self> {
        let no_memory = || Error::new(Errno::NOMEM, "no memory to count page tables in");
        let words = usize::try_from(count.div_ceil(64)).map_err(|_| no_memory())?;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).map_err(|_| no_memory())?;
        bits.resize_with(words, AtomicU64::default);
        Ok(Self(bits.into_boxed_slice()))
    }

    #[inline]
    fn place(&self, number: u64) -> (&AtomicU64, u64) {
        (&self.0[(number / 64) as usize], 1 << (number % 64))
    }

    #[inline]
    fn contains(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Whether it was not there before.
    fn insert(&self, number: u64) -> bool {
        let (word, bit) = self.place(number);
        word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

#[derive(Debug)]
struct Counted {
    /// Tables for spans.
    lower: u64,
    /// Tables in which those are found.
    upper: u64,
    /// The numbers of those.
    uppers: Bits,
    charge: Option<Charge>,
}

impl Counted {
    /// Tables that there may be without charging more.
    fn allowed(&self) -> u64 {
        FREE + self.charge.as_ref().map_or(0, |charge| charge.amount() / TABLE)
    }

    /// Counts the table for a span. `false`: there may not be more.
    fn add(&mut self, span: u64, payer: &Payer) -> bool {
        let upper = u64::from(!self.uppers.contains(span / SPANS));
        let fits = self.lower + self.upper + 1 + upper <= self.allowed();
        if !fits && !self.charge_more(payer) {
            return false;
        }
        self.count(span);
        true
    }

    fn count(&mut self, span: u64) {
        self.lower += 1;
        self.upper += u64::from(self.uppers.insert(span / SPANS));
    }

    fn charge_more(&mut self, payer: &Payer) -> bool {
        match &mut self.charge {
            Some(charge) => charge.resize(charge.amount() + BATCH * TABLE).is_ok(),
            None => {
                self.charge = payer.charge(Resource::PageTables, BATCH * TABLE).ok();
                self.charge.is_some()
            }
        }
    }
}

// SAFETY: the address is only handed to the kernel, as the place of a mapping that outlives this.
unsafe impl Send for PageTables {}
// SAFETY: as above.
unsafe impl Sync for PageTables {}

impl PageTables {
    /// Counts the tables of a mapping of `len` bytes at `base`, for which `payer` pays.
    ///
    /// # Errors
    /// `ENOMEM`: no memory to count them in.
    ///
    /// # Safety
    /// The range is one shared mapping of a file, or a private one that is never written, and stays mapped
    /// while this lives. It is registered with [`userfault`] if it `keeps_holes`.
    pub(crate) unsafe fn new(
        base: NonNull<u8>,
        len: usize,
        keeps_holes: bool,
        payer: &Payer,
    ) -> Result<Self> {
        // The mapping may begin amid a span.
        let spans = (len as u64).div_ceil(SPAN) + 1;
        let uppers = Bits::new(spans.div_ceil(SPANS))?;
        let counted = Counted { lower: 0, upper: 0, uppers, charge: None };
        Ok(Self {
            base,
            len,
            keeps_holes,
            spans: Bits::new(spans)?,
            payer: payer.clone(),
            counted: Mutex::new(counted),
        })
    }

    /// Takes note that `len` bytes at `offset`, which are in the mapping, are about to be accessed.
    #[inline]
    pub(crate) fn touch(&self, offset: u64, len: usize) {
        let start = offset + self.base.as_ptr().addr() as u64 % SPAN;
        for span in start / SPAN..=(start + len.saturating_sub(1) as u64) / SPAN {
            if !self.spans.contains(span) {
                self.touch_first(span);
            }
        }
    }

    #[cold]
    fn touch_first(&self, span: u64) {
        let mut counted = lock(&self.counted);
        if !self.spans.insert(span) || counted.add(span, &self.payer) {
            return;
        }
        // First forgotten, then given back: what is accessed in between is counted for certain.
        self.spans.clear();
        self.give_back(&mut counted);
        self.spans.insert(span);
        counted.count(span);
    }

    /// Has the kernel free the tables. What they are for stays as it is, and is found again at the next
    /// access.
    fn give_back(&self, counted: &mut Counted) {
        // Advice frees the lower ones only, but lets the rest of the process go on meanwhile.
        let done = if counted.upper * 2 <= counted.allowed() && advice_frees_tables() {
            // SAFETY: the range is one mapping of a file, of which only the places of its pages are
            // forgotten.
            unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxDontNeed) }
        } else {
            counted.upper = 0;
            counted.uppers.clear();
            // SAFETY: as above; it stays mapped.
            unsafe { self.replace() }
        };
        counted.lower = 0;
        if let Err(error) = done {
            tracing::debug!(%error, "page tables of a mapping cannot be given back");
        }
    }

    /// Puts another mapping of the same bytes in the place of this one, at once for all threads. If another
    /// thread accesses a hole before that is registered, it is filled.
    ///
    /// # Safety
    /// The range is one mapping.
    unsafe fn replace(&self) -> Result<(), Errno> {
        let (base, len) = (self.base.as_ptr().cast(), self.len);
        // SAFETY: with an old length of 0 the old mapping stays, and another one of what is shared is made.
        let other = unsafe { mremap(base, 0, len, MremapFlags::MAYMOVE) }?;
        // SAFETY: `other` is nobody else's, and has the same bytes as what it replaces.
        unsafe { mremap_fixed(other, len, len, MremapFlags::MAYMOVE, base) }?;
        if self.keeps_holes {
            // SAFETY: as the mapping that it has replaced.
            unsafe { userfault::register(self.base, len) };
        }
        Ok(())
    }
}

/// Whether the kernel frees tables when it is advised that their pages are not needed
/// (`CONFIG_PT_RECLAIM`, from Linux 6.14 on for x86-64).
fn advice_frees_tables() -> bool {
    static FREES: OnceLock<bool> = OnceLock::new();
    *FREES.get_or_init(|| {
        let name = rustix::system::uname();
        let release = name.release().to_string_lossy();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|text| text.parse().ok()).unwrap_or(0_u32);
        cfg!(target_arch = "x86_64") && (next(), next()) >= (6, 14)
    })
}

#[cfg(all(test, not(any(loom, shuttle))))]
#[path = "page_tables_tests.rs"]
mod tests;
