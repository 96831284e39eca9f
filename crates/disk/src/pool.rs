//! A limited number of buffers of one size, which are used again.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use vfiod_buffer::Aligned;
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::Waiters;

/// What addresses of buffers are multiples of: more than any disk asks for.
const ALIGN: usize = 4096;

pub(crate) struct Pool {
    size: usize,
    state: Mutex<State>,
    given_back: Waiters,
}

struct State {
    free: Vec<Aligned>,
    /// How many more may be made.
    left: usize,
}

/// A buffer of a pool, or its place. Dropping it gives both back.
pub(crate) struct Piece {
    buffer: Option<Aligned>,
    pool: Arc<Pool>,
}

impl Pool {
    /// At most `most` buffers of `size` bytes, at least one.
    pub(crate) fn new(size: usize, most: usize) -> Arc<Self> {
        let state = Mutex::new(State { free: Vec::new(), left: most.max(1) });
        Arc::new(Self { size, state, given_back: Waiters::new() })
    }

    /// A buffer. Waits until one is free, or until there is memory for it. Its bytes are those that
    /// were in it before. Who has one must not wait for another one.
    pub(crate) async fn take(self: &Arc<Self>) -> Piece {
        let buffer = self.given_back.wait_for(|| self.try_take()).await;
        Piece { buffer: Some(buffer), pool: self.clone() }
    }

    fn try_take(&self) -> Option<Aligned> {
        let mut state = lock(&self.state);
        if let Some(free) = state.free.pop() {
            return Some(free);
        }
        if state.left == 0 {
            return None;
        }
        // Where there is no memory for another one, those that there are come back. The first one must
        // be had: it is no larger than what everybody may have.
        let made = Aligned::zeroed(self.size, ALIGN).ok()?;
        state.left -= 1;
        Some(made)
    }
}

impl Piece {
    /// Makes it `len` bytes long, at most the pool's size, and takes it out; [`Piece::put_back`] follows.
    pub(crate) fn take_out(&mut self, len: usize) -> Option<Aligned> {
        let mut buffer = self.buffer.take()?;
        buffer.set_len(len);
        Some(buffer)
    }

    /// Puts a buffer back that was taken out; `None`: it is lost.
    pub(crate) fn put_back(&mut self, buffer: Option<Aligned>) {
        self.buffer = buffer;
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        match self.buffer.take() {
            Some(mut buffer) => {
                buffer.set_len(self.pool.size);
                state.free.push(buffer);
            }
            None => state.left += 1,
        }
        drop(state);
        self.pool.given_back.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn no_more_buffers_are_made_than_allowed() {
        let pool = Pool::new(1000, 2);
        let mut cx = Context::from_waker(Waker::noop());
        let mut take = || match pin!(pool.take()).poll(&mut cx) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        };
        let (mut first, second) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        let address = second.as_ptr();
        assert_eq!((address.addr() % ALIGN, second.len()), (0, 1000));
        drop(second);
        let again = take().unwrap();
        assert_eq!(again.as_ptr(), address, "it is used again");
        assert!(take().is_none());
        // One that is lost is made anew.
        assert_eq!(first.take_out(10).map(|buffer| buffer.len()), Some(10));
        first.put_back(None);
        drop(first);
        assert_eq!(take().unwrap().len(), 1000);
    }
}
