//! Threads: few, shared by every connection of a server.
//!
//! All threads wait in one `epoll`. The one that gets an event serves that source itself, for as
//! long as it is busy, while another takes its place; so no work changes threads, a round trip
//! costs a receive and a send, and a source that stalls holds up only its own thread.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use vfiod_protocol::ReplyBuffer;
use vfiod_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use vfiod_sync::thread::{Builder, JoinHandle};
use vfiod_sync::{Mutex, lock};

use crate::alarms::{Alarms, Key};
pub(crate) use crate::poller::Interest;
use crate::poller::{Poller, WAKE_KEY};

/// Threads that stay in `epoll` although there is nothing to do.
const SPARE: usize = 2;
/// Threads that wait in `epoll` for [`IDLE`]; further ones for [`SURPLUS`] only, and give their memory back
/// then.
const MAX_WAITING: usize = 4;
/// Threads that may stay with a source that has gone quiet: a server with few clients answers
/// each at once, and one with many has not a thread for each.
const MAX_RESIDENTS: usize = 4;
/// Threads that sleep for a moment ([`LINGER`]) on a source that has gone quiet, so that a client
/// that asks again at once is answered without another thread's waking up.
const MAX_LINGERING: usize = 4;
/// How long a thread beyond [`SPARE`] waits before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// How long one beyond [`MAX_WAITING`] waits: long enough that clients that come and go do not end and start
/// threads all the time, which holds up whoever is served next.
const SURPLUS: Duration = Duration::from_millis(250);

/// How long a thread waits before it gives memory back that only large messages needed.
const TIDY: Duration = Duration::from_secs(1);

/// Memory for receiving from which a thread that waits gives it back.
const LARGE: usize = 64 << 10;

/// Buffers of a thread, lent to the source that it serves.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    pub(crate) input: Vec<u8>,
    pub(crate) replies: ReplyBuffer,
}

impl Worker {
    fn is_large(&self) -> bool {
        self.input.len() > LARGE || self.replies.is_large()
    }

    pub(crate) fn trim(&mut self) {
        if self.input.len() > LARGE {
            self.input = Vec::new();
        }
        self.replies.trim();
    }
}

/// Something to wait for.
pub(crate) trait Source: Send + Sync {
    /// The descriptor to wait on.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Serves the source. It is not watched until [`Watch::rearm`].
    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker);
    /// Makes a thread that sleeps on the source without a timeout come back. Only called for a
    /// source with a [`Residence`], at the end of the server.
    fn interrupt(&self) {}
    /// Has the source served again although nothing has happened on its descriptor: its time has
    /// come ([`Pool::wake_after`]), or what it waits for has happened elsewhere.
    fn wake(&self, watch: &Watch) {
        // Fails only for a source that is not watched any more.
        let _ = watch.rearm_fd(self.fd(), Interest::Read);
    }
}

struct Shared {
    poller: Poller,
    alarms: Arc<Alarms<Waking>>,
    sources: Mutex<HashMap<u64, Arc<dyn Source>>>,
    next_key: AtomicU64,
    /// Threads waiting in `epoll`.
    waiting: AtomicUsize,
    threads: AtomicUsize,
    /// Threads that were started.
    started: AtomicUsize,
    max_threads: AtomicUsize,
    stopping: AtomicBool,
    handles: Mutex<Vec<JoinHandle<()>>>,
    lingering: AtomicUsize,
    /// Threads that poll a source, and how many may at a time.
    polling: AtomicUsize,
    max_polling: usize,
    one_processor: bool,
    /// Sources that a thread stays with, by key.
    residents: Mutex<HashMap<u64, Arc<dyn Source>>>,
}

/// The threads of a server.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

/// A source's place in the pool.
#[derive(Clone)]
pub(crate) struct Watch {
    pool: Pool,
    key: u64,
}

impl Pool {
    pub(crate) fn new(max_threads: usize) -> Result<Self, Errno> {
        let pool = Self::without_threads(max_threads.max(SPARE))?;
        for _ in 0..SPARE {
            pool.spawn()?;
        }
        Ok(pool)
    }

    /// A pool whose sources are served by the tasks of a runtime: [`crate::embedded`]. As it has no
    /// thread, and may have none, it is saturated at all times: nothing sleeps on a source.
    pub(crate) fn embedded() -> Result<Self, Errno> {
        Self::without_threads(0)
    }

