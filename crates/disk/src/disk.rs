//! A disk as all its controllers see it: one back end, and what must hold between their requests.
//!
//! | what | where |
//! | --- | --- |
//! | a read beside a write sees whole blocks; compare and write are one step | `ranges.rs` |
//! | a flush ends after a sync that began after it; a failed sync is not forgotten | `syncs.rs` |
//! | a long deallocation delays nobody: it is done in pieces | `pieces.rs` |
//! | what has begun goes on when nobody waits for it, with its locks | `continued.rs` |
//! | what has not begun, or has further pieces, ends when nobody wants it | `interest.rs` |

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vfiod_dma::{Errno, Error, Flight, Flights, Result};
use vfiod_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Runtime, Waiters, WeakRuntime, race, yield_now};

use crate::backend::{
    About, Backend, Buffer, Channel, Done, Failure, FailureKind, Limits, Request,
};
use crate::continued::Continued;
use crate::interest::Interest;
use crate::pending::Pending;
use crate::pieces::PieceSize;
use crate::pool::Pool;
use crate::ranges::{Ranges, User};
use crate::started::{Started, Step};
use crate::syncs::Syncs;

/// Bytes that a compare reads at a time.
const COMPARED: usize = 64 << 10;
/// Compares that one channel does at a time.
const COMPARES: usize = 16;
/// Bytes that a verify reads at a time.
const VERIFIED: u64 = 64 << 10;

/// A disk that several controllers may use. A clone is the same disk.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    backend: Arc<dyn Backend>,
    limits: Mutex<Limits>,
    /// Of the limits: requests look at it without a lock. It becomes smaller before the end is cut off.
    capacity: AtomicU64,
    ranges: Arc<Ranges>,
    syncs: Arc<Syncs>,
    write_through: AtomicBool,
    piece: PieceSize,
    in_flight: AtomicUsize,
    ended: Waiters,
}

impl Shared {
    /// Whether the disk goes as far as this.
    pub(crate) fn has(&self, end: u64) -> bool {
        end <= self.capacity.load(Ordering::SeqCst)
    }

    fn out_of_range(&self, offset: u64, len: u64) -> Failure {
        let capacity = self.capacity.load(Ordering::SeqCst);
        let what = format!("{len} bytes at {offset:#x} of a disk of {capacity}");
        Failure { kind: FailureKind::OutOfRange, error: Error::new(Errno::NXIO, what) }
    }
}

/// Counts a request for as long as it is in flight.
pub(crate) struct InFlight {
    parts: Arc<Parts>,
    of_device: Option<Flight>,
}

impl InFlight {
    pub(crate) fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    fn new(parts: &Arc<Parts>) -> Self {
        Self::count(parts, parts.device.as_ref().map(Flights::begin))
    }

    /// One that the device need not wait for: it moves no data.
    fn of_disk(parts: &Arc<Parts>) -> Self {
        Self::count(parts, None)
    }

    fn count(parts: &Arc<Parts>, of_device: Option<Flight>) -> Self {
        parts.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { parts: parts.clone(), of_device }
    }

    /// Syncs what the request has written, if it is to be durable, as long as somebody wants that. The device need
    /// not wait meanwhile: the guest's memory is not used any more, and what is on the disk does not change.
    pub(crate) async fn sync_if(&mut self, durable: Option<Interest>, mut done: Done) -> Done {
        if let Some(interest) = durable
            && done.result.is_ok()
        {
            self.of_device = None;
            done.buffer = None;
            let synced = self.parts.sync(self.parts.shared.syncs.next());
            done.result = race(synced, async { Err(interest.ended().await) }).await;
        }
        done
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let shared = &self.parts.shared;
        if shared.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            shared.ended.wake_all();
        }
    }
}

