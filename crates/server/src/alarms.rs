//! Sources that are served at a time: for those that wait for something other than their own
//! descriptor, and must not wait for ever.
//!
//! One timer for all of them is watched like any other source. No thread waits.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use vfiod_sync::{Mutex, lock};

use crate::pool::{Pool, Source, Watch, Worker};

/// Nanoseconds of `CLOCK_MONOTONIC`, exact.
type Moment = u64;

/// The alarms of a pool.
pub(crate) struct Alarms {
    timer: OwnedFd,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    alarms: BTreeMap<(Moment, u64), (Watch, Weak<dyn Source>)>,
    next: u64,
}

/// Wakes a source at a time, once. Dropping it before that forgets it.
pub(crate) struct Alarm {
    pool: Pool,
    key: (Moment, u64),
}

fn exact_now() -> Moment {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Alarms {
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer, queue: Mutex::default() })
    }

    /// Sets the timer to the first alarm.
    fn arm(&self, queue: &Queue) {
        let Some(((at, _), _)) = queue.alarms.first_key_value() else { return };
        // A time of 0 would disarm the timer.
        let at = (*at).max(1);
        let it_value =
            Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        let time = Itimerspec { it_interval: Timespec::default(), it_value };
        // Cannot fail: the descriptor is a timer, and the time is valid.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &time);
    }

    /// Takes out the alarms that are due.
    fn take_due(&self) -> Vec<(Watch, Weak<dyn Source>)> {
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

impl Pool {
    /// Calls [`Source::wake`] of a source after `delay`, unless the alarm is dropped before.
    pub(crate) fn wake_after(
        &self,
        delay: Duration,
        watch: &Watch,
        source: &Arc<dyn Source>,
    ) -> Alarm {
        let alarms = self.alarms();
        let mut queue = lock(&alarms.queue);
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let key = (exact_now().saturating_add(delay), queue.next);
        queue.next += 1;
        let is_first = queue.alarms.first_key_value().is_none_or(|(first, _)| key < *first);
        queue.alarms.insert(key, (watch.clone(), Arc::downgrade(source)));
        if is_first {
            alarms.arm(&queue);
        }
        drop(queue);
        Alarm { pool: self.clone(), key }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let alarm = lock(&self.pool.alarms().queue).alarms.remove(&self.key);
        // Without the lock: the last owner of a source may drop alarms itself.
        drop(alarm);
    }
}

/// The timer, as a source of the pool.
pub(crate) struct AlarmClock(Arc<Alarms>);

impl AlarmClock {
    pub(crate) fn new(alarms: &Arc<Alarms>) -> Self {
        Self(alarms.clone())
    }
}

impl Source for AlarmClock {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.timer.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        // Non-blocking: the timer may have been set again since it expired.
        let _ = rustix::io::read(&self.0.timer, &mut [0; 8]);
        let due = self.0.take_due();
        self.wake(watch);
        let upgrade = |(watch, source): (Watch, Weak<dyn Source>)| Some((watch, source.upgrade()?));
        let due: Vec<_> = due.into_iter().filter_map(upgrade).collect();
        due.iter().for_each(|(watch, source)| source.wake(watch));
        // Only now: the last owner of a connection releases its file, which may take long.
        drop(due);
    }
}
