//! MSI-X table and pending bits in a BAR (PCIe 7.7.2).
//!
//! Clients such as QEMU keep the guest's table to themselves and never write ours; so a vector
//! counts as masked only from the first time that its mask bit is written here.

use std::ops::Range;

use vfiod_core::Context;

use crate::capability::Capability;
use crate::interrupts::irq_index;

const ENTRY: usize = 16;
const CONTROL: usize = 12;

#[derive(Debug)]
pub(crate) struct Msix {
    vectors: u16,
    table_at: (u8, u64),
    pba_at: (u8, u64),
    table: Vec<u8>,
    /// For each vector, 1 if its mask bit was written.
    written: Vec<u8>,
    function_masked: bool,
}

impl Msix {
    pub(crate) fn of(capabilities: &[Capability]) -> Option<Self> {
        capabilities.iter().find_map(|capability| match capability {
            &Capability::Msix { vectors, table, pba } => {
                let mut msix = Self {
                    vectors,
                    table_at: (table.0, table.1.into()),
                    pba_at: (pba.0, pba.1.into()),
                    table: Vec::new(),
                    written: Vec::new(),
                    function_masked: false,
                };
                msix.clear();
                Some(msix)
            }
            _ => None,
        })
    }

    pub(crate) fn vectors(&self) -> u32 {
        self.vectors.into()
    }

    /// Back to power-on: every vector's mask bit is set (PCIe 7.7.2.8).
    fn clear(&mut self) {
        let vectors = usize::from(self.vectors);
        self.table = vec![0; vectors * ENTRY];
        for entry in self.table.chunks_exact_mut(ENTRY) {
            entry[CONTROL] = 1;
        }
        self.written = vec![0; vectors];
        self.function_masked = false;
    }

    pub(crate) fn reset(&mut self) {
        self.clear();
    }

    /// The table, and for each vector 1 if its mask bit was written.
    pub(crate) fn state(&self) -> (&[u8], &[u8]) {
        (&self.table, &self.written)
    }

    /// Restores a state of the same sizes. Bits that a table cannot have are dropped.
    pub(crate) fn restore(&mut self, ctx: &Context, table: &[u8], written: &[u8]) {
        self.table.copy_from_slice(table);
        for entry in self.table.chunks_exact_mut(ENTRY) {
            entry[CONTROL] &= 1;
            entry[CONTROL + 1..].fill(0);
        }
        for (own, written) in self.written.iter_mut().zip(written) {
            *own = u8::from(*written != 0);
        }
        for vector in 0..usize::from(self.vectors) {
            self.apply(ctx, vector);
        }
    }

    fn is_masked(&self, vector: usize) -> bool {
        self.function_masked
            || (self.written[vector] != 0 && self.table[vector * ENTRY + CONTROL] & 1 != 0)
    }

    fn apply(&self, ctx: &Context, vector: usize) {
        // Cannot fail: the function has as many vectors as the table.
        let _ = ctx.irqs().set_device_mask(irq_index::MSIX, vector as u32, self.is_masked(vector));
    }

    pub(crate) fn set_function_mask(&mut self, ctx: &Context, masked: bool) {
        if self.function_masked != masked {
            self.function_masked = masked;
            for vector in 0..usize::from(self.vectors) {
                self.apply(ctx, vector);
            }
        }
    }

    /// The table and the pending bits, each with its BAR and its offsets there.
    pub(crate) fn places(&self) -> [(&'static str, u8, Range<u64>); 2] {
        let place = |(bar, offset): (u8, u64), len: usize| (bar, offset..offset + len as u64);
        let (table_bar, table) = place(self.table_at, self.table.len());
        let (pba_bar, pba) = place(self.pba_at, self.pba_len());
        [("MSI-X table", table_bar, table), ("MSI-X pending bits", pba_bar, pba)]
    }

    fn pba_len(&self) -> usize {
        usize::from(self.vectors).div_ceil(64) * 8
    }

    fn table_offset(&self, bar: u8, offset: u64, len: usize) -> Option<usize> {
        within(self.table_at, bar, offset, len, self.table.len())
    }

    /// Whether an access lies in the table or the pending bits.
    pub(crate) fn serves(&self, bar: u8, offset: u64, len: usize) -> bool {
        self.table_offset(bar, offset, len).is_some()
            || within(self.pba_at, bar, offset, len, self.pba_len()).is_some()
    }

    /// Serves a read that lies in the table or the pending bits. `false` if it does not.
    pub(crate) fn read(&self, ctx: &Context, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        if let Some(at) = self.table_offset(bar, offset, data.len()) {
            data.copy_from_slice(&self.table[at..at + data.len()]);
            return true;
        }
        let Some(at) = within(self.pba_at, bar, offset, data.len(), self.pba_len()) else {
            return false;
        };
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (at + index) as u32 * 8;
            let pending = |bit: &u32| ctx.irqs().is_pending(irq_index::MSIX, first + bit);
            let count = self.vectors().saturating_sub(first).min(8);
            *byte = (0..count).filter(pending).fold(0, |byte, bit| byte | 1 << bit);
        }
        true
    }

    /// Serves a write to the table or the pending bits, which are read-only. Returns whether the access
    /// is one of these.
    pub(crate) fn write(&mut self, ctx: &Context, bar: u8, offset: u64, data: &[u8]) -> bool {
        if let Some(at) = self.table_offset(bar, offset, data.len()) {
            // Software must write whole doublewords (PCIe 7.7.2); anything else is ignored.
            if at.is_multiple_of(4) && data.len().is_multiple_of(4) {
                self.table[at..at + data.len()].copy_from_slice(data);
                for vector in at / ENTRY..(at + data.len()).div_ceil(ENTRY) {
                    let control = vector * ENTRY + CONTROL;
                    self.table[control] &= 1;
                    self.table[control + 1..control + 4].fill(0);
                    if (at..at + data.len()).contains(&control) {
                        self.written[vector] = 1;
                        self.apply(ctx, vector);
                    }
                }
            }
            return true;
        }
        within(self.pba_at, bar, offset, data.len(), self.pba_len()).is_some()
    }
}

fn within(place: (u8, u64), bar: u8, offset: u64, len: usize, size: usize) -> Option<usize> {
    let at = usize::try_from(offset.checked_sub(place.1)?).ok()?;
    (place.0 == bar && at.checked_add(len)? <= size).then_some(at)
}
