//! The Timestamp feature (5.27.1.11): a clock that the host sets.

use std::time::SystemTime;

/// Bits of the time: 48.
const MASK: u64 = (1 << 48) - 1;

/// The host's clock, as what it is ahead of the clock of this machine: so it goes on when the controller is
/// saved and restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp {
    /// Milliseconds; the sum wraps around.
    pub(crate) ahead: u64,
    /// The host has set it since the last reset (Timestamp Origin).
    pub(crate) is_set: bool,
}

impl Timestamp {
    /// Begins at 0, as after a Controller Level Reset.
    pub(crate) fn reset() -> Self {
        Self { ahead: now().wrapping_neg(), is_set: false }
    }

    /// What the host has set.
    pub(crate) fn of_host(bytes: [u8; 8]) -> Self {
        let time = u64::from_le_bytes(bytes) & MASK;
        Self { ahead: time.wrapping_sub(now()), is_set: true }
    }

    /// The data structure: the time, origin, and that the clock may have stood still.
    pub(crate) fn encode(self) -> [u8; 8] {
        let mut bytes = (now().wrapping_add(self.ahead) & MASK).to_le_bytes();
        bytes[6] = u8::from(self.is_set) << 1 | 1;
        bytes
    }
}

/// Milliseconds of this machine's clock.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
