//! What is counted of commands. Each queue has counters of its own, which its task alone writes: no two
//! processors share one, and nobody waits. They are added up when somebody looks.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use vfiod_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vfiod_sync::{Mutex, lock};

use vfiod_nvme_spec::Outcome;
use vfiod_nvme_spec::opcode::{self, ADMIN, IO};
use vfiod_nvme_spec::registers::QUEUES;
use vfiod_nvme_spec::status_list::STATUSES;

/// A number that one task at a time adds to, and others read.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds to it. As there is one writer, this is a load and a store.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bounds of the buckets of times: 1 µs, 2 µs, 4 µs and so on up to 16.8 s; then what took longer.
pub(crate) const BOUNDS: usize = 25;

/// How long commands took.
#[derive(Debug)]
pub(crate) struct Times {
    buckets: [Count; BOUNDS + 1],
    nanoseconds: Count,
}

impl Times {
    fn new() -> Self {
        Self {
            buckets: [const { Count(AtomicU64::new(0)) }; BOUNDS + 1],
            nanoseconds: Count::default(),
        }
    }

    fn count(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)].add(1);
        self.nanoseconds.add(nanoseconds);
    }
}

/// The first bucket whose bound is not below a time.
fn bucket(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds.div_ceil(1000).max(1);
    (microseconds - 1).checked_ilog2().map_or(0, |log| log as usize + 1).min(BOUNDS)
}

/// The upper bound of a bucket, in seconds; of the last one there is none.
pub(crate) fn bound(bucket: usize) -> f64 {
    (1_u64 << bucket) as f64 / 1e6
}

/// Kinds of I/O commands whose times are counted.
pub(crate) const TIMED: [&str; 4] = ["read", "write", "flush", "other"];

fn timed(opcode: u8) -> usize {
    match opcode {
        opcode::READ => 0,
        opcode::WRITE => 1,
        opcode::FLUSH => 2,
        _ => 3,
    }
}

/// The counters of a queue. They last as long as the controller, whatever queue has the number.
#[derive(Debug)]
pub(crate) struct QueueCounters {
    /// By the row of the table of opcodes; the last one: opcodes that are not there.
    commands: Vec<Count>,
    /// By [`TIMED`]; of the admin queue there are none.
    times: Vec<Times>,
    /// Bytes.
    pub(crate) read: Count,
    pub(crate) written: Count,
    /// Commands that have read and written, as SMART counts them.
    pub(crate) reads: Count,
    pub(crate) writes: Count,
    /// Commands that were read and have not ended.
    depth: AtomicU32,
}

impl QueueCounters {
    fn new(id: usize) -> Self {
        let (rows, times) =
            if id == 0 { (ADMIN.rows.len(), 0) } else { (IO.rows.len(), TIMED.len()) };
        Self {
            commands: (0..=rows).map(|_| Count::default()).collect(),
            times: (0..times).map(|_| Times::new()).collect(),
            read: Count::default(),
            written: Count::default(),
            reads: Count::default(),
            writes: Count::default(),
            depth: AtomicU32::new(0),
        }
    }

    /// Counts a command that has ended after this time.
    pub(crate) fn count(&self, opcode: u8, time: Duration) {
        let is_admin = self.is_admin();
        let places = if is_admin { &opcode::ADMIN_PLACES } else { &opcode::IO_PLACES };
        self.commands[usize::from(places[usize::from(opcode)])].add(1);
        if !is_admin {
            self.times[timed(opcode)].count(time);
        }
    }

    fn is_admin(&self) -> bool {
        self.times.is_empty()
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// Commands that have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.commands.iter().map(Count::get).sum()
    }
}

/// Times of several queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AllTimes {
    pub(crate) buckets: [u64; BOUNDS + 1],
    pub(crate) nanoseconds: u64,
}

