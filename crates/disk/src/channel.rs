//! One controller's way to a disk: starts requests, which wait for one another where they must.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vfiod_dma::{Errno, Error};
use vfiod_sync::atomic::Ordering;
use vfiod_sync::lock;
use vfiod_tasks::yield_now;

use crate::backend::Channel;
use crate::continued::Continued;
use crate::failure::{Failure, FailureKind};
use crate::in_flight::{InFlight, Parts};
use crate::interest::Interest;
use crate::pending::Pending;
use crate::request::{Buffer, Done, Request};
use crate::started::{Started, Step};

/// One controller's way to a disk.
///
/// A request has its range until its future has returned, or was dropped and the request has ended:
/// whoever starts requests polls all of them.
pub struct DiskChannel {
    pub(crate) parts: Arc<Parts>,
}

impl DiskChannel {
    pub(crate) fn is_write_through(&self) -> bool {
        self.parts.shared.write_through.load(Ordering::SeqCst)
    }

    /// How long somebody wants what is written to be durable, if it is to be.
    pub(crate) fn durable(&self, interest: &Interest, durable: bool) -> Option<Interest> {
        (durable || self.is_write_through()).then(|| interest.clone())
    }

    /// The range, if it is within the disk.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len)?;
        self.parts.shared.has(end).then_some(offset..end)
    }

    pub(crate) fn refuse_range(&self, offset: u64, len: u64, buffer: Option<Buffer>) -> Started {
        failed(self.out_of_range(offset, len), buffer)
    }

    fn out_of_range(&self, offset: u64, len: u64) -> Failure {
        self.parts.shared.out_of_range(offset, len)
    }

    /// The range, if it is within the disk and may be changed.
    pub(crate) fn may_change(&self, offset: u64, len: u64) -> Result<Range<u64>, Failure> {
        if lock(&self.parts.shared.limits).read_only {
            let error = Error::new(Errno::ROFS, "the disk is read-only");
            return Err(Failure { kind: FailureKind::ReadOnly, error });
        }
        if let Some(failure) = self.parts.shared.syncs.failure() {
            return Err(failure);
        }
        self.range(offset, len).ok_or_else(|| self.out_of_range(offset, len))
    }

    pub(crate) fn parts(&self) -> Arc<Parts> {
        self.parts.clone()
    }

    /// The future of a request, which goes on if it is dropped, and counts as in flight. What its steps have written
    /// is synced if it is to be durable.
    pub(crate) fn go_on(
        &self,
        durable: Option<Interest>,
        steps: impl Future<Output = Done> + Send + 'static,
    ) -> Started {
        self.go_on_as(InFlight::new(&self.parts), durable, steps)
    }

    fn go_on_as(
        &self,
        mut in_flight: InFlight,
        durable: Option<Interest>,
        steps: impl Future<Output = Done> + Send + 'static,
    ) -> Started {
        let rest = async move {
            let done = steps.await;
            in_flight.sync_if(durable, done).await
        };
        Started::from(Pending::from(Continued::new(&self.parts.runtime, rest)))
    }

    /// A request of one range that the back end does in one step.
    fn in_one_step(
        &self,
        interest: &Interest,
        range: Range<u64>,
        exclusive: bool,
        request: Request,
        durable: Option<Interest>,
    ) -> Started {
        let (offset, len, end) = (range.start, range.end - range.start, range.end);
        let lock = self.parts.ranges.enter(range, exclusive);
        if lock.is_granted() {
            if let Err(failure) = self.parts.still_has(end, offset, len) {
                return failed(failure, request.into_buffer());
            }
            let in_flight = InFlight::new(&self.parts);
            let pending = self.parts.inner.start(request);
            return Started::step(Step { pending, lock, durable, in_flight });
        }
        // Another one is in front.
        let (parts, interest) = (self.parts(), interest.clone());
        self.go_on(durable, async move {
            lock.granted().await;
            let still = parts.still_has(end, offset, len);
            if let Err(failure) = still.and_then(|()| interest.lasts()) {
                return Done { result: Err(failure), buffer: request.into_buffer() };
            }
            let done = parts.inner.start(request).await;
            drop(lock);
            done
        })
    }

    /// A request that is done in pieces, each of which `make` makes.
    fn in_pieces(
        &self,
        interest: &Interest,
        range: Range<u64>,
        durable: bool,
        make: impl Fn(u64, u64) -> Request + Send + 'static,
    ) -> Started {
        let (channel, shared) = (self.parts(), self.parts.shared.clone());
        let durable = self.durable(interest, durable);
        let interest = interest.clone();
        self.go_on(durable, async move {
            let mut at = range.start;
            while at < range.end {
                let (piece, began) = (shared.piece.next(at, range.end), std::time::Instant::now());
                let lock = channel.ranges.enter(at..at + piece, true);
                lock.granted().await;
                let still = channel.still_has(at + piece, at, piece);
                if let Err(failure) = still.and_then(|()| interest.lasts()) {
                    return Done { result: Err(failure), buffer: None };
                }
                let done = channel.inner.start(make(at, piece)).await;
                drop(lock);
                if done.result.is_err() {
                    return done;
                }
                shared.piece.took(piece, began.elapsed());
                at += piece;
                // Others have their turn, also with a back end that never waits.
                yield_now().await;
            }
            Done { result: Ok(()), buffer: None }
        })
    }
}

