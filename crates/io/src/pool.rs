//! Threads that perform requests where io_uring is forbidden or missing. Files take turns, and none has all
//! threads: who has much to do with one disk, or a disk that does not answer, leaves others theirs.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use vfiod_sync::{Arc, Condvar, Mutex, lock, thread};

use crate::raw::perform;
use crate::readiness::signal;
use crate::request::Request;

/// A few threads, which start when there is work for them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    most: usize,
}

struct Shared {
    /// Most threads with one file.
    most_of_file: usize,
    state: Mutex<State>,
    changed: Condvar,
    eventfd: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    completed: Vec<(Request, i64)>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    /// Requests that a thread performs now.
    running: usize,
    ended: bool,
}

/// Requests that wait for a thread, by their files.
#[derive(Default)]
struct Waiting {
    files: BTreeMap<usize, File>,
    /// Files that have requests and may have a thread, in the order of their turns.
    turns: VecDeque<usize>,
    len: usize,
}

#[derive(Default)]
struct File {
    requests: VecDeque<Request>,
    /// Threads that are with it.
    threads: usize,
    /// It has a turn to come.
    has_turn: bool,
}

impl Waiting {
    fn key(request: &Request) -> usize {
        Arc::as_ptr(&request.file).addr()
    }

    fn push(&mut self, request: Request, most: usize) {
        let key = Self::key(&request);
        self.files.entry(key).or_default().requests.push_back(request);
        self.len += 1;
        self.take_turn(key, most);
    }

    fn take_turn(&mut self, key: usize, most: usize) {
        let Some(file) = self.files.get_mut(&key) else { return };
        if !file.has_turn && !file.requests.is_empty() && file.threads < most {
            file.has_turn = true;
            self.turns.push_back(key);
        }
    }

    /// The next request, which a thread begins now.
    fn begin(&mut self, most: usize) -> Option<(usize, Request)> {
        loop {
            let key = self.turns.pop_front()?;
            let Some(file) = self.files.get_mut(&key) else { continue };
            file.has_turn = false;
            // It may have been taken back.
            let Some(request) = file.requests.pop_front() else { continue };
            file.threads += 1;
            self.len -= 1;
            self.take_turn(key, most);
            return Some((key, request));
        }
    }

    /// A thread has done with a request.
    fn end(&mut self, key: usize, most: usize) {
        let Some(file) = self.files.get_mut(&key) else { return };
        file.threads -= 1;
        if file.threads == 0 && file.requests.is_empty() {
            self.files.remove(&key);
        } else {
            self.take_turn(key, most);
        }
    }

    /// How many requests a thread could begin now, one for each file.
    fn turns(&self) -> usize {
        self.turns.len()
    }

    /// Takes back the newest request of a file.
    fn take_back(&mut self, key: usize) -> Option<Request> {
        let request = self.files.get_mut(&key)?.requests.pop_back()?;
        self.len -= 1;
        Some(request)
    }
}

impl Pool {
    /// At most `most` threads, at least one. Completions make `eventfd` readable.
    pub(crate) fn new(most: usize, eventfd: Arc<OwnedFd>) -> Self {
        let most = most.max(1);
        let most_of_file = (most - 1).max(1);
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { most_of_file, state, changed, eventfd }), most }
    }

    /// Hands a request to a thread.
    pub(crate) fn push(&self, request: Request) {
        let mut state = lock(&self.shared.state);
        let key = Waiting::key(&request);
        state.waiting.push(request, self.shared.most_of_file);
        if state.idle >= state.waiting.turns() || state.threads >= self.most {
            drop(state);
            self.shared.changed.notify_one();
            return;
        }
        let shared = self.shared.clone();
        let started =
            thread::Builder::new().name("vfiod-io".to_owned()).spawn(move || shared.work());
        match started {
            Ok(_) => state.threads += 1,
            // Others are there to do it.
            Err(_) if state.threads > 0 => {}
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread for I/O; the caller does it");
                if let Some(request) = state.waiting.take_back(key) {
                    drop(state);
                    let completed = perform(request);
                    lock(&self.shared.state).completed.push(completed);
                    signal(&self.shared.eventfd);
                }
            }
        }
    }

    /// Takes what has completed, with what the kernel returned.
    pub(crate) fn completed(&self) -> Vec<(Request, i64)> {
        std::mem::take(&mut lock(&self.shared.state).completed)
    }

    /// Requests that have not completed, or whose completion was not taken.
    pub(crate) fn len(&self) -> usize {
        let state = lock(&self.shared.state);
        state.waiting.len + state.running + state.completed.len()
    }
}

impl Shared {
    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            let Some((key, request)) = state.waiting.begin(self.most_of_file) else {
                if state.ended {
                    return;
                }
                state.idle += 1;
                let forever = std::time::Duration::MAX;
                state = vfiod_sync::wait(&self.changed, &self.state, state, forever);
                state.idle -= 1;
                continue;
            };
            state.running += 1;
            let others_have_turns = state.waiting.turns() > 0 && state.idle > 0;
            drop(state);
            if others_have_turns {
                self.changed.notify_one();
            }
            let completed = perform(request);
            state = lock(&self.state);
            state.running -= 1;
            state.waiting.end(key, self.most_of_file);
            state.completed.push(completed);
            // While locked: a completion is announced before the pool counts as empty.
            signal(&self.eventfd);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::data::Buffer;
    use crate::reply::pair;
    use crate::request::Operation;

    fn file() -> Arc<OwnedFd> {
        Arc::new(rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }

    fn request(file: &Arc<OwnedFd>) -> Request {
        let (operation, file, buffer) = (Operation::Flush, file.clone(), Buffer::None);
        let completion = pair().0;
        Request { operation, file, buffer, done: 0, given_up: 0, bounce: None, completion }
    }

    #[test]
    fn files_take_turns_and_none_has_all_threads() {
        let [busy, other, third] = [file(), file(), file()];
        let mut waiting = Waiting::default();
        let name = |key: usize| {
            [&busy, &other, &third].iter().position(|file| Arc::as_ptr(file).addr() == key).unwrap()
        };
        for of in [&busy, &busy, &busy, &busy, &other, &third, &busy, &other] {
            waiting.push(request(of), 2);
        }
        let mut begun = Vec::new();
        while let Some((key, request)) = waiting.begin(2) {
            begun.push((key, request));
        }
        let order: Vec<usize> = begun.iter().map(|(key, _)| name(*key)).collect();
        assert_eq!((order, waiting.len), (vec![0, 1, 2, 0, 1], 3), "two threads for one file");
        // Whoever has done with one may begin the next one of that file.
        let (key, _) = begun.remove(0);
        waiting.end(key, 2);
        assert_eq!(waiting.begin(2).map(|(key, _)| name(key)), Some(0));
        assert!(waiting.begin(2).is_none());
        waiting.push(request(&third), 2);
        assert_eq!(waiting.begin(2).map(|(key, _)| name(key)), Some(2));
        // What is taken back leaves a turn behind, which means nothing.
        let fourth = file();
        waiting.push(request(&fourth), 2);
        assert!(waiting.take_back(Arc::as_ptr(&fourth).addr()).is_some());
        waiting.push(request(&third), 2);
        for key in begun.iter().map(|(key, _)| *key).filter(|key| name(*key) == 2) {
            waiting.end(key, 2);
        }
        assert_eq!(waiting.begin(2).map(|(key, _)| name(key)), Some(2));
        assert_eq!(waiting.len, 2, "of the busy file");
    }
}