/// The counters of a controller.
#[derive(Debug)]
pub(crate) struct Counters {
    queues: [OnceLock<Arc<QueueCounters>>; QUEUES],
    /// Commands that have failed, by the row of the table of statuses. What a host does wrong is no hot path.
    failed: [AtomicU64; STATUSES.len()],
    /// What was counted before, or elsewhere: bytes read and written, commands that read and wrote.
    before: [AtomicU64; 4],
    life: Mutex<Life>,
    busy: Busy,
    pub(crate) media_errors: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// How many numbers are kept.
pub(crate) const KEPT: usize = 10;
/// Of these the seconds with power.
pub(crate) const POWER_ON: usize = 8;
/// How many of them are in a saved state: not the times, which differ whenever somebody looks.
pub(crate) const SAVED: usize = 8;

/// The life of a controller, as SMART tells it. It has power while somebody has it open.
#[derive(Debug, Default)]
struct Life {
    on_since: Option<Instant>,
    on_before: Duration,
    power_cycles: u64,
    unsafe_shutdowns: u64,
    /// It was not enabled yet with this power: what nobody has used is no power cycle.
    is_fresh: bool,
    /// It was enabled with this power, and not shut down since.
    in_use: bool,
}

impl Life {
    fn on(&self) -> Duration {
        let now = self.on_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.on_before.saturating_add(now)
    }
}

/// How long some I/O queue had commands. Queues that begin and end at the same moment may do this in any
/// order, as sums do not depend on it.
#[derive(Debug)]
struct Busy {
    epoch: Instant,
    /// Queues that have commands.
    queues: AtomicU32,
    /// The nanoseconds of the ends less those of the beginnings, counted from the epoch: below 0 while busy.
    sum: AtomicU64,
    /// What was shown last, and what was counted before the epoch: milliseconds.
    shown: AtomicU64,
    before: AtomicU64,
}

impl Busy {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let (epoch, queues) = (Instant::now(), AtomicU32::new(0));
        Self { epoch, queues, sum: zero(), shown: zero(), before: zero() }
    }

    fn since_epoch(&self, time: Instant) -> u64 {
        let time = time.saturating_duration_since(self.epoch);
        // Never 0, so that a busy controller's sum is below 0.
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn begin(&self, now: Instant) {
        if self.queues.fetch_add(1, Ordering::Relaxed) == 0 {
            self.sum.fetch_sub(self.since_epoch(now), Ordering::Relaxed);
        }
    }

    fn end(&self, now: Instant) {
        if self.queues.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.sum.fetch_add(self.since_epoch(now), Ordering::Relaxed);
        }
    }

    fn milliseconds(&self) -> u64 {
        let sum = self.sum.load(Ordering::Relaxed).cast_signed();
        let sum = if sum < 0 {
            sum.saturating_add_unsigned(self.since_epoch(Instant::now()))
        } else {
            sum
        };
        // Amid a begin or an end the sum may be of another moment; what was shown never becomes less.
        let now = u64::try_from(sum).unwrap_or(0) / 1_000_000;
        let shown = self.shown.fetch_max(now, Ordering::Relaxed).max(now);
        self.before.load(Ordering::Relaxed).wrapping_add(shown)
    }

    fn restore(&self, milliseconds: u64) {
        let counted = self.milliseconds().wrapping_sub(self.before.load(Ordering::Relaxed));
        self.before.store(milliseconds.wrapping_sub(counted), Ordering::Relaxed);
    }
}

/// How many commands of a queue are under way, as long as its task runs.
pub(crate) struct Depth<'a> {
    counters: &'a Counters,
    queue: &'a QueueCounters,
    is_busy: bool,
    /// When it had none any more.
    idle_since: Option<Instant>,
}

impl<'a> Depth<'a> {
    pub(crate) fn new((counters, queue): (&'a Counters, &'a QueueCounters)) -> Self {
        Self { counters, queue, is_busy: false, idle_since: None }
    }

