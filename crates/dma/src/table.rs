//! The table of mappings: sorted by IO virtual address, in two levels.
//!
//! The upper level is an array of the chunks' first addresses, the lower one chunks of up to
//! [`CAPACITY`] mappings, whose addresses lie apart from the rest so that a search touches few
//! cache lines. A change moves at most one chunk's mappings and one array of addresses.
//!
//! Ends are kept as *last* addresses, so that a mapping may reach 2^64.

use vfiod_buffer::SMALL;

use crate::request::Perm;

/// Mappings in a chunk.
const CAPACITY: usize = BLOCK * BLOCK;
/// First addresses in a cache line.
const BLOCK: usize = 8;

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Last IO virtual address.
    pub(crate) last: u64,
    /// Where the mapping begins in its source.
    pub(crate) offset: u64,
    /// What is behind it: a slot of the table's owner.
    pub(crate) source: u32,
    /// Whose it is: a slot of the table's owner.
    pub(crate) owner: u16,
    /// Allowed accesses: the bits of a [`Perm`], in a byte so that a mapping has 24.
    perm: u8,
}

impl Mapping {
    const NONE: Self = Self { last: 0, offset: 0, source: 0, owner: 0, perm: 0 };

    pub(crate) fn new(last: u64, offset: u64, source: u32, owner: u16, perm: Perm) -> Self {
        Self { last, offset, source, owner, perm: perm.bits() as u8 }
    }

    #[inline]
    pub(crate) fn perm(&self) -> Perm {
        Perm::from_bits_retain(u32::from(self.perm))
    }
}

/// Its first cache line leads to the block, the block's line to the mapping.
#[derive(Debug)]
#[repr(C, align(64))]
struct Chunk {
    len: usize,
    /// The first of each block of first addresses, but for the first block.
    blocks: [u64; BLOCK - 1],
    /// First addresses; `u64::MAX` beyond `len`.
    firsts: [u64; CAPACITY],
    mappings: [Mapping; CAPACITY],
}

impl Chunk {
    fn new() -> Box<Self> {
        Box::new(Self {
            blocks: [u64::MAX; BLOCK - 1],
            firsts: [u64::MAX; CAPACITY],
            mappings: [Mapping::NONE; CAPACITY],
            len: 0,
        })
    }

    /// How many mappings begin at or below `iova`. Two cache lines, and no branch that is hard to
    /// predict.
    #[inline]
    fn up_to(&self, iova: u64) -> usize {
        if self.len == 1 {
            // Predicted, so that nothing waits for the comparison.
            return usize::from(self.firsts[0] <= iova);
        }
        let count = |firsts: &[u64]| firsts.iter().map(|f| usize::from(*f <= iova)).sum::<usize>();
        let block = if self.len <= BLOCK { 0 } else { count(&self.blocks) * BLOCK };
        // The padding may match, too.
        (block + count(&self.firsts[block..block + BLOCK])).min(self.len)
    }

    /// Brings `blocks` up to date.
    fn sample(&mut self) {
        for (block, firsts) in self.blocks.iter_mut().zip(self.firsts.chunks_exact(BLOCK).skip(1)) {
            *block = firsts[0];
        }
    }

    fn insert(&mut self, at: usize, first: u64, mapping: Mapping) {
        self.firsts.copy_within(at..self.len, at + 1);
        self.mappings.copy_within(at..self.len, at + 1);
        self.firsts[at] = first;
        self.mappings[at] = mapping;
        self.len += 1;
        self.sample();
    }

    fn remove(&mut self, range: std::ops::Range<usize>) {
        let left = self.len - range.len();
        self.firsts.copy_within(range.end..self.len, range.start);
        self.mappings.copy_within(range.end..self.len, range.start);
        self.firsts[left..self.len].fill(u64::MAX);
        self.len = left;
        self.sample();
    }

    /// Moves the mappings from `at` on to a new chunk.
    fn split(&mut self, at: usize) -> Box<Self> {
        let mut right = Self::new();
        right.append(self, at);
        self.firsts[at..self.len].fill(u64::MAX);
        self.len = at;
        self.sample();
        right
    }

    /// Copies another's mappings from `at` on to the end.
    fn append(&mut self, other: &Self, at: usize) {
        let count = other.len - at;
        self.firsts[self.len..][..count].copy_from_slice(&other.firsts[at..other.len]);
        self.mappings[self.len..][..count].copy_from_slice(&other.mappings[at..other.len]);
        self.len += count;
        self.sample();
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &Mapping)> {
        self.firsts[..self.len].iter().copied().zip(&self.mappings)
    }
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The chunks' first addresses.
    firsts: Vec<u64>,
    /// None of them empty. Boxed, so that one more moves pointers, not chunks.
    #[allow(clippy::vec_box)]
    chunks: Vec<Box<Chunk>>,
    len: usize,
}

