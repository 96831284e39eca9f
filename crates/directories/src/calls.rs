//! Calls that wait for the lock of a directory.
//!
//! The kernel locks a directory while a name in it is made, given, removed, or looked up for the first
//! time. Whoever may list the directory can hold that lock for ever, by `getdents64` into a page that
//! a FUSE server does not deliver, and no signal ends the wait. So such calls are made by threads that
//! may be lost: one for each directory, which makes one call after the other. Nobody waits longer than
//! [`LIMIT`] for it, and the end of the process does not wait at all.
//!
//! A disk that has much to write keeps a sync waiting for longer than that, and nobody has done anything wrong.
//! So the time of a sync ([`syncing`]) does not count.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vfiod_dma::{Error, Result};

/// How long a call is waited for.
const LIMIT: Duration = Duration::from_secs(2);
/// How long a call is waited for that may also wait for a disk.
const DISK_LIMIT: Duration = Duration::from_secs(6);
/// How long one sync is waited for.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// How long the removal of a name is waited for while a call in another directory takes longer than
/// [`LIMIT`]: many directories that are held up do not add up.
const LIMIT_AMONG_STUCK: Duration = Duration::from_millis(100);
/// Most directories in which calls are made at the same time.
const MAX_THREADS: usize = 256;
/// Stack of such a thread, bytes.
const STACK: usize = 512 << 10;

/// What is to be done, and how long that may take.
struct Job {
    work: Box<dyn FnOnce() + Send>,
    limit: Duration,
}

/// What is to be done in one directory. There is one as long as it has a thread or jobs.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    thread: Option<JoinHandle<()>>,
    /// By when the call should have returned that is being made, or its sync.
    due: Option<Instant>,
    /// How long that call may take, but for its syncs.
    limit: Duration,
    /// The call that is being made waits for a disk.
    is_syncing: bool,
    /// When the last sync of a call ended.
    synced: Option<Instant>,
}

