//! Numbers that look random, and are the same each time.

/// xorshift64*, from a seed that is not 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// One from 0, below this.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}