/// A range that would cut a mapping in two.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Mappings taken out of a table. Made without allocating where it is one mapping.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    one: Option<(u64, Mapping)>,
    more: Vec<(u64, Mapping)>,
    #[allow(clippy::vec_box)]
    chunks: Vec<Box<Chunk>>,
}

impl Removed {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Mapping)> {
        let more = self.one.iter().chain(&self.more).map(|(first, mapping)| (*first, mapping));
        more.chain(self.chunks.iter().flat_map(|chunk| chunk.iter()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.one.is_none() && self.more.is_empty() && self.chunks.is_empty()
    }

    fn extend(&mut self, chunk: &Chunk, range: std::ops::Range<usize>) {
        let mut taken = range.map(|i| (chunk.firsts[i], chunk.mappings[i]));
        if self.one.is_none() {
            self.one = taken.next();
        }
        self.more.extend(taken);
    }
}

impl From<Vec<(u64, Mapping)>> for Removed {
    fn from(more: Vec<(u64, Mapping)>) -> Self {
        Self { more, ..Self::default() }
    }
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The chunk that holds, or would hold, the last mapping at or below `iova`.
    #[inline]
    fn chunk_for(&self, iova: u64) -> usize {
        match self.firsts.len() {
            0 | 1 => 0,
            _ => self.firsts.partition_point(|first| *first <= iova).saturating_sub(1),
        }
    }

    /// The mapping that `iova` lies in.
    #[inline(always)]
    pub(crate) fn find(&self, iova: u64) -> Option<(u64, &Mapping)> {
        let chunk = self.chunks.get(self.chunk_for(iova))?;
        let at = chunk.up_to(iova).checked_sub(1)?;
        let mapping = &chunk.mappings[at];
        (iova <= mapping.last).then_some((chunk.firsts[at], mapping))
    }

    /// As [`Table::find`]. Looks first where `hint` says, which is what an earlier call left there,
    /// also if the table has changed meanwhile.
    #[inline(always)]
    pub(crate) fn find_near(&self, iova: u64, hint: &mut u64) -> Option<(u64, &Mapping)> {
        let (chunk, at) = ((*hint >> 8) as usize, (*hint & 0xff) as usize);
        if let Some(chunk) = self.chunks.get(chunk)
            && at < chunk.len
            && let Some(first) = chunk.firsts.get(at)
            && let Some(mapping) = chunk.mappings.get(at)
            && *first <= iova
            && iova <= mapping.last
        {
            return Some((*first, mapping));
        }
        let number = self.chunk_for(iova);
        let chunk = self.chunks.get(number)?;
        let at = chunk.up_to(iova).checked_sub(1)?;
        let mapping = &chunk.mappings[at];
        *hint = (number as u64) << 8 | at as u64;
        (iova <= mapping.last).then_some((chunk.firsts[at], mapping))
    }

    /// A mapping that touches `[first, last]`.
    pub(crate) fn touching(&self, first: u64, last: u64) -> Option<(u64, &Mapping)> {
        let chunk = self.chunks.get(self.chunk_for(last))?;
        let at = chunk.up_to(last).checked_sub(1)?;
        let mapping = &chunk.mappings[at];
        (mapping.last >= first).then_some((chunk.firsts[at], mapping))
    }

    /// Adds a mapping; `false` if it overlaps one.
    pub(crate) fn insert(&mut self, first: u64, mapping: Mapping) -> bool {
        let chunk = self.chunk_for(mapping.last);
        let Some(into) = self.chunks.get_mut(chunk) else {
            let mut into = Chunk::new();
            into.insert(0, first, mapping);
            self.push_chunk(0, into);
            self.len += 1;
            return true;
        };
        let at = into.up_to(mapping.last);
        if at > 0 && into.mappings[at - 1].last >= first {
            return false;
        }
        self.len += 1;
        if into.len < CAPACITY {
            into.insert(at, first, mapping);
            self.firsts[chunk] = into.firsts[0];
        } else if at == CAPACITY {
            // Mappings mostly come in ascending order: leave full chunks behind.
            let mut next = Chunk::new();
            next.insert(0, first, mapping);
            self.push_chunk(chunk + 1, next);
        } else {
            let mut right = into.split(CAPACITY / 2);
            if at <= CAPACITY / 2 {
                into.insert(at, first, mapping);
            } else {
                right.insert(at - CAPACITY / 2, first, mapping);
            }
            self.firsts[chunk] = into.firsts[0];
            self.push_chunk(chunk + 1, right);
        }
        true
    }