impl Queue {
    fn is_stuck(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// How long somebody waits on, who has waited since `start` and does so for `limit`.
    fn left(&self, start: Instant, limit: Duration) -> Option<Duration> {
        let now = Instant::now();
        if self.is_syncing && !self.is_stuck() {
            return Some(limit);
        }
        let since = self.synced.map_or(start, |synced| synced.max(start));
        Some((since + limit).saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

type Queues = HashMap<PathBuf, Queue>;

static QUEUES: LazyLock<Mutex<Queues>> = LazyLock::new(Mutex::default);
/// Threads that have nothing to do any more, and are about to end.
static ENDING: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

thread_local! {
    /// The directory whose calls this thread makes, which may be lost.
    static MAKES_CALLS_IN: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Whether this thread may be lost.
fn may_be_lost() -> bool {
    MAKES_CALLS_IN.with_borrow(Option::is_some)
}

fn queues() -> MutexGuard<'static, Queues> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ending() -> MutexGuard<'static, Vec<JoinHandle<()>>> {
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes calls that look up, make or remove names in a directory. Waits for no longer than two seconds, but for
/// syncs ([`syncing`]), and not at all if an earlier call in this directory takes longer. What has begun by then
/// is done later, and its result dropped there.
///
/// # Errors
/// `ETIMEDOUT`: the directory is held up; `EAGAIN`: no thread can be started.
pub fn in_directory<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    within(LIMIT, directory, work)
}

/// Makes calls as [`in_directory`] that may also wait for a disk: for space, or for what has to be read. Waits for
/// no longer than six seconds, but for syncs.
///
/// # Errors
/// As [`in_directory`].
pub fn in_directory_to_disk<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    within(DISK_LIMIT, directory, work)
}

fn within<T: Send + 'static>(
    limit: Duration,
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if may_be_lost() {
        return Ok(work());
    }
    let (sender, receiver) = mpsc::channel();
    // Taken by whoever comes first: the thread that begins it, or the one that gives it up.
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let begun = work.clone();
    let job = move || {
        if let Some(work) = take(&begun) {
            // What nobody receives any more is dropped here, where that may wait.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        }
    };
    let mut queues = queues();
    if queues.get(directory).is_some_and(Queue::is_stuck) {
        return Err(held_up(directory, limit));
    }
    let job = Job { work: Box::new(job), limit };
    enqueue(&mut queues, directory, job).map_err(|errno| {
        drop(take(&work));
        Error::new(errno, format!("cannot start a thread for calls in {}", directory.display()))
    })?;
    drop(queues);
    let done = wait(&receiver, directory, limit).or_else(|| {
        drop(take(&work));
        // It may have come at the last moment.
        receiver.try_recv().ok()
    });
    match done {
        Some(Ok(done)) => Ok(done),
        Some(Err(panic)) => resume_unwind(panic),
        None => Err(held_up(directory, limit)),
    }
}

/// Waits for what a call in a directory sends: for no longer than `limit`, but for syncs of calls there.
fn wait<T>(receiver: &Receiver<T>, directory: &Path, limit: Duration) -> Option<T> {
    let start = Instant::now();
    let mut time = limit;
    loop {
        match receiver.recv_timeout(time) {
            Ok(sent) => return Some(sent),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        time = queues().get(directory).and_then(|queue| queue.left(start, limit))?;
    }
}

/// Waits for a disk amid a call in a directory: makes durable what was written. Nobody else can hold that up, so
/// it may take a minute, and whoever waits for the call waits on.
pub fn syncing<T>(sync: impl FnOnce() -> T) -> T {
    let mark = |is_syncing: bool| {
        MAKES_CALLS_IN.with_borrow(|directory| {
            let mut queues = queues();
            let queue = directory.as_ref().and_then(|directory| queues.get_mut(directory));
            let Some(queue) = queue else { return };
            let now = Instant::now();
            let limit = if is_syncing { SYNC_LIMIT } else { queue.limit };
            (queue.is_syncing, queue.due) = (is_syncing, Some(now + limit));
            if !is_syncing {
                queue.synced = Some(now);
            }
        });
    };
    mark(true);
    let done = sync();
    mark(false);
    done
}

/// Removes a name from a directory. It is waited for as in [`in_directory`], and done later if the directory
/// is held up. Returns whether it is done.
pub fn remove_in(directory: &Path, removal: impl FnOnce() + Send + 'static) -> bool {
    if may_be_lost() {
        removal();
        return true;
    }
    let (sender, receiver) = mpsc::channel();
    let job = move || {
        removal();
        let _ = sender.send(());
    };
    let mut queues = queues();
    let is_stuck = queues.get(directory).is_some_and(Queue::is_stuck);
    let limit = match queues.values().any(Queue::is_stuck) {
        true => LIMIT_AMONG_STUCK,
        false => LIMIT,
    };
    let job = Job { work: Box::new(job), limit: LIMIT };
    let enqueued = enqueue(&mut queues, directory, job);
    drop(queues);
    enqueued.is_ok() && !is_stuck && wait(&receiver, directory, limit).is_some()
}

/// Has a job done after those before it.
///
/// # Errors
/// `EAGAIN`: no thread can be started.
fn enqueue(queues: &mut Queues, directory: &Path, job: Job) -> std::result::Result<(), Errno> {
    let threads = queues.values().filter(|queue| queue.thread.is_some()).count();
    let queue = queues.entry(directory.to_owned()).or_default();
    queue.jobs.push_back(job);
    if queue.thread.is_some() {
        return Ok(());
    }
    let place = directory.to_owned();
    let started = (threads < MAX_THREADS).then(|| {
        let thread = thread::Builder::new().name("directory".to_owned()).stack_size(STACK);
        thread.spawn(move || work_off(&place))
    });
    if let Some(Ok(thread)) = started {
        queue.thread = Some(thread);
        return Ok(());
    }
    queues.remove(directory);
    Err(Errno::AGAIN)
}

fn work_off(directory: &Path) {
    MAKES_CALLS_IN.set(Some(directory.to_owned()));
    loop {
        let mut queues = queues();
        let Some(queue) = queues.get_mut(directory) else { return };
        let Some(job) = queue.jobs.pop_front() else {
            let ended = queues.remove(directory).and_then(|queue| queue.thread);
            let mut ending = ending();
            ending.retain(|thread| !thread.is_finished());
            ending.extend(ended);
            return;
        };
        (queue.limit, queue.due) = (job.limit, Some(Instant::now() + job.limit));
        drop(queues);
        // May never return.
        (job.work)();
    }
}

/// Waits until the threads of these calls have ended, but not for one whose call does not return. Before the
/// process has other threads: a sandbox that applies to one thread applies to all that are started by it.
pub fn settle() {
    let start = Instant::now();
    let threads = || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    while start.elapsed() < LIMIT {
        let ended = std::mem::take(&mut *ending());
        ended.into_iter().for_each(|thread| drop(thread.join()));
        // The kernel shows a thread for a moment after its end; those of others stay.
        let is_over = start.elapsed() >= LIMIT_AMONG_STUCK || threads() == 1;
        if queues().is_empty() && ending().is_empty() && is_over {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn held_up(directory: &Path, limit: Duration) -> Error {
    let place = directory.display();
    let what = format!(
        "{place} is held up: a call there has not returned for {} s. Whoever may list a directory can \
         hold it up: end the process that does, and let others only pass through it (chmod 0711 {place})",
        limit.as_secs()
    );
    Error::new(Errno::TIMEDOUT, what)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn ends(directory: &Path) {
        while queues().contains_key(directory) {
            thread::yield_now();
        }
    }

    #[test]
    fn call_that_does_not_return_holds_up_its_directory_alone_until_it_does() {
        let (held, free) = (Path::new("/held/up"), Path::new("/free"));
        let (resume, resumed) = channel::<()>();
        let (dropped, late) = channel();
        struct Late(mpsc::Sender<thread::ThreadId>);
        impl Drop for Late {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        let waiting = in_directory(held, move || {
            let _ = resumed.recv();
            Late(dropped)
        });
        let error = waiting.err().unwrap();
        assert_eq!(error.errno(), Errno::TIMEDOUT);
        assert!(error.to_string().contains("/held/up is held up"), "{error}");
        // What comes now is refused, and never begun; a removal is done later.
        let refused = in_directory(held, || unreachable!());
        assert_eq!(refused.map_err(|error| error.errno()), Err::<(), _>(Errno::TIMEDOUT));
        let (done, removed) = channel();
        assert!(!remove_in(held, move || done.send(()).unwrap()));
        assert!(removed.try_recv().is_err());
        assert_eq!(in_directory(free, || 5).unwrap(), 5);
        assert!(remove_in(free, || {}));
        drop(resume);
        removed.recv().unwrap();
        assert_ne!(late.recv().unwrap(), thread::current().id(), "dropped where that may wait");
        ends(held);
        assert_eq!(in_directory(held, || 6).unwrap(), 6);
        ends(free);
    }

    #[test]
    fn calls_in_a_directory_are_made_in_order_and_those_given_up_are_not_made() {
        let place = Path::new("/in/order");
        let (resume, resumed) = channel::<()>();
        let (order, made) = channel();
        thread::scope(|scope| {
            scope.spawn(|| assert!(in_directory(place, move || resumed.recv().is_err()).is_err()));
            while queues().get(place).is_none_or(|queue| queue.due.is_none()) {
                thread::yield_now();
            }
            let given_up = order.clone();
            assert!(in_directory(place, move || given_up.send("given up")).is_err());
        });
        let first = order.clone();
        assert!(!remove_in(place, move || first.send("first").unwrap()));
        assert!(!remove_in(place, move || order.send("second").unwrap()));
        drop(resume);
        assert_eq!(made.iter().collect::<Vec<_>>(), ["first", "second"]);
        ends(place);
    }

    #[test]
    fn time_of_a_sync_does_not_count_for_its_call_and_for_those_behind_it() {
        let place = Path::new("/synced");
        let (begun, begins) = channel();
        thread::scope(|scope| {
            let synced = scope.spawn(|| {
                in_directory(place, move || {
                    begun.send(()).unwrap();
                    for _ in 0..2 {
                        syncing(|| thread::sleep(LIMIT + Duration::from_millis(200)));
                    }
                    5
                })
            });
            begins.recv().unwrap();
            let removed = scope.spawn(|| remove_in(place, || {}));
            assert_eq!(in_directory(place, || 6).unwrap(), 6);
            assert!(removed.join().unwrap());
            assert_eq!(synced.join().unwrap().unwrap(), 5);
        });
        assert_eq!(syncing(|| 7), 7, "outside of a call");
    }

    #[test]
    fn panic_of_a_call_is_that_of_whoever_asked_for_it() {
        let place = Path::new("/panic");
        // Without the hook, whose backtrace takes longer on a busy machine than a call may.
        let panicking = || std::panic::resume_unwind(Box::new("as it should"));
        let panicked = catch_unwind(|| in_directory(place, panicking));
        assert!(panicked.is_err());
        assert_eq!(in_directory(place, || 1).unwrap(), 1);
    }
}
