//! Calls that wait for the lock of a directory.
//!
//! The kernel locks a directory while a name in it is made, given, removed, or looked up for the first
//! time. Whoever may list the directory can hold that lock for ever, by `getdents64` into a page that
//! a FUSE server does not deliver, and no signal ends the wait. So such calls are made by threads that
//! may be lost: one for each directory, which makes one call after the other. Nobody waits longer than
//! [`LIMIT`] for it, and the end of the process does not wait at all.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use vfiod_dma::{Error, Result};

/// How long a call is waited for.
const LIMIT: Duration = Duration::from_secs(2);
/// How long the removal of a name is waited for while a call in another directory takes longer than
/// [`LIMIT`]: many directories that are held up do not add up.
const LIMIT_AMONG_STUCK: Duration = Duration::from_millis(100);
/// Most directories in which calls are made at the same time.
const MAX_THREADS: usize = 256;
/// Stack of such a thread, bytes.
const STACK: usize = 512 << 10;
/// Whoever may pass through a directory of this mode may not list it.
const PASSABLE: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);

type Job = Box<dyn FnOnce() + Send>;

/// What is to be done in one directory. There is one as long as it has a thread or jobs.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    has_thread: bool,
    /// When the call began that is being made.
    since: Option<Instant>,
}

impl Queue {
    fn is_stuck(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= LIMIT)
    }
}

static QUEUES: LazyLock<Mutex<HashMap<PathBuf, Queue>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Whether this thread may be lost.
    static MAY_BE_LOST: Cell<bool> = const { Cell::new(false) };
}

fn queues() -> MutexGuard<'static, HashMap<PathBuf, Queue>> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes calls that look up, make or remove names in a directory. Waits for no longer than two seconds,
/// and not at all if an earlier call in this directory takes longer. What has begun by then is done
/// later, and its result dropped there.
///
/// # Errors
/// `ETIMEDOUT`: the directory is held up; `EAGAIN`: no thread can be started.
pub fn in_directory<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if MAY_BE_LOST.get() {
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
        return Err(held_up(directory));
    }
    enqueue(&mut queues, directory, Box::new(job)).map_err(|errno| {
        drop(take(&work));
        Error::new(errno, format!("cannot start a thread for calls in {}", directory.display()))
    })?;
    drop(queues);
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            drop(take(&work));
            // It may have come at the last moment.
            match receiver.try_recv() {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(panic)) => resume_unwind(panic),
                Err(_) => Err(held_up(directory)),
            }
        }
    }
}

/// Removes a name from a directory. It is waited for as in [`in_directory`], and done later if the directory
/// is held up. Returns whether it is done.
pub(crate) fn remove_in(directory: &Path, removal: impl FnOnce() + Send + 'static) -> bool {
    if MAY_BE_LOST.get() {
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
    let enqueued = enqueue(&mut queues, directory, Box::new(job));
    drop(queues);
    enqueued.is_ok() && !is_stuck && receiver.recv_timeout(limit).is_ok()
}

/// Has a job done after those before it.
///
/// # Errors
/// `EAGAIN`: no thread can be started.
fn enqueue(
    queues: &mut HashMap<PathBuf, Queue>,
    directory: &Path,
    job: Job,
) -> std::result::Result<(), Errno> {
    let threads = queues.values().filter(|queue| queue.has_thread).count();
    let queue = queues.entry(directory.to_owned()).or_default();
    queue.jobs.push_back(job);
    if queue.has_thread {
        return Ok(());
    }
    let place = directory.to_owned();
    let started = (threads < MAX_THREADS).then(|| {
        let thread = thread::Builder::new().name("directory".to_owned()).stack_size(STACK);
        thread.spawn(move || work_off(&place))
    });
    if let Some(Ok(_)) = started {
        queue.has_thread = true;
        return Ok(());
    }
    queues.remove(directory);
    Err(Errno::AGAIN)
}

fn work_off(directory: &Path) {
    MAY_BE_LOST.set(true);
    loop {
        let mut queues = queues();
        let Some(queue) = queues.get_mut(directory) else { return };
        let Some(job) = queue.jobs.pop_front() else {
            queues.remove(directory);
            return;
        };
        queue.since = Some(Instant::now());
        drop(queues);
        // May never return.
        job();
    }
}

fn held_up(directory: &Path) -> Error {
    let place = directory.display();
    let what = format!(
        "{place} is held up: a call there has not returned for {} s. Whoever may list a directory can \
         hold it up: end the process that does, and let others only pass through it (chmod 0711 {place})",
        LIMIT.as_secs()
    );
    Error::new(Errno::TIMEDOUT, what)
}

/// The directory of a path.
pub(crate) fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Makes a directory that is missing, and those above it. Others may pass through it, and not list it.
/// One that is there is left alone: nothing waits for a lock of a directory then.
///
/// # Errors
/// `ENOTDIR`: a file is in place of a directory; what `stat` or `mkdir` says.
pub fn make_directory(path: &Path) -> std::result::Result<(), Errno> {
    let is_there = || match rustix::fs::stat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(true),
        Ok(_) => Err(Errno::NOTDIR),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    };
    if is_there()? {
        return Ok(());
    }
    let above = directory_of(path);
    if above != Path::new(".") {
        make_directory(above)?;
    }
    match rustix::fs::mkdirat(CWD, path, PASSABLE) {
        // Somebody else has made it, or it is a link to nothing.
        Err(Errno::EXIST) if is_there()? => Ok(()),
        Err(Errno::EXIST) => Err(Errno::NOTDIR),
        made => made,
    }
}

/// Whether others than root and the user of this process may list a directory, and so hold up what is made
/// and removed there. `false` where it cannot be looked at.
pub fn is_listable_by_others(directory: &Path) -> bool {
    let Ok(stat) = rustix::fs::stat(directory) else { return false };
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_trusted = |owner: u32, ours: u32| owner == 0 || owner == ours;
    mode.contains(Mode::ROTH)
        || (mode.contains(Mode::RGRP) && !is_trusted(stat.st_gid, group))
        || !is_trusted(stat.st_uid, user)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
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
            while queues().get(place).is_none_or(|queue| queue.since.is_none()) {
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
    fn panic_of_a_call_is_that_of_whoever_asked_for_it() {
        let place = Path::new("/panic");
        let panicked = catch_unwind(|| in_directory(place, || panic!("as it should")));
        assert!(panicked.is_err());
        assert_eq!(in_directory(place, || 1).unwrap(), 1);
    }

    #[test]
    fn directories_that_are_made_can_be_passed_and_not_listed_by_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        make_directory(&path).unwrap();
        for made in [&path, &directory.path().join("a")] {
            let mode = std::fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o777 & !0o711, 0, "{mode:o}");
            assert!(!is_listable_by_others(made));
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        make_directory(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "that of others is left alone");
        assert!(is_listable_by_others(&path));
        std::os::unix::fs::symlink("nothing", directory.path().join("link")).unwrap();
        assert_eq!(make_directory(&directory.path().join("link")), Err(Errno::NOTDIR));
    }
}