impl Disk {
    /// The disk that a back end keeps. There must be one only for each back end.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let limits = backend.limits();
        let shared = Shared {
            piece: PieceSize::new(u64::from(limits.deallocate.unwrap_or(limits.block))),
            capacity: AtomicU64::new(limits.capacity),
            limits: Mutex::new(limits),
            backend,
            ranges: Arc::default(),
            syncs: Arc::default(),
            write_through: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            ended: Waiters::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What the disk can do, as of the last [`Disk::refresh`].
    pub fn limits(&self) -> Limits {
        lock(&self.shared.limits).clone()
    }

    /// What keeps its bytes, for the operator.
    pub fn about(&self) -> About {
        self.shared.backend.about()
    }

    /// Asks the back end what it can do now: its capacity may have changed.
    pub fn refresh(&self) -> Limits {
        let limits = self.shared.backend.limits();
        let mut own = lock(&self.shared.limits);
        own.clone_from(&limits);
        self.shared.capacity.store(limits.capacity, Ordering::SeqCst);
        limits
    }

    /// The size that what keeps the bytes has now. Changes nothing. May block.
    pub fn size_now(&self) -> u64 {
        self.shared.backend.limits().capacity
    }

    /// Makes the disk smaller as far as hosts can tell: requests behind the new end are out of range from now
    /// on. Waits until none is under way there. A larger size changes nothing.
    pub async fn cut(&self, bytes: u64) {
        let shared = &self.shared;
        let before = {
            let mut limits = lock(&shared.limits);
            let smaller = limits.capacity.min(bytes);
            shared.capacity.store(smaller, Ordering::SeqCst);
            std::mem::replace(&mut limits.capacity, smaller)
        };
        if bytes < before {
            // Who is granted this range later looks at the capacity after that.
            shared.ranges.user().enter(bytes..before, true).granted().await;
        }
    }

    /// Gives what keeps the bytes a size; a smaller one after [`Disk::cut`]. May block.
    ///
    /// # Errors
    /// As [`Backend::set_size`]; the disk then has the size that the back end has.
    pub fn set_size(&self, bytes: u64) -> Result<()> {
        let set = self.shared.backend.set_size(bytes);
        self.refresh();
        set
    }

    /// Lets others use what keeps the bytes; see [`Backend::release`].
    pub fn release(&self) {
        self.shared.backend.release();
    }

    /// A controller's way to the disk; see [`Backend::connect`].
    ///
    /// # Errors
    /// As [`Backend::connect`].
    pub fn connect(&self, runtime: &Runtime) -> Result<Arc<DiskChannel>> {
        self.channel(runtime, None)
    }

    /// The way of a controller whose requests these are: the device is not idle before they have ended, but for
    /// flushes, those included that nobody waits for any more. So an old write never lands after the next user's.
    ///
    /// # Errors
    /// As [`Backend::connect`].
    pub fn connect_device(&self, runtime: &Runtime, device: Flights) -> Result<Arc<DiskChannel>> {
        self.channel(runtime, Some(device))
    }

    fn channel(&self, runtime: &Runtime, device: Option<Flights>) -> Result<Arc<DiskChannel>> {
        let inner = self.shared.backend.clone().connect(runtime)?;
        let parts = Arc::new(Parts {
            inner,
            shared: self.shared.clone(),
            runtime: runtime.downgrade(),
            device,
            ranges: self.shared.ranges.user(),
            compares: Pool::new(COMPARED, COMPARES),
        });
        Ok(Arc::new(DiskChannel { parts }))
    }

    /// Whether every write is synced before it completes, as if each were durable (a volatile write
    /// cache that is switched off). What was written before is synced by the next of them.
    pub fn set_write_through(&self, on: bool) {
        self.shared.write_through.store(on, Ordering::SeqCst);
    }

    /// Why the disk takes no writes any more, if a sync has failed. Only opening it anew ends that.
    pub fn sync_failure(&self) -> Option<Failure> {
        self.shared.syncs.failure()
    }

    /// How many requests have not ended, those included that nobody waits for any more.
    pub fn in_flight(&self) -> usize {
        let sync = usize::from(self.shared.syncs.is_running());
        self.shared.in_flight.load(Ordering::SeqCst) + sync
    }

    /// Waits until no request is in flight: an old write never lands after this.
    pub async fn idle(&self) {
        let shared = &self.shared;
        let ended = || (shared.in_flight.load(Ordering::SeqCst) == 0).then_some(());
        shared.ended.wait_for(ended).await;
        shared.syncs.idle().await;
    }
}

/// One controller's way to a disk.
///
/// A request has its range until its future has returned, or was dropped and the request has ended:
/// whoever starts requests polls all of them.
pub struct DiskChannel {
    pub(crate) parts: Arc<Parts>,
}

fn refuse(kind: FailureKind, errno: Errno, what: String, buffer: Option<Buffer>) -> Started {
    failed(Failure { kind, error: Error::new(errno, what) }, buffer)
}

impl DiskChannel {
    /// Reads a range and compares it with a buffer, guest memory that is held for reading.
    /// [`FailureKind::Different`]: they are not equal.
    pub fn compare(&self, interest: &Interest, offset: u64, with: Buffer) -> Started {
        let Some(range) = self.range(offset, with.len() as u64) else {
            return self.refuse_range(offset, with.len() as u64, Some(with));
        };
        let (lock, channel) = (self.parts.ranges.enter(range, false), self.parts());
        let interest = interest.clone();
        self.go_on(None, async move {
            lock.granted().await;
            let len = with.len() as u64;
            if let Err(failure) = channel.still_has(offset + len, offset, len) {
                return Done { result: Err(failure), buffer: Some(with) };
            }
            let (result, with) = channel.compare(&interest, offset, with).await;
            Done { result, buffer: Some(with) }
        })
    }

