//! A limited number of buffers, the first of which is always there: where there is no memory for another one, or the
//! user may not have it, requests take turns with that. So each of them is done some time, and waits for others of
//! its kind alone.
//!
//! The first one is small, made with the pool, and belongs to the device. Any other one is charged to the user who has
//! the device open, and given back after its request.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use vfiod_buffer::{Aligned, NoMemory, zeroed};
use vfiod_quota::{Charge, CurrentPayer, Resource};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::Waiters;

/// What addresses of buffers are multiples of: more than any disk asks for.
const ALIGN: usize = 4096;
/// Bytes of the first buffer. A multiple of the largest block that a controller has.
const FIRST: usize = 4096;

/// What a pool has several of.
pub(crate) trait Pooled: Sized {
    /// With room for `len` bytes.
    ///
    /// # Errors
    /// There is no memory.
    fn make(len: usize) -> Result<Self, NoMemory>;

    /// Makes one that was used as new, but for what is in it.
    fn renew(&mut self, len: usize);

    /// Bytes of memory of one with room for `len` bytes.
    fn cost(len: usize) -> usize;
}

impl Pooled for Aligned {
    fn make(len: usize) -> Result<Self, NoMemory> {
        Self::zeroed(len, ALIGN)
    }

    fn renew(&mut self, len: usize) {
        self.set_len(len);
    }

    fn cost(len: usize) -> usize {
        len + ALIGN
    }
}

/// Two buffers of one length, for a comparison: what the disk has, and what it is to have.
pub(crate) struct Pair {
    pub(crate) disk: Vec<u8>,
    pub(crate) expected: Vec<u8>,
}

impl Pooled for Pair {
    fn make(len: usize) -> Result<Self, NoMemory> {
        Ok(Self { disk: zeroed(len)?, expected: zeroed(len)? })
    }

    fn renew(&mut self, _len: usize) {}

    fn cost(len: usize) -> usize {
        2 * len
    }
}

pub(crate) struct Pool<B> {
    /// Bytes of a buffer, at most.
    size: usize,
    state: Mutex<State<B>>,
    payer: OnceLock<CurrentPayer>,
    given_back: Waiters,
}

struct State<B> {
    /// `None`: it is in use.
    first: Option<B>,
    /// How many more may be made.
    left: usize,
}

/// A buffer of a pool. Dropping it gives it back.
pub(crate) struct Piece<B: Pooled> {
    /// `None`: it was taken out.
    buffer: Option<B>,
    room: usize,
    is_first: bool,
    pool: Arc<Pool<B>>,
    /// What the user is charged.
    _charge: Option<Charge>,
}

impl<B: Pooled> Pool<B> {
    /// At most `most` buffers of `size` bytes, at least one.
    ///
    /// # Errors
    /// There is no memory for the first one.
    pub(crate) fn new(size: usize, most: usize) -> Result<Arc<Self>, NoMemory> {
        let first = Some(B::make(FIRST)?);
        let state = Mutex::new(State { first, left: most.saturating_sub(1) });
        let (payer, given_back) = (OnceLock::new(), Waiters::new());
        Ok(Arc::new(Self { size, state, payer, given_back }))
    }

    /// Charges whoever pays for the buffers that are made from now on. To be called once.
    pub(crate) fn charge_to(&self, payer: CurrentPayer) {
        _ = self.payer.set(payer);
    }

    /// A buffer of up to `len` bytes, at least the first one's. Waits until there is one. Its bytes are those that were in it
    /// before. Who has one must not wait for another one.
    pub(crate) async fn take(self: &Arc<Self>, len: usize) -> Piece<B> {
        self.given_back.wait_for(|| self.try_take(len)).await
    }

    fn try_take(self: &Arc<Self>, len: usize) -> Option<Piece<B>> {
        let len = len.min(self.size);
        let mut state = lock(&self.state);
        if (len > FIRST || state.first.is_none())
            && state.left > 0
            && let Some((buffer, _charge)) = self.make(len)
        {
            state.left -= 1;
            let (room, is_first, pool) = (len, false, self.clone());
            return Some(Piece { buffer: Some(buffer), room, is_first, pool, _charge });
        }
        let mut buffer = state.first.take()?;
        buffer.renew(FIRST);
        let (room, is_first, pool) = (FIRST, true, self.clone());
        Some(Piece { buffer: Some(buffer), room, is_first, pool, _charge: None })
    }