    fn without_threads(max_threads: usize) -> Result<Self, Errno> {
        let alarms = Arc::new(Alarms::new()?);
        let clock: Arc<dyn Source> = Arc::new(AlarmClock(alarms.clone()));
        let pool = Self {
            shared: Arc::new(Shared {
                poller: Poller::new()?,
                alarms,
                sources: Mutex::default(),
                next_key: AtomicU64::new(WAKE_KEY + 1),
                waiting: AtomicUsize::new(0),
                threads: AtomicUsize::new(0),
                started: AtomicUsize::new(0),
                max_threads: AtomicUsize::new(max_threads),
                stopping: AtomicBool::new(false),
                handles: Mutex::default(),
                lingering: AtomicUsize::new(0),
                polling: AtomicUsize::new(0),
                max_polling: (processors() / 2).max(1),
                one_processor: processors() == 1,
                residents: Mutex::default(),
            }),
        };
        pool.reserve().arm(&clock, Interest::Read)?;
        Ok(pool)
    }

    /// Calls [`Source::wake`] of a source after `delay`, unless the alarm is dropped before. No thread
    /// waits for it.
    pub(crate) fn wake_after(
        &self,
        delay: Duration,
        watch: &Watch,
        source: &Arc<dyn Source>,
    ) -> Alarm {
        let key = self.shared.alarms.add(delay, (watch.clone(), Arc::downgrade(source)));
        Alarm { pool: self.clone(), key }
    }

    /// Serves a source, if one has something to do.
    #[cfg(not(shuttle))]
    pub(crate) fn serve_one(&self, worker: &mut Worker) -> bool {
        let shared = &self.shared;
        let Ok(Some(key)) = shared.poller.wait(Some(Duration::ZERO)) else { return false };
        if self.is_stopping() {
            return false;
        }
        let source = lock(&shared.sources).get(&key).cloned();
        if let Some(source) = source {
            source.serve(&Watch { pool: self.clone(), key }, worker);
        }
        true
    }

    /// Readable when a source has something to do.
    #[cfg(not(shuttle))]
    pub(crate) fn fd(&self) -> Arc<std::os::fd::OwnedFd> {
        self.shared.poller.fd()
    }

    /// A place for a source that is to be watched later.
    pub(crate) fn reserve(&self) -> Watch {
        Watch { pool: self.clone(), key: self.shared.next_key.fetch_add(1, Ordering::Relaxed) }
    }