impl Channel for DiskChannel {
    fn start(&self, request: Request) -> Pending {
        Pending::new(self.start_within(&Interest::default(), request))
    }

    fn engine(&self) -> Option<&'static str> {
        self.parts.inner.engine()
    }

    fn gather(&self, start: &mut dyn FnMut()) {
        self.parts.inner.gather(start);
    }
}

impl DiskChannel {
    /// [`Channel::start`], of a request that is wanted as long as `interest` has not ended.
    pub fn start_within(&self, interest: &Interest, request: Request) -> Started {
        match request {
            Request::Read { offset, ref buffer } => {
                let len = buffer.len() as u64;
                match self.range(offset, len) {
                    Some(range) => self.in_one_step(interest, range, false, request, None),
                    None => self.refuse_range(offset, len, request.into_buffer()),
                }
            }
            Request::Write { offset, buffer, durable } => {
                match self.may_change(offset, buffer.len() as u64) {
                    Ok(range) => {
                        let write = Request::Write { offset, buffer, durable: false };
                        let durable = self.durable(interest, durable);
                        self.in_one_step(interest, range, true, write, durable)
                    }
                    Err(failure) => failed(failure, Some(buffer)),
                }
            }
            Request::Flush => {
                // Also where another one runs now: it may have begun before the writes had completed.
                let (channel, sync) = (self.parts(), self.parts.shared.syncs.next());
                self.go_on_as(InFlight::of_disk(&self.parts), None, async move {
                    let result = channel.sync(sync).await;
                    Done { result, buffer: None }
                })
            }
            Request::Zero { offset, len, deallocate, durable } => {
                match self.may_change(offset, len) {
                    Ok(range) => self.in_pieces(interest, range, durable, move |offset, len| {
                        Request::Zero { offset, len, deallocate, durable: false }
                    }),
                    Err(failure) => failed(failure, None),
                }
            }
            Request::Deallocate { offset, len } => match self.may_change(offset, len) {
                Ok(range) => self.in_pieces(interest, range, false, |offset, len| {
                    Request::Deallocate { offset, len }
                }),
                Err(failure) => failed(failure, None),
            },
        }
    }
}

pub(crate) fn failed(failure: Failure, buffer: Option<Buffer>) -> Started {
    Started::ended(Done { result: Err(failure), buffer })
}

impl fmt::Debug for DiskChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskChannel").field("inner", &self.parts.inner).finish_non_exhaustive()
    }
}