    /// Compares a range with `with`, and if they are equal calls `equal` and writes `buffer`, of the same
    /// length: in one step, as far as any other request of the disk can tell. A failure
    /// without a call of `equal` is one of the comparison, and nothing was written.
    /// [`FailureKind::Different`]: they are not equal.
    pub fn compare_and_write(
        &self,
        interest: &Interest,
        offset: u64,
        (with, buffer): (Buffer, Buffer),
        durable: bool,
        equal: impl FnOnce() + Send + 'static,
    ) -> Started {
        let len = buffer.len() as u64;
        if with.len() as u64 != len {
            let what = format!("{} bytes to compare, {len} to write", with.len());
            return refuse(FailureKind::Other, Errno::INVAL, what, Some(buffer));
        }
        let range = match self.may_change(offset, len) {
            Ok(range) => range,
            Err(failure) => return failed(failure, Some(buffer)),
        };
        let end = range.end;
        let (lock, channel) = (self.parts.ranges.enter(range, true), self.parts());
        let durable = self.durable(interest, durable);
        self.go_on(durable, async move {
            lock.granted().await;
            if let Err(failure) = channel.still_has(end, offset, len) {
                return Done { result: Err(failure), buffer: Some(buffer) };
            }
            if let (Err(failure), _) = channel.compare(&Interest::default(), offset, with).await {
                return Done { result: Err(failure), buffer: Some(buffer) };
            }
            equal();
            let write = Request::Write { offset, buffer, durable: false };
            let done = channel.inner.start(write).await;
            drop(lock);
            done
        })
    }

    /// Reads a range, and throws away what it has.
    pub fn verify(&self, interest: &Interest, offset: u64, len: u64) -> Started {
        if self.range(offset, len).is_none() {
            return self.refuse_range(offset, len, None);
        }
        let channel = self.parts();
        let interest = interest.clone();
        self.go_on(None, async move {
            let mut done = 0;
            while done < len {
                let (at, part) = (offset + done, (len - done).min(VERIFIED));
                let lock = channel.ranges.enter(at..at + part, false);
                lock.granted().await;
                let result = match channel.still_has(at + part, at, part) {
                    Ok(()) => channel.verify(&interest, at, part as usize).await,
                    Err(failure) => Err(failure),
                };
                if result.is_err() {
                    return Done { result, buffer: None };
                }
                done += part;
                // Others have their turn, also with a back end that never waits.
                yield_now().await;
            }
            Done { result: Ok(()), buffer: None }
        })
    }

