//! Threads that perform requests where io_uring is forbidden or missing.

use std::collections::VecDeque;
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
    state: Mutex<State>,
    changed: Condvar,
    eventfd: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Request>,
    completed: Vec<(Request, i64)>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    /// Requests that a thread performs now.
    running: usize,
    ended: bool,
}

impl Pool {
    /// At most `most` threads, at least one. Completions make `eventfd` readable.
    pub(crate) fn new(most: usize, eventfd: Arc<OwnedFd>) -> Self {
        let shared = Shared { state: Mutex::default(), changed: Condvar::new(), eventfd };
        Self { shared: Arc::new(shared), most: most.max(1) }
    }

    /// Hands a request to a thread.
    pub(crate) fn push(&self, request: Request) {
        let mut state = lock(&self.shared.state);
        state.waiting.push_back(request);
        if state.idle >= state.waiting.len() || state.threads >= self.most {
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
                if let Some(request) = state.waiting.pop_back() {
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
        state.waiting.len() + state.running + state.completed.len()
    }
}

impl Shared {
    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            let Some(request) = state.waiting.pop_front() else {
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
            drop(state);
            let completed = perform(request);
            state = lock(&self.state);
            state.running -= 1;
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