    /// So many are under way now. A queue that has none counts as busy until it [rests](Depth::rest).
    pub(crate) fn set(&mut self, depth: usize, now: Instant) {
        self.queue.depth.store(depth as u32, Ordering::Relaxed);
        self.idle_since = (depth == 0).then_some(now);
        if depth > 0 && !self.is_busy && !self.queue.is_admin() {
            self.is_busy = true;
            self.counters.busy.begin(now);
        }
    }

    /// The queue waits for commands, if it has none.
    pub(crate) fn rest(&mut self) {
        if let Some(since) = self.idle_since.take()
            && std::mem::take(&mut self.is_busy)
        {
            self.counters.busy.end(since);
        }
    }
}

impl Drop for Depth<'_> {
    fn drop(&mut self) {
        self.set(0, Instant::now());
        self.rest();
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            queues: [const { OnceLock::new() }; QUEUES],
            failed: [const { AtomicU64::new(0) }; STATUSES.len()],
            before: Default::default(),
            life: Mutex::default(),
            busy: Busy::new(),
            media_errors: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// The counters of a queue, which are made when it is made.
    pub(crate) fn of_queue(&self, id: u16) -> Arc<QueueCounters> {
        let id = usize::from(id);
        self.queues[id].get_or_init(|| Arc::new(QueueCounters::new(id))).clone()
    }

    /// The counters of a queue, if there was one.
    pub(crate) fn find_queue(&self, id: u16) -> Option<&QueueCounters> {
        self.queues.get(usize::from(id))?.get().map(Arc::as_ref)
    }

    fn all_queues(&self) -> impl Iterator<Item = &QueueCounters> {
        self.queues.iter().filter_map(|queue| queue.get().map(Arc::as_ref))
    }

    fn io_queues(&self) -> impl Iterator<Item = &QueueCounters> {
        self.queues[1..].iter().filter_map(|queue| queue.get().map(Arc::as_ref))
    }

    /// The controller has power from now on.
    pub(crate) fn power_on(&self) {
        let mut life = lock(&self.life);
        life.is_fresh = true;
        life.on_since = Some(Instant::now());
    }

    /// It has no power any more. If it was in use that is an unsafe shutdown.
    pub(crate) fn power_off(&self) {
        let mut life = lock(&self.life);
        life.on_before = life.on();
        life.on_since = None;
        if std::mem::take(&mut life.in_use) {
            life.unsafe_shutdowns = life.unsafe_shutdowns.wrapping_add(1);
        }
    }

    /// The process has died while the controller was in use.
    pub(crate) fn count_unsafe_shutdown(&self) {
        let mut life = lock(&self.life);
        life.unsafe_shutdowns = life.unsafe_shutdowns.wrapping_add(1);
    }

    /// The controller is enabled. Returns whether it was not in use before.
    pub(crate) fn enabled(&self) -> bool {
        let mut life = lock(&self.life);
        if std::mem::take(&mut life.is_fresh) {
            life.power_cycles = life.power_cycles.wrapping_add(1);
        }
        !std::mem::replace(&mut life.in_use, true)
    }

    /// The controller goes on where it was: with the same power, in use or not.
    pub(crate) fn go_on(&self, in_use: bool) {
        let mut life = lock(&self.life);
        (life.is_fresh, life.in_use) = (false, in_use);
    }

    /// The controller is shut down. Returns whether it was in use.
    pub(crate) fn shut_down(&self) -> bool {
        std::mem::take(&mut lock(&self.life).in_use)
    }
    pub(crate) fn is_in_use(&self) -> bool {
        lock(&self.life).in_use
    }

    /// Counts what a command has failed with.
    pub(crate) fn count_failed(&self, outcome: Outcome) {
        let Err(status) = outcome else { return };
        let row = STATUSES.iter().position(|row| row.code == status.0 & 0x7ff);
        debug_assert!(row.is_some(), "{status:?} is in the table");
        if let Some(row) = row {
            self.failed[row].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Commands that have failed, by the name of their status; those of which there are none are left out.
    pub(crate) fn failed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = STATUSES.iter().zip(&self.failed).map(move |(row, n)| (row.name, count(n)));
        all.filter(|(_, count)| *count > 0)
    }

    /// Commands that have ended, by the name of their opcode: of the admin queue, or of I/O queues. Those of
    /// which there are none are left out.
    pub(crate) fn commands(&self, admin: bool) -> Vec<(&'static str, u64)> {
        let names: Vec<&'static str> = if admin {
            ADMIN.rows.iter().map(|row| row.name).collect()
        } else {
            IO.rows.iter().map(|row| row.name).collect()
        };
        let queues = &self.queues[if admin { 0..1 } else { 1..QUEUES }];
        let sum = |place: usize| {
            let queues = queues.iter().filter_map(OnceLock::get);
            queues.map(|queue| queue.commands[place].get()).sum()
        };
        let names = names.into_iter().chain(["other"]).enumerate();
        names.map(|(place, name)| (name, sum(place))).filter(|(_, count)| *count > 0).collect()
    }

    /// How long I/O commands took, by [`TIMED`].
    pub(crate) fn times(&self) -> [AllTimes; TIMED.len()] {
        let mut all = <[AllTimes; TIMED.len()]>::default();
        for queue in self.io_queues() {
            for (sum, times) in all.iter_mut().zip(&queue.times) {
                let buckets = sum.buckets.iter_mut().zip(&times.buckets);
                buckets.for_each(|(sum, count)| *sum += count.get());
                sum.nanoseconds = sum.nanoseconds.wrapping_add(times.nanoseconds.get());
            }
        }
        all
    }

    /// Bytes read and written, and commands that read and wrote, since the controller was made.
    pub(crate) fn moved(&self) -> [u64; 4] {
        let mut sum = [0_u64; 4];
        for QueueCounters { read, written, reads, writes, .. } in self.all_queues() {
            for (sum, count) in sum.iter_mut().zip([read, written, reads, writes]) {
                *sum = sum.wrapping_add(count.get());
            }
        }
        sum
    }

    /// The same, with what was counted before.
    pub(crate) fn moved_ever(&self) -> [u64; 4] {
        let mut sum = self.moved();
        for (sum, before) in sum.iter_mut().zip(&self.before) {
            *sum = sum.wrapping_add(before.load(Ordering::Relaxed));
        }
        sum
    }

    /// What is kept: the numbers of SMART.
    pub(crate) fn all(&self) -> [u64; KEPT] {
        let [read, written, reads, writes] = self.moved_ever();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (media_errors, errors) = (get(&self.media_errors), get(&self.errors));
        let life = lock(&self.life);
        let (cycles, on, unsafes) = (life.power_cycles, life.on().as_secs(), life.unsafe_shutdowns);
        let busy = self.busy.milliseconds();
        [read, written, reads, writes, cycles, media_errors, errors, unsafes, on, busy]
    }

    /// What is saved of them.
    pub(crate) fn save(&self) -> [u64; SAVED] {
        let [read, written, reads, writes, cycles, media_errors, errors, unsafes, ..] = self.all();
        [read, written, reads, writes, cycles, media_errors, errors, unsafes]
    }

    /// What was kept, and the times with it.
    pub(crate) fn restore_all(&self, kept: [u64; KEPT]) {
        let [read, written, reads, writes, cycles, media_errors, errors, unsafes, on, busy] = kept;
        self.restore([read, written, reads, writes, cycles, media_errors, errors, unsafes]);
        let mut life = lock(&self.life);
        life.on_before = Duration::from_secs(on);
        life.on_since = life.on_since.map(|_| Instant::now());
        self.busy.restore(busy);
    }

    pub(crate) fn restore(&self, saved: [u64; SAVED]) {
        let [read, written, reads, writes, cycles, media_errors, errors, unsafes] = saved;
        let counted = self.moved();
        let moved = [read, written, reads, writes];
        for ((before, value), counted) in self.before.iter().zip(moved).zip(counted) {
            before.store(value.wrapping_sub(counted), Ordering::Relaxed);
        }
        let mut life = lock(&self.life);
        (life.power_cycles, life.unsafe_shutdowns) = (cycles, unsafes);
        self.media_errors.store(media_errors, Ordering::Relaxed);
        self.errors.store(errors, Ordering::Relaxed);
    }
}

