//! What is to be done at a time, in the order of the times, with one timer for all of it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use vfiod_sync::{Mutex, lock};

/// Nanoseconds of `CLOCK_MONOTONIC`, exact.
type Moment = u64;

/// When an alarm is due; no two are the same.
pub(crate) type Key = (Moment, u64);

/// Values, each with a time.
pub(crate) struct Alarms<T> {
    timer: OwnedFd,
    queue: Mutex<Queue<T>>,
}

struct Queue<T> {
    alarms: BTreeMap<Key, T>,
    next: u64,
}

fn exact_now() -> Moment {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl<T> Alarms<T> {
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer, queue: Mutex::new(Queue { alarms: BTreeMap::new(), next: 0 }) })
    }

    /// Sets the timer to the first alarm.
    fn arm(&self, queue: &Queue<T>) {
        let Some(((at, _), _)) = queue.alarms.first_key_value() else { return };
        // A time of 0 would disarm the timer.
        let at = (*at).max(1);
        let it_value =
            Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        let time = Itimerspec { it_interval: Timespec::default(), it_value };
        // Cannot fail: the descriptor is a timer, and the time is valid.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &time);
    }

    /// Adds a value that is due after `delay`.
    pub(crate) fn add(&self, delay: Duration, value: T) -> Key {
        let mut queue = lock(&self.queue);
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let key = (exact_now().saturating_add(delay), queue.next);
        queue.next += 1;
        let is_first = queue.alarms.first_key_value().is_none_or(|(first, _)| key < *first);
        queue.alarms.insert(key, value);
        if is_first {
            self.arm(&queue);
        }
        key
    }

    /// Takes out a value, if it is still there.
    pub(crate) fn remove(&self, key: Key) -> Option<T> {
        lock(&self.queue).alarms.remove(&key)
    }

    /// Takes out the values that are due, after the timer's descriptor has become readable.
    pub(crate) fn take_due(&self) -> Vec<T> {
        // Non-blocking: the timer may have been set again since it expired.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        // In a model time does not pass: an alarm is due whenever a scenario says so.
        let now = if cfg!(shuttle) { Moment::MAX } else { exact_now() };
        let mut queue = lock(&self.queue);
        let mut due = Vec::new();
        while let Some(first) = queue.alarms.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        self.arm(&queue);
        due
    }

    /// Forgets every alarm.
    pub(crate) fn clear(&self) {
        let alarms = std::mem::take(&mut lock(&self.queue).alarms);
        drop(alarms);
    }
}

/// The timer, which is readable when a value is due.
impl<T> AsFd for Alarms<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
