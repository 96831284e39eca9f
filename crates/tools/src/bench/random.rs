//! Numbers without a pattern that a cache or a scheduler could learn.

/// A generator (the multiplier of Knuth's MMIX).
pub(super) struct Random(u64);

impl Random {
    /// The same numbers in every run.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Other numbers in every run.
    pub(super) fn of_now() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(now.map_or(0, |now| now.as_nanos() as u64))
    }

    /// A number below `limit`, which is at most 2^32.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * limit) >> 32
    }
}