    fn push_chunk(&mut self, at: usize, chunk: Box<Chunk>) {
        self.firsts.insert(at, chunk.firsts[0]);
        self.chunks.insert(at, chunk);
    }

    /// Takes out every mapping inside `[first, last]`; none if one would be cut.
    pub(crate) fn remove(&mut self, first: u64, last: u64) -> Result<Removed, Cut> {
        for edge in [first.checked_sub(1), Some(last)].into_iter().flatten() {
            // A mapping across the edge lies on both its sides.
            if edge < u64::MAX
                && let Some((start, mapping)) = self.find(edge)
                && mapping.last > edge
            {
                return Err(Cut { first: start, last: mapping.last });
            }
        }
        let mut removed = Removed::default();
        if self.chunks.is_empty() {
            return Ok(removed);
        }
        // What begins at or above `first` and at or below `last` is now inside.
        let below = |chunk: &Chunk, iova: u64| match iova.checked_sub(1) {
            Some(before) => chunk.up_to(before),
            None => 0,
        };
        let (left, right) = (self.chunk_for(first), self.chunk_for(last));
        let from = below(&self.chunks[left], first);
        let to = self.chunks[right].up_to(last);
        if left == right {
            if from < to {
                removed.extend(&self.chunks[left], from..to);
                self.chunks[left].remove(from..to);
            }
        } else {
            let len = self.chunks[left].len;
            removed.extend(&self.chunks[left], from..len);
            self.chunks[left].remove(from..len);
            removed.extend(&self.chunks[right], 0..to);
            self.chunks[right].remove(0..to);
            self.firsts.drain(left + 1..right);
            removed.chunks.extend(self.chunks.drain(left + 1..right));
        }
        let gone = usize::from(removed.one.is_some()) + removed.more.len();
        self.len -= gone + removed.chunks.iter().map(|chunk| chunk.len).sum::<usize>();
        if gone > 0 {
            self.tidy(left + 1);
            self.tidy(left);
        }
        Ok(removed)
    }

    /// Puts a chunk right after mappings left it: gone if empty, merged if sparse.
    fn tidy(&mut self, at: usize) {
        let Some(len) = self.chunks.get(at).map(|chunk| chunk.len) else { return };
        if len == 0 {
            self.chunks.remove(at);
            self.firsts.remove(at);
            return;
        }
        self.firsts[at] = self.chunks[at].firsts[0];
        // Well under a chunk, so that the next map does not split it again.
        if self.chunks.get(at + 1).is_some_and(|next| len + next.len <= CAPACITY / 2) {
            let next = self.chunks.remove(at + 1);
            self.firsts.remove(at + 1);
            self.chunks[at].append(&next, 0);
        }
    }

    /// Takes out everything.
    pub(crate) fn take(&mut self) -> Removed {
        let all = std::mem::take(self);
        Removed { chunks: all.chunks, ..Removed::default() }
    }

    /// Takes out mappings of an owner that begin at or above `from`: of so few chunks that what is taken is
    /// small. Where to go on, if there are more.
    pub(crate) fn take_owned(
        &mut self,
        owner: u16,
        from: u64,
        removed: &mut Vec<(u64, Mapping)>,
    ) -> Option<u64> {
        const CHUNKS: usize = SMALL / (CAPACITY * size_of::<(u64, Mapping)>());
        let start = self.chunk_for(from);
        let end = (start + CHUNKS).min(self.chunks.len());
        let next = self.firsts.get(end).copied();
        for at in (start..end).rev() {
            let chunk = &mut self.chunks[at];
            let before = removed.len();
            let mut kept = 0;
            for i in 0..chunk.len {
                if chunk.mappings[i].owner == owner {
                    removed.push((chunk.firsts[i], chunk.mappings[i]));
                } else {
                    chunk.firsts[kept] = chunk.firsts[i];
                    chunk.mappings[kept] = chunk.mappings[i];
                    kept += 1;
                }
            }
            let len = chunk.len;
            chunk.remove(kept..len);
            self.len -= removed.len() - before;
            self.tidy(at);
        }
        next
    }

    /// Puts back what was taken out; its place must be free.
    pub(crate) fn restore(&mut self, removed: &Removed) {
        for (first, mapping) in removed.iter() {
            let fits = self.insert(first, *mapping);
            debug_assert!(fits, "the place of a removed mapping was given away");
        }
    }

    /// Every mapping, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Mapping)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