    pub(crate) fn is_write_through(&self) -> bool {
        self.parts.shared.write_through.load(Ordering::SeqCst)
    }

    /// How long somebody wants what is written to be durable, if it is to be.
    fn durable(&self, interest: &Interest, durable: bool) -> Option<Interest> {
        (durable || self.is_write_through()).then(|| interest.clone())
    }

    /// The range, if it is within the disk.
    fn range(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len)?;
        self.parts.shared.has(end).then_some(offset..end)
    }

    fn refuse_range(&self, offset: u64, len: u64, buffer: Option<Buffer>) -> Started {
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

    fn parts(&self) -> Arc<Parts> {
        self.parts.clone()
    }

    /// The future of a request, which goes on if it is dropped, and counts as in flight. What its steps have written
    /// is synced if it is to be durable.
    fn go_on(
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

fn failed(failure: Failure, buffer: Option<Buffer>) -> Started {
    Started::ended(Done { result: Err(failure), buffer })
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

/// What the steps of a request need of their channel.
pub(crate) struct Parts {
    pub(crate) inner: Arc<dyn Channel>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) runtime: WeakRuntime,
    /// What is not idle before all requests have ended.
    device: Option<Flights>,
    /// Its requests have turns with those of other channels.
    pub(crate) ranges: Arc<User>,
    compares: Arc<Pool>,
}

impl Parts {
    /// That the disk goes as far as this, for whoever was granted a range. Whoever cuts the end off makes the
    /// capacity smaller first, then waits for those who were granted a range there.
    fn still_has(&self, end: u64, offset: u64, len: u64) -> Result<(), Failure> {
        if self.shared.has(end) { Ok(()) } else { Err(self.shared.out_of_range(offset, len)) }
    }

    /// Waits until a sync has ended, this one or a later one.
    async fn sync(&self, sync: u64) -> Result<(), Failure> {
        self.shared.syncs.ended(sync, &self.inner).await
    }

    /// Reads into a buffer of our own, which comes back.
    async fn read(&self, offset: u64, bytes: Vec<u8>) -> (Result<(), Failure>, Vec<u8>) {
        let done = self.inner.start(Request::Read { offset, buffer: Buffer::Own(bytes) }).await;
        let bytes = if let Some(Buffer::Own(bytes)) = done.buffer { bytes } else { Vec::new() };
        (done.result, bytes)
    }

    async fn verify(&self, interest: &Interest, offset: u64, len: usize) -> Result<(), Failure> {
        // The place counts; where there is no memory, others end first.
        let _place = self.compares.take().await;
        interest.lasts()?;
        let bytes = vfiod_buffer::zeroed(len).map_err(Error::from)?;
        self.read(offset, bytes).await.0
    }

    async fn compare(
        &self,
        interest: &Interest,
        offset: u64,
        with: Buffer,
    ) -> (Result<(), Failure>, Buffer) {
        let mut expected = self.compares.take().await;
        let (len, mut done) = (with.len(), 0);
        while done < len {
            if let Err(failure) = interest.lasts() {
                return (Err(failure), with);
            }
            let part = (len - done).min(COMPARED);
            let bytes = match vfiod_buffer::zeroed(part) {
                Ok(bytes) => bytes,
                Err(none) => return (Err(Error::from(none).into()), with),
            };
            let (read, bytes) = self.read(offset + done as u64, bytes).await;
            let read = read.and_then(|()| Ok(with.take(done, &mut expected[..part])?));
            if let Err(failure) = read {
                return (Err(failure), with);
            }
            if bytes[..] != expected[..part] {
                let what = format!("the disk has other data at {:#x}", offset + done as u64);
                let error = Error::new(Errno::ILSEQ, what);
                return (Err(Failure { kind: FailureKind::Different, error }), with);
            }
            done += part;
        }
        (Ok(()), with)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("backend", &self.shared.backend)
            .field("in_flight", &self.in_flight())
            .field("sync_failure", &self.sync_failure().map(|failure| failure.error.to_string()))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DiskChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskChannel").field("inner", &self.parts.inner).finish_non_exhaustive()
    }
}