    fn make(&self, len: usize) -> Option<(B, Option<Charge>)> {
        let charge = match self.payer.get() {
            Some(payer) => payer.charge(Resource::Memory, B::cost(len) as u64).ok()?,
            None => None,
        };
        Some((B::make(len).ok()?, charge))
    }
}

impl<B: Pooled> Piece<B> {
    /// How many bytes it has room for.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Takes it out; [`Piece::put_back`] follows.
    pub(crate) fn take_out(&mut self) -> Option<B> {
        self.buffer.take()
    }

    /// It, unless it was taken out, or is lost.
    pub(crate) fn get_mut(&mut self) -> Option<&mut B> {
        self.buffer.as_mut()
    }

    /// Puts a buffer back that was taken out; `None`: it is lost.
    pub(crate) fn put_back(&mut self, buffer: Option<B>) {
        self.buffer = buffer;
    }
}

impl Deref for Piece<Aligned> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Piece<Aligned> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl<B: Pooled> Drop for Piece<B> {
    fn drop(&mut self) {
        let buffer = self.buffer.take();
        let mut state = lock(&self.pool.state);
        if self.is_first {
            // It is lost with its ring, which ends with the runtime.
            state.first = buffer.or_else(|| B::make(FIRST).ok());
        } else {
            state.left += 1;
        }
        drop(state);
        // Before others look.
        self._charge = None;
        self.pool.given_back.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use vfiod_quota::{Ledger, Limit, Limits, Payer, Share, Size, User};

    use super::*;

    const LARGE: usize = 64 << 10;

    fn take(pool: &Arc<Pool<Aligned>>, len: usize) -> Option<Piece<Aligned>> {
        match pin!(pool.take(len)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        }
    }

    #[test]
    fn no_more_buffers_are_made_than_allowed() {
        let pool = Pool::new(LARGE, 2).unwrap();
        let (mut second, first) = (take(&pool, LARGE).unwrap(), take(&pool, LARGE).unwrap());
        assert_eq!((first.room(), second.room()), (FIRST, LARGE));
        assert!(take(&pool, 1).is_none());
        let address = first.as_ptr();
        assert_eq!((address.addr() % ALIGN, first.len()), (0, FIRST));
        drop(first);
        let again = take(&pool, 1).unwrap();
        assert_eq!(again.as_ptr(), address, "it is used again");
        assert!(take(&pool, 1).is_none());
        // One that is lost is made anew.
        assert_eq!(second.take_out().map(|buffer| buffer.len()), Some(LARGE));
        second.put_back(None);
        drop(second);
        assert_eq!(take(&pool, 512).unwrap().len(), 512);
    }

    /// Whoever may have no more memory has turns with the first buffer.
    #[test]
    fn other_buffers_are_charged_and_the_first_one_is_always_there() {
        let mut limits = Limits::of_process(1);
        limits.set(Resource::Memory, Limit::new(Size::Common(0x4_0000), Share::Demanded(0)));
        let ledger = Ledger::new(limits);
        let used = || ledger.usage(Resource::Memory).used;
        let payer = Payer::new(ledger.open("disk").unwrap().account, User::Account(1000));
        let (pool, current) = (Pool::new(LARGE, 256).unwrap(), CurrentPayer::default());
        pool.charge_to(current.clone());
        let uncharged = take(&pool, LARGE).unwrap();
        assert_eq!((uncharged.room(), used()), (LARGE, 0), "nobody pays");
        drop(uncharged);
        current.set(Some(payer.clone()));
        let large = take(&pool, LARGE).unwrap();
        assert_eq!((large.room(), used()), (LARGE, (LARGE + ALIGN) as u64));
        // Of what is common one user has half.
        let other = payer.charge(Resource::Memory, 0xf000).unwrap();
        let first = take(&pool, LARGE).unwrap();
        assert_eq!((first.room(), used()), (FIRST, 0x2_0000));
        assert!(take(&pool, 1).is_none());
        let mut waits = pin!(pool.take(LARGE));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(first);
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        drop((large, other));
        assert_eq!(used(), 0, "it is given back");
    }
}
