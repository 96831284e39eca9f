//! The attachment of a device to an address space: through it the device reaches guest memory.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use vfiod_buffer::{NoMemory, list_for};
use vfiod_sync::atomic::{AtomicU8, Ordering};
use vfiod_sync::{Arc, Mutex, lock};

use crate::error::{Errno, Error, Result};
use crate::hold::{Hold, Segment, Segments};
use crate::in_flight::{Flights, InFlight};
use crate::map::{Map, Source, last_of};
use crate::request::Perm;
use crate::shared::{Reading, Shard};
use crate::space::Space;
use crate::transfer::{Message, Transfer, copy_direct, take_reply, transfer_pieces};

/// The device masters the bus.
const MASTER: u8 = 1;
/// The device is quiesced.
const QUIESCED: u8 = 2;
/// Its memory is being taken away.
const LEAVING: u8 = 4;

/// The attachment of one device to an address space. Cheap to clone; all clones are one
/// attachment.
///
/// | access | of memory that is mapped | by message | for |
/// | --- | --- | --- | --- |
/// | [`read`](Self::read), [`write`](Self::write) | copied at once | one request, awaited | tasks |
/// | [`batch`](Self::batch) | many translations and copies | says so | the data path |
/// | [`hold`](Self::hold) | kept for one request to the kernel | `EOPNOTSUPP` | I/O |
///
/// # Locks
/// Every access takes the attachment's own lock for reading, copies up to [`DIRECT`](crate::DIRECT) bytes under
/// it, and copies what is larger without it. Those who map and unmap take it for writing for the
/// few instructions that change the map. Nobody waits for a client under it.
#[derive(Clone)]
pub struct Attachment {
    inner: Arc<Inner>,
}

struct Inner {
    shard: Arc<Shard<Map>>,
    /// [`MASTER`], [`QUIESCED`], [`LEAVING`].
    bus: AtomicU8,
    in_flight: Arc<InFlight>,
    /// Locked while the device is moved from one space to another.
    space: Mutex<Option<Space>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The space lists the shard, which keeps the space's map.
        self.shard.set(None);
    }
}

impl Attachment {
    /// An attachment to no space. The device masters the bus.
    pub fn detached() -> Self {
        Self {
            inner: Arc::new(Inner {
                shard: Shard::new(),
                bus: AtomicU8::new(MASTER),
                in_flight: Arc::default(),
                space: Mutex::new(None),
            }),
        }
    }

    /// An attachment to a space. The device masters the bus.
    pub fn new(space: &Space) -> Self {
        let attachment = Self::detached();
        attachment.attach(space);
        attachment
    }

    /// Attaches the device to a space, instead of the one that it was attached to, which is
    /// returned. An access finds one or the other; a hold goes on where it began.
    ///
    /// Blocks until the accesses that copy under the lock have ended. Not to be called with a
    /// [`Batch`](crate::Batch) of this attachment on the same thread.
    pub fn attach(&self, space: &Space) -> Option<Space> {
        self.exchange(Some(space.clone()))
    }

    /// Detaches the device from its space, which is returned. From then on accesses fail with
    /// `EFAULT`. Blocks as [`Attachment::attach`] does.
    pub fn detach(&self) -> Option<Space> {
        self.exchange(None)
    }

    fn exchange(&self, to: Option<Space>) -> Option<Space> {
        let mut space = lock(&self.inner.space);
        self.inner.shard.set(to.as_ref().map(Space::shared));
        std::mem::replace(&mut *space, to)
    }

    /// The space that the device is attached to.
    pub fn space(&self) -> Option<Space> {
        lock(&self.inner.space).clone()
    }

    /// Lets the device master the bus, or not (PCI command register, bit 2). When it is off no access begins, nor the
    /// next one of a [`Batch`](crate::Batch). What has begun goes on: a copy, a hold, a request by message.
    pub fn set_bus_master(&self, on: bool) {
        self.switch(MASTER, on);
    }