/// A name of the specifications as a label: lower case, without spaces.
pub(crate) fn label(name: &str) -> String {
    name.to_lowercase().replace("i/o", "io").replace([' ', '/'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_of_microseconds() {
        for (nanoseconds, expected) in [
            (0, 0),
            (1, 0),
            (1000, 0),
            (1001, 1),
            (2000, 1),
            (2001, 2),
            (4000, 2),
            (4001, 3),
            (1_000_000, 10),
            (1_048_576_000, 20),
            (1_048_576_001, 21),
            (16_777_216_000, BOUNDS - 1),
            (16_777_216_001, BOUNDS),
            (u64::MAX, BOUNDS),
        ] {
            assert_eq!(bucket(nanoseconds), expected, "{nanoseconds} ns");
        }
        assert_eq!((bound(0), bound(10), bound(BOUNDS - 1)), (1e-6, 1.024e-3, 16.777_216));
    }

    #[test]
    fn label_is_one_word() {
        assert_eq!(label("Create I/O Submission Queue"), "create_io_submission_queue");
        assert_eq!(label("LBA Out of Range"), "lba_out_of_range");
    }

    /// What is restored is what was saved, whatever the queues have counted meanwhile.
    #[test]
    fn restored_counters_are_those_that_were_saved() {
        let counters = Counters::default();
        counters.of_queue(1).read.add(7);
        counters.of_queue(64).read.add(2);
        let kept = [100, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        counters.restore_all(kept);
        assert_eq!(counters.all(), kept);
        counters.of_queue(64).read.add(2);
        assert_eq!((counters.save()[0], counters.moved()[0]), (102, 11));
    }

    #[test]
    fn busy_is_the_time_in_which_some_queue_has_commands() {
        let busy = Busy::new();
        let at = |seconds| busy.epoch + Duration::from_secs(seconds);
        // Two queues: 1 to 4 and 3 to 6; then one: 10 to 12.
        for (begins, time) in
            [(true, 1), (true, 3), (false, 4), (false, 6), (true, 10), (false, 12)]
        {
            if begins { busy.begin(at(time)) } else { busy.end(at(time)) }
        }
        assert_eq!(busy.milliseconds(), 7000);
        // Also if the end of one and the beginning of the next are counted the other way round.
        busy.sum.fetch_sub(busy.since_epoch(at(20)), Ordering::Relaxed);
        busy.sum.fetch_add(busy.since_epoch(at(15)), Ordering::Relaxed);
        busy.sum.fetch_sub(busy.since_epoch(at(14)), Ordering::Relaxed);
        assert_eq!(busy.milliseconds(), 7000, "it never becomes less");
        busy.sum.fetch_add(busy.since_epoch(at(23)), Ordering::Relaxed);
        assert_eq!(busy.milliseconds(), 11000);
        busy.restore(50);
        assert_eq!(busy.milliseconds(), 50);
    }

    #[test]
    fn power_that_ends_in_use_is_an_unsafe_shutdown() {
        let counters = Counters::default();
        let life = || (counters.save()[4], counters.save()[7]);
        counters.power_on();
        counters.power_off();
        assert_eq!(life(), (0, 0), "it was not used");
        counters.power_on();
        assert!(counters.enabled() && !counters.enabled());
        counters.power_off();
        assert_eq!((life(), counters.is_in_use()), ((1, 1), false));
        counters.power_on();
        counters.enabled();
        assert!(counters.shut_down());
        counters.power_off();
        assert_eq!(life(), (2, 1), "it was shut down");
    }
}
