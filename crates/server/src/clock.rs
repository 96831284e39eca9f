//! The clock that the protocol's times are of.

use rustix::time::{ClockId, clock_gettime};
use vfiod_protocol::Time;

/// Now by `CLOCK_MONOTONIC`, as exact as the kernel's tick (4 ms or less): deadlines are seconds, and this is read at
/// each receive.
pub fn now() -> Time {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    Time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
