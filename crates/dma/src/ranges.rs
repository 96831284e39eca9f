//! The ranges of addresses that are in use by accesses which hold no lock, and waiting for the
//! end of these accesses.

use std::task::{Poll, Waker};
use std::time::Instant;

use vfiod_sync::{Arc, Condvar, Mutex, lock, wait_until};

/// The ranges in use in one space: one for each hold, for each large copy, and for each listener
/// that delays an unmap. They are few at a time, so a list will do.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ranges: Vec<Option<(u64, u64)>>,
    free: Vec<usize>,
    /// Threads in [`Ranges::wait`].
    waiting: usize,
    wakers: Vec<Waker>,
}

impl State {
    fn any(&self, hits: impl Fn(u64, u64) -> bool) -> bool {
        self.ranges.len() > self.free.len()
            && self.ranges.iter().flatten().any(|(first, last)| hits(*first, *last))
    }
}

/// One range in use, until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse {
    of: Arc<Ranges>,
    id: usize,
}

impl Ranges {
    /// Marks `[first, last]` as in use.
    ///
    /// An access calls this with the map locked for reading, so that an unmap, which changes the
    /// map before it looks here, sees the range.
    pub(crate) fn begin(self: &Arc<Self>, first: u64, last: u64) -> InUse {
        let mut state = lock(&self.state);
        let id = state.free.pop().unwrap_or_else(|| {
            state.ranges.push(None);
            state.ranges.len() - 1
        });
        state.ranges[id] = Some((first, last));
        InUse { of: self.clone(), id }
    }

    /// Whether a range that `hits` accepts is in use.
    pub(crate) fn any(&self, hits: impl Fn(u64, u64) -> bool) -> bool {
        lock(&self.state).any(hits)
    }

    /// Blocks until no range that `hits` accepts is in use (`true`), or until `deadline`; `None`
    /// waits without limit.
    pub(crate) fn wait(&self, hits: impl Fn(u64, u64) -> bool, deadline: Option<Instant>) -> bool {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let clear = loop {
            if !state.any(&hits) {
                break true;
            }
            let Some(deadline) = deadline else {
                let forever = std::time::Duration::MAX;
                state = vfiod_sync::wait(&self.ended, &self.state, state, forever);
                continue;
            };
            match wait_until(&self.ended, &self.state, state, deadline) {
                Some(woken) => state = woken,
                None => {
                    state = lock(&self.state);
                    break !state.any(&hits);
                }
            }
        };
        state.waiting -= 1;
        clear
    }

    /// Ready if no range that `hits` accepts is in use; else `waker` is woken at the end of the
    /// next access, whichever it is.
    pub(crate) fn poll(&self, hits: impl Fn(u64, u64) -> bool, waker: &Waker) -> Poll<()> {
        let mut state = lock(&self.state);
        if !state.any(hits) {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
        Poll::Pending
    }

    /// How many ranges are in use.
    pub(crate) fn len(&self) -> usize {
        let state = lock(&self.state);
        state.ranges.len() - state.free.len()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = lock(&self.of.state);
        state.ranges[self.id] = None;
        state.free.push(self.id);
        let wakers = std::mem::take(&mut state.wakers);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.of.ended.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}