    /// Whether the device may begin an access to memory now: it masters the bus, is not quiesced, and its memory is
    /// not being taken away.
    #[inline]
    pub fn bus_master(&self) -> bool {
        self.inner.bus.load(Ordering::Acquire) == MASTER
    }

    /// Keeps the device from beginning an access, whether it masters the bus or not. When this
    /// returns, no copy is under way under the lock; what is still in flight are holds and
    /// requests by message, and copies of more than [`DIRECT`](crate::DIRECT) bytes, which
    /// [`Attachment::wait_idle`] waits for.
    ///
    /// Not to be called with a [`Batch`](crate::Batch) of this attachment on the same thread.
    pub fn quiesce(&self) {
        self.switch(QUIESCED, true);
        self.inner.shard.wait_for_readers();
    }

    /// Lets a quiesced device begin accesses again.
    pub fn resume(&self) {
        self.switch(QUIESCED, false);
    }

    /// Says that the memory of the device is being taken away because its user leaves. Until this is over accesses
    /// fail as where the device does not master the bus, and none finds memory that is missing: a user who leaves
    /// has not taken memory from under a device that is at work.
    pub fn set_leaving(&self, on: bool) {
        self.switch(LEAVING, on);
    }

    /// Whether the device is quiesced.
    pub fn is_quiesced(&self) -> bool {
        self.inner.bus.load(Ordering::Acquire) & QUIESCED != 0
    }

    fn switch(&self, bit: u8, on: bool) {
        if on {
            self.inner.bus.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.inner.bus.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Counts what the device has begun elsewhere.
    pub fn flights(&self) -> Flights {
        Flights::new(&self.inner.in_flight)
    }

    /// How many accesses are in flight that hold no lock: holds, requests by message, large copies, and
    /// what [`Attachment::flights`] counts.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.count()
    }

    /// Blocks until no access is in flight (`true`), or until `deadline`. Holds no lock meanwhile.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        self.inner.in_flight.wait(deadline)
    }

    /// Waits until no access is in flight.
    pub fn idle(&self) -> Idle {
        Idle { in_flight: self.inner.in_flight.clone() }
    }