    /// Whether all threads are taken, so that none should wait for a single source.
    pub(crate) fn is_saturated(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) == 0
            && self.shared.threads.load(Ordering::Relaxed) >= self.max_threads()
    }

    /// The right to sleep for a moment on a source that has gone quiet, for
    /// [`MAX_LINGERING`] threads at a time.
    pub(crate) fn linger(&self) -> Option<Among<'_>> {
        Among::up_to(MAX_LINGERING, &self.shared.lingering)
    }

    /// The right to poll a source that has gone quiet, for half as many threads at a time as there are
    /// processors: more would take them from those who have something to do.
    pub(crate) fn poll(&self) -> Option<Among<'_>> {
        Among::up_to(self.shared.max_polling, &self.shared.polling)
    }

    /// Whether a thread that polls takes the processor from all others.
    pub(crate) fn has_one_processor(&self) -> bool {
        self.shared.one_processor
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    fn max_threads(&self) -> usize {
        self.shared.max_threads.load(Ordering::Relaxed)
    }

    /// Allows `served` threads that are with devices, and some that take in what arrives.
    pub(crate) fn allow_threads(&self, served: usize) {
        self.shared.max_threads.fetch_max(served.saturating_add(SPARE), Ordering::Relaxed);
    }

    pub(crate) fn threads(&self) -> usize {
        self.shared.threads.load(Ordering::Relaxed)
    }

    /// Ends every thread and drops every source. Not to be called from a thread of the pool.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        lock(&self.shared.residents).values().for_each(|source| source.interrupt());
        self.shared.poller.wake_all();
        loop {
            let handles = std::mem::take(&mut *lock(&self.shared.handles));
            if handles.is_empty() {
                break;
            }
            for handle in handles {
                // A thread's panic was reported where it happened.
                let _ = handle.join();
            }
        }
        let sources = std::mem::take(&mut *lock(&self.shared.sources));
        drop(sources);
        self.shared.alarms.clear();
    }

    /// How many threads may sleep on a source without a timeout.
    fn max_residents(&self) -> usize {
        MAX_RESIDENTS.min(self.max_threads() / 4)
    }

    fn spawn(&self) -> Result<(), Errno> {
        let pool = self.clone();
        let number = self.shared.started.fetch_add(1, Ordering::Relaxed);
        self.shared.threads.fetch_add(1, Ordering::Relaxed);
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let spawned = Builder::new().name(format!("vfio-user-{number}")).spawn(move || pool.run());
        match spawned {
            Ok(handle) => {
                let mut handles = lock(&self.shared.handles);
                // The checker's handles do not say.
                #[cfg(not(shuttle))]
                handles.retain(|handle| !handle.is_finished());
                handles.push(handle);
                Ok(())
            }
            Err(error) => {
                self.shared.threads.fetch_sub(1, Ordering::Relaxed);
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                Err(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
            }
        }
    }

    /// One thread. It is counted as waiting when it starts.
    fn run(&self) {
        let shared = &self.shared;
        let mut worker = Worker::default();
        loop {
            let (timeout, kept) = match shared.waiting.load(Ordering::Relaxed) {
                _ if worker.is_large() => (Some(TIDY), SPARE),
                waiting if waiting > MAX_WAITING => (Some(SURPLUS), MAX_WAITING),
                waiting if waiting > SPARE => (Some(IDLE), SPARE),
                _ => (None, SPARE),
            };
            let waited = shared.poller.wait(timeout);
            if shared.stopping.load(Ordering::SeqCst) {
                shared.waiting.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            let key = match waited {
                Ok(None) if worker.is_large() => {
                    worker.trim();
                    continue;
                }
                // Others may have ended meanwhile.
                Ok(None) if end_beyond(&shared.waiting, kept) => break,
                Ok(None) | Err(Errno::INTR) => continue,
                Ok(Some(key)) => key,
                Err(error) => {
                    tracing::error!(%error, "epoll failed; a server thread ends");
                    shared.waiting.fetch_sub(1, Ordering::Relaxed);
                    break;
                }
            };
            let Some(source) = lock(&shared.sources).get(&key).cloned() else {
                continue;
            };
            if shared.waiting.fetch_sub(1, Ordering::Relaxed) == 1
                && shared.threads.load(Ordering::Relaxed) < self.max_threads()
                && let Err(error) = self.spawn()
            {
                tracing::warn!(%error, "cannot start a further server thread");
            }
            let watch = Watch { pool: self.clone(), key };
            source.serve(&watch, &mut worker);
            shared.waiting.fetch_add(1, Ordering::Relaxed);
        }
        shared.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the calling thread out of those that wait, unless only `kept` are left. To look and to
/// take are one step: if the last ones ended at the same time, nobody would take a client in for
/// as long as the other threads stay with theirs.
fn end_beyond(waiting: &AtomicUsize, kept: usize) -> bool {
    let less = |waiting| (waiting > kept).then(|| waiting - 1);
    waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

/// What an alarm wakes.
type Waking = (Watch, Weak<dyn Source>);

/// Wakes a source at a time, once: for one that waits for something other than its own descriptor, and
/// must not wait for ever. Dropping it before that forgets it.
pub(crate) struct Alarm {
    pool: Pool,
    key: Key,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let waking = self.pool.shared.alarms.remove(self.key);
        // Without the lock of the alarms: the last owner of a source may drop alarms itself.
        drop(waking);
    }
}

/// The timer of the alarms, as a source of the pool.
struct AlarmClock(Arc<Alarms<Waking>>);

impl Source for AlarmClock {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        let due = self.0.take_due();
        self.wake(watch);
        let upgrade = |(watch, source): Waking| Some((watch, source.upgrade()?));
        let due: Vec<_> = due.into_iter().filter_map(upgrade).collect();
        due.iter().for_each(|(watch, source)| source.wake(watch));
        // Only now: the last owner of a connection releases its file, which may take long.
        drop(due);
    }
}

/// The processors that the process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A place among a limited number of threads.
pub(crate) struct Among<'a>(&'a AtomicUsize);

impl<'a> Among<'a> {
    fn up_to(most: usize, taken: &'a AtomicUsize) -> Option<Self> {
        let place = Self(taken);
        let others = taken.fetch_add(1, Ordering::Relaxed);
        (others < most).then_some(place)
    }
}

impl Drop for Among<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right of a thread to sleep on its source for as long as it likes.
pub(crate) struct Residence<'a>(&'a Watch);

impl Drop for Residence<'_> {
    fn drop(&mut self) {
        lock(&self.0.pool.shared.residents).remove(&self.0.key);
    }
}

impl Watch {
    /// Lets the calling thread, which serves the source, stay with it, if there is room.
    pub(crate) fn settle(&self, source: Arc<dyn Source>) -> Option<Residence<'_>> {
        let mut residents = lock(&self.pool.shared.residents);
        // Asked with the lock held: whoever stops the pool interrupts those that are in there.
        if self.pool.is_stopping() || residents.len() >= self.pool.max_residents() {
            return None;
        }
        residents.insert(self.key, source);
        Some(Residence(self))
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Starts to watch a source.
    pub(crate) fn arm(&self, source: &Arc<dyn Source>, interest: Interest) -> Result<(), Errno> {
        let shared = &self.pool.shared;
        lock(&shared.sources).insert(self.key, source.clone());
        let added = shared.poller.add(source.fd(), self.key, interest);
        if added.is_err() {
            lock(&shared.sources).remove(&self.key);
        }
        added
    }

    /// Watches a source that was served, perhaps for the first time.
    pub(crate) fn park(&self, source: Arc<dyn Source>, interest: Interest) -> Result<(), Errno> {
        match self.rearm(&*source, interest) {
            Err(Errno::NOENT) => self.arm(&source, interest),
            parked => parked,
        }
    }

    /// Watches the source again after it was served. Another thread may serve it at once.
    pub(crate) fn rearm(&self, source: &dyn Source, interest: Interest) -> Result<(), Errno> {
        self.rearm_fd(source.fd(), interest)
    }

    /// [`Watch::rearm`], for the source's descriptor.
    pub(crate) fn rearm_fd(&self, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno> {
        self.pool.shared.poller.modify(fd, self.key, interest)
    }

    /// Stops watching.
    pub(crate) fn forget(&self) {
        let source = lock(&self.pool.shared.sources).remove(&self.key);
        if let Some(source) = &source {
            self.pool.shared.poller.delete(source.fd(), self.key);
        }
    }
}

#[cfg(all(test, shuttle))]
impl Watch {
    /// A scenario: the source is ready for something, or not any more.
    pub(crate) fn set_ready(&self, ready: Option<Interest>) {
        self.pool.shared.poller.set_ready(self.key, ready);
    }
}

/// How long a thread stays with a connection that has gone quiet.
pub(crate) const LINGER: Duration = Duration::from_millis(10);

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Barrier;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// A source that keeps its thread until all of a wave are served.
    struct Waving {
        event: OwnedFd,
        wave: Arc<Barrier>,
    }

    impl Source for Waving {
        fn fd(&self) -> BorrowedFd<'_> {
            self.event.as_fd()
        }

        fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
            rustix::io::read(&self.event, &mut [0; 8]).unwrap();
            self.wave.wait();
            watch.rearm(&*self, Interest::Read).unwrap();
        }
    }

    /// Waves of clients that come and go: each needs more threads than wait when there is nothing to do.
    #[test]
    fn clients_that_come_and_go_start_no_threads_all_the_time() {
        const WAVE: usize = 8;
        const WAVES: usize = 100;
        let pool = Pool::new(64).unwrap();
        let wave = Arc::new(Barrier::new(WAVE + 1));
        let sources = [(); WAVE].map(|()| {
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let source = Arc::new(Waving { event, wave: wave.clone() });
            let watched: Arc<dyn Source> = source.clone();
            pool.reserve().arm(&watched, Interest::Read).unwrap();
            source
        });
        for _ in 0..WAVES {
            for source in &sources {
                rustix::io::write(&source.event, &1u64.to_ne_bytes()).unwrap();
            }
            wave.wait();
        }
        let started = pool.shared.started.load(Ordering::Relaxed);
        pool.stop();
        assert!(started < WAVE + WAVES, "{started} threads were started for {WAVES} waves");
    }

    #[test]
    fn few_threads_poll_at_a_time() {
        let pool = Pool::embedded().unwrap();
        let most = pool.shared.max_polling;
        assert!((1..=processors()).contains(&most));
        let mut polling: Vec<_> = (0..most).map(|_| pool.poll().expect("there is room")).collect();
        assert!(pool.poll().is_none() && pool.poll().is_none(), "more than {most} threads poll");
        polling.pop();
        assert!(pool.poll().is_some());
    }

    /// Threads that end at the same time leave enough.
    #[test]
    fn enough_threads_stay_whoever_ends() {
        for _ in 0..200 {
            let waiting = AtomicUsize::new(5);
            let start = std::sync::Barrier::new(5);
            let ended = std::thread::scope(|scope| {
                let end = || {
                    start.wait();
                    end_beyond(&waiting, SPARE)
                };
                let threads: Vec<_> = (0..5).map(|_| scope.spawn(end)).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|e| *e).count()
            });
            assert_eq!((ended, waiting.into_inner()), (3, SPARE));
        }
    }
}