    /// The map, for one access or several.
    #[inline]
    pub(crate) fn enter(&self) -> Result<Reading<'_, Map>> {
        let Some(map) = self.inner.shard.read() else { return Err(detached()) };
        // Looked at under the lock: `quiesce` waits for those who did so before.
        if self.bus_master() { Ok(map) } else { Err(off()) }
    }

    pub(crate) fn shard(&self) -> &Shard<Map> {
        &self.inner.shard
    }

    pub(crate) fn counter(&self) -> &Arc<InFlight> {
        &self.inner.in_flight
    }

    /// Performs a transfer but for what is reached by message.
    #[inline]
    pub(crate) fn transfer(&self, iova: u64, mut what: Transfer<'_>) -> Result<Vec<Message>> {
        let map = self.enter()?;
        if what.len() == 0 {
            return Ok(Vec::new());
        }
        let shard = self.shard();
        let mut hint = shard.hint();
        let before = hint;
        let piece = map.piece(iova, what.len(), what.perm(), &mut hint)?;
        if hint != before {
            shard.set_hint(hint);
        }
        if copy_direct(&map, &piece, iova, &mut what)? {
            return Ok(Vec::new());
        }
        // Everything is looked up before anything is copied.
        let pieces = map.pieces(iova, what.len(), what.perm(), &mut hint)?;
        let rest = transfer_pieces(&map, pieces, &mut what, &self.inner.in_flight)?;
        drop(map);
        if rest.is_empty() { Ok(Vec::new()) } else { rest.copy(&mut what) }
    }

    /// Reads guest memory, across adjoining mappings. What is mapped is copied before the first
    /// wait; what is reached by message is asked for at once, and waited for. Reads 1, 2, 4 or 8
    /// aligned bytes of one mapping in one piece.
    ///
    /// Dropping the future abandons the wait and nothing else.
    ///
    /// # Errors
    /// `EFAULT`: not mapped, the client truncated its file, or no space is attached; `EACCES`: a
    /// mapping forbids it; `EPERM`: bus mastering is off, or the device is quiesced; what the
    /// [`DmaPeer`](crate::DmaPeer) fails with. Where a mapping is missing or forbids it, nothing has been
    /// accessed; after another error some may have been.
    pub async fn read(&self, iova: u64, dst: &mut [u8]) -> Result<()> {
        let messages = self.transfer(iova, Transfer::Read(dst))?;
        if messages.is_empty() {
            return Ok(());
        }
        let mut requests = list_for(messages.len())?;
        requests.extend(messages.into_iter().map(Message::start_read));
        for (part, reply) in requests {
            take_reply(&reply.await?, &mut dst[part])?;
        }
        Ok(())
    }

    /// Writes guest memory, across adjoining mappings; otherwise as [`Attachment::read`]. Dropping
    /// the future does not take back what has been asked for.
    ///
    /// # Errors
    /// As [`Attachment::read`]; `EACCES` also where the file behind a mapping is not open for
    /// writing.
    pub async fn write(&self, iova: u64, src: &[u8]) -> Result<()> {
        let messages = self.transfer(iova, Transfer::Write(src))?;
        if messages.is_empty() {
            return Ok(());
        }
        let mut requests = list_for(messages.len())?;
        requests.extend(messages.into_iter().map(|message| message.start_write(src)));
        for reply in requests {
            reply.await?;
        }
        Ok(())
    }

    /// Holds guest memory for one request to the kernel.
    ///
    /// # Errors
    /// As [`Attachment::read`] and [`Attachment::write`]; `EINVAL`: no bytes; `EOPNOTSUPP`: the
    /// memory is reached by message.
    pub fn hold(&self, iova: u64, len: usize, perm: Perm) -> Result<Hold> {
        let map = self.enter()?;
        if len == 0 {
            return Err(Error::new(Errno::INVAL, "a hold of 0 bytes"));
        }
        let last = last_of(iova, len)?;
        let (mut segments, mut by_message) = (Segments::new(), false);
        let (mut hint, mut done) = (self.shard().hint(), 0);
        while done < len {
            let piece = map.piece(iova + done as u64, len - done, perm, &mut hint)?;
            done += piece.len;
            let Source::File(file) = piece.source else {
                by_message = true;
                continue;
            };
            let segment = Segment { mapped: file.mapped.clone(), at: piece.at, len: piece.len };
            let bytes = size_of::<Segment>().saturating_mul(segments.len() + 1);
            segments.try_reserve(1).map_err(|_| NoMemory { bytes })?;
            segments.push(segment);
        }
        if by_message {
            return Err(Error::new(
                Errno::OPNOTSUPP,
                format!("memory at {iova:#x} is reached by messages and cannot be held"),
            ));
        }
        self.shard().set_hint(hint);
        let in_use = map.ranges.begin(iova, last);
        let flight = self.inner.in_flight.begin();
        let log = perm.contains(Perm::WRITE).then(|| map.dirty.clone());
        drop(map);
        Hold::new((log, in_use, flight), segments, iova, len, perm)
    }
}

#[cold]
fn off() -> Error {
    Error::new(Errno::PERM, "DMA while the device may not master the bus, is quiesced, or is left")
}

#[cold]
fn detached() -> Error {
    Error::new(Errno::FAULT, "DMA of a device that is attached to no address space")
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("bus_master", &self.bus_master())
            .field("in_flight", &self.in_flight())
            .field("space", &self.space())
            .finish()
    }
}

/// Waits until an attachment has no access in flight; see [`Attachment::idle`].
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
pub struct Idle {
    in_flight: Arc<InFlight>,
}

impl Future for Idle {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.in_flight.poll(cx.waker())
    }
}
