//! Requests to an image: to the kernel as they are where it takes them, otherwise through bounce
//! buffers, a piece at a time.
//!
//! | the kernel says | what becomes of the request |
//! | --- | --- |
//! | all bytes | done |
//! | fewer bytes | the rest follows (`vfiod-io`); at the end of the file: it has become smaller |
//! | `EAGAIN`, `ENOMEM`, `EINTR`, `ECANCELED` | it has nothing any more, and is started anew ([`FailureKind::Short`]) |
//! | `EINVAL` of direct I/O to guest memory, `ENOMEM` of a whole request | through a bounce buffer |
//! | anything else | failed |

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vfiod_buffer::Aligned;
use vfiod_dma::{Errno, Error, Result};
use vfiod_io::{Allocation, Ring, RuntimeRing, Transfer};
use vfiod_quota::CurrentPayer;
use vfiod_tasks::{Runtime, WeakRuntime};

use crate::backend::{About, Backend, Channel};
use crate::continued::Continued;
use crate::failure::{Failure, FailureKind};
use crate::image::Image;
use crate::kernel::{AfterKernel, Asked, Direction, KernelTransfer};
use crate::limits::Limits;
use crate::pending::Pending;
use crate::pool::Pool;
use crate::request::{Buffer, Done, Request};

/// Bytes of a bounce buffer. A multiple of what direct I/O asks for, whatever the disk.
const PIECE: usize = 64 << 10;

/// One controller's way to an image. A clone is the same.
#[derive(Clone)]
pub(crate) struct FileChannel {
    way: Arc<Way>,
}

pub(crate) struct Way {
    image: Arc<Image>,
    rings: Arc<RuntimeRing>,
    runtime: WeakRuntime,
    bounce: Arc<Pool<Aligned>>,
}

impl Deref for FileChannel {
    type Target = Way;

    fn deref(&self) -> &Way {
        &self.way
    }
}

impl Backend for Image {
    fn limits(&self) -> Limits {
        self.limits_now()
    }

    fn about(&self) -> About {
        About {
            kind: if self.is_device() { "block device" } else { "file" },
            path: Some(self.path().to_owned()),
            direct: Some(self.is_direct()),
            locked: Some(self.is_locked()),
        }
    }

    fn connect(self: Arc<Self>, runtime: &Runtime) -> Result<Arc<dyn Channel>> {
        Ok(Arc::new(FileChannel::new(self, runtime)?))
    }

    fn set_size(&self, bytes: u64) -> Result<()> {
        self.truncate(bytes)
    }

    fn release(&self) {
        self.unlock();
    }
}

/// What is to be done after the kernel has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Done,
    /// The file is smaller than the disk.
    Ended,
    /// The same through a bounce buffer.
    Bounce,
    /// There was no memory for it.
    NoMemory,
    Failed,
}

impl Next {
    /// `len` bytes were to be moved.
    fn after(result: &Result<usize>, len: usize, may_bounce: bool) -> Self {
        match result {
            Ok(moved) if *moved == len => Self::Done,
            Ok(_) => Self::Ended,
            Err(error) => match error.errno() {
                Errno::INVAL if may_bounce => Self::Bounce,
                Errno::NOMEM => Self::NoMemory,
                _ => Self::Failed,
            },
        }
    }
}

/// What has come of handing a request to the kernel as it is.
enum Tried {
    /// So many bytes are to be moved.
    Begun(usize, Transfer),
    /// The kernel would refuse it.
    Refused(Buffer),
}

impl FileChannel {
    pub(crate) fn new(image: Arc<Image>, runtime: &Runtime) -> Result<Self> {
        let rings = match image.options.threads {
            Some(threads) => RuntimeRing::with_threads(runtime, threads)?,
            None => RuntimeRing::of(runtime)?,
        };
        let bounce = Pool::new(PIECE, image.options.bounce / PIECE)?;
        let runtime = runtime.downgrade();
        Ok(Self { way: Arc::new(Way { image, rings, runtime, bounce }) })
    }

    fn ring(&self) -> &Ring {
        self.rings.ring()
    }

    /// Reads or writes a buffer. It has begun when this returns.
    fn transfer(
        &self,
        direction: Direction,
        offset: u64,
        buffer: Buffer,
        durable: bool,
    ) -> Pending {
        let channel = self.clone();
        match self.start_as_it_is(direction, offset, buffer) {
            Tried::Begun(len, transfer) => {
                let asked = Asked { direction, offset, len, durable };
                KernelTransfer::begun(transfer, asked, channel.way).into()
            }
            Tried::Refused(buffer) => Continued::new(&self.runtime, async move {
                let done = channel.bounce(direction, offset, buffer).await;
                channel.flush_if(durable, done).await
            })
            .into(),
        }
    }

    /// Flushes what a request has written, if it is to be durable.
    async fn flush_if(&self, durable: bool, mut done: Done) -> Done {
        if durable && done.result.is_ok() {
            done.result = self.flush().await;
        }
        done
    }

    /// Hands a request to the kernel, with its own buffer, if the kernel takes that.
    fn start_as_it_is(&self, direction: Direction, offset: u64, buffer: Buffer) -> Tried {
        let len = buffer.len();
        let fits = match (&self.image.direct, &buffer) {
            (None, _) => true,
            (Some(alignment), Buffer::Guest(holds)) => alignment.fits(holds),
            (Some(alignment), Buffer::Own(bytes)) => {
                alignment.fits_bytes(bytes.as_ptr(), bytes.len())
            }
        };
        if !fits {
            return Tried::Refused(buffer);
        }
        let (ring, file) = (self.ring(), &self.image.file);
        let buffer = buffer.into_io();
        let transfer = match direction {
            Direction::Read => ring.read_into(file, offset, buffer),
            Direction::Write => ring.write_from(file, offset, buffer),
        };
        Tried::Begun(len, transfer)
    }

    /// What follows a first try.
    async fn go_on(
        &self,
        direction: Direction,
        offset: u64,
        len: usize,
        result: Result<usize>,
        buffer: Buffer,
    ) -> Done {
        match Next::after(&result, len, self.image.is_direct()) {
            Next::Done => Done { result: Ok(()), buffer: Some(buffer) },
            Next::Bounce if buffer.len() == len => self.bounce(direction, offset, buffer).await,
            // There is no memory to pass a hole of the guest's, but what the pool has.
            Next::NoMemory if buffer.len() == len => self.bounce(direction, offset, buffer).await,
            _ => self.failed(result, offset, len, Some(buffer)),
        }
    }

    /// Reads or writes a buffer piece by piece through a bounce buffer.
    async fn bounce(&self, direction: Direction, offset: u64, mut buffer: Buffer) -> Done {
        let (len, mut done) = (buffer.len(), 0);
        let mut piece = self.bounce.take(len).await;
        while done < len {
            let part = (len - done).min(piece.room());
            let at = offset + done as u64;
            let Some(mut bytes) = piece.take_out() else {
                let lost = Err(Error::new(Errno::IO, "a bounce buffer was lost with its ring"));
                return self.failed(lost, at, part, Some(buffer));
            };
            bytes.set_len(part);
            if direction == Direction::Write
                && let Err(error) = buffer.take(done, &mut bytes)
            {
                piece.put_back(Some(bytes));
                return Done { result: Err(in_guest(error)), buffer: Some(buffer) };
            }
            let file = &self.image.file;
            let (result, bytes) = match direction {
                Direction::Read => self.ring().read_aligned(file, at, bytes).await,
                Direction::Write => self.ring().write_aligned(file, at, bytes).await,
            };
            piece.put_back(bytes);
            match Next::after(&result, part, false) {
                Next::Done => {}
                _ => return self.failed(result, at, part, Some(buffer)),
            }
            if direction == Direction::Read
                && let Err(error) = buffer.put(done, &piece)
            {
                return Done { result: Err(in_guest(error)), buffer: Some(buffer) };
            }
            done += part;
        }
        Done { result: Ok(()), buffer: Some(buffer) }
    }

    /// A request that cannot be done.
    fn failed(
        &self,
        result: Result<usize>,
        offset: u64,
        len: usize,
        buffer: Option<Buffer>,
    ) -> Done {
        let size = self.image.size();
        let path = self.image.path().display();
        // Direct I/O at an end that is no multiple of its block size fails otherwise.
        let is_outside = offset + len as u64 > size;
        let failure = match result {
            Err(error) if !is_outside || error.errno() != Errno::INVAL => error.into(),
            Ok(_) if !is_outside => {
                let what = format!("image {path}: {len} bytes at {offset:#x} moved in part only");
                Error::new(Errno::IO, what).into()
            }
            _ => {
                let what = format!(
                    "image {path}: it has become smaller ({size} bytes), {len} bytes at \
                     {offset:#x} are behind its end"
                );
                Failure { kind: FailureKind::OutOfRange, error: Error::new(Errno::NXIO, what) }
            }
        };
        Done { result: Err(failure), buffer }
    }

    async fn flush(&self) -> Result<(), Failure> {
        // Not repeated: the kernel reports a failure once.
        self.ring().flush(&self.image.file).await.map_err(of_sync)
    }

    /// Makes a range zero by changing what is allocated. A block device does that for whole sectors; what is
    /// beside them is written.
    async fn allocate(&self, how: Allocation, offset: u64, len: u64) -> Result<(), Failure> {
        let (unit, end) = (self.image.allocation_unit, offset + len);
        let (from, to) = (offset.next_multiple_of(unit), end - end % unit);
        if from >= to {
            return self.write_zeroes(offset, len).await;
        }
        self.ring().allocate(&self.image.file, how, from, to - from).await?;
        self.write_zeroes(offset, from - offset).await?;
        self.write_zeroes(to, end - to).await
    }

    async fn zero(&self, offset: u64, len: u64, deallocate: bool) -> Result<(), Failure> {
        // What is behind the end would stay as it is.
        if offset + len > self.image.size() {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            return self.failed(Ok(0), offset, len, None).result;
        }
        let unsupported = |failure: &Failure| failure.kind == FailureKind::Unsupported;
        if deallocate {
            match self.allocate(Allocation::PunchHole, offset, len).await {
                Err(failure) if unsupported(&failure) => {}
                result => return result,
            }
        }
        if self.image.zeroes() {
            match self.allocate(Allocation::Zero, offset, len).await {
                Err(failure) if unsupported(&failure) => {
                    self.image.can_zero.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        self.write_zeroes(offset, len).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Failure> {
        if len == 0 {
            return Ok(());
        }
        let mut piece = self.bounce.take(usize::try_from(len).unwrap_or(usize::MAX)).await;
        piece.fill(0);
        let mut done = 0;
        while done < len {
            let part = (len - done).min(piece.room() as u64);
            let at = offset + done;
            let Some(mut bytes) = piece.take_out() else {
                let lost = Error::new(Errno::IO, "a bounce buffer was lost with its ring");
                return Err(lost.into());
            };
            bytes.set_len(part as usize);
            let (result, bytes) = self.ring().write_aligned(&self.image.file, at, bytes).await;
            piece.put_back(bytes);
            match Next::after(&result, part as usize, false) {
                Next::Done => done += part,
                _ => return self.failed(result, at, part as usize, None).result,
            }
        }
        Ok(())
    }
}

impl AfterKernel for Way {
    fn runtime(&self) -> &WeakRuntime {
        &self.runtime
    }

    fn finish(self: Arc<Self>, asked: Asked, result: Result<usize>, buffer: Buffer) -> Continued {
        let runtime = self.runtime.clone();
        let channel = FileChannel { way: self };
        Continued::new(&runtime, async move {
            let Asked { direction, offset, len, durable } = asked;
            let done = channel.go_on(direction, offset, len, result, buffer).await;
            channel.flush_if(durable, done).await
        })
    }
}

/// A sync has failed. It is not begun anew, whatever the reason.
fn of_sync(error: Error) -> Failure {
    let failure = Failure::from(error);
    let is_short = failure.kind == FailureKind::Short;
    let kind = if is_short { FailureKind::Other } else { failure.kind };
    Failure { kind, ..failure }
}

/// Copying from or to guest memory has failed.
fn in_guest(error: Error) -> Failure {
    Failure { kind: FailureKind::Memory, error }
}

impl Channel for FileChannel {
    fn engine(&self) -> Option<&'static str> {
        Some(if self.ring().is_io_uring() { "io_uring" } else { "threads" })
    }

    fn start(&self, request: Request) -> Pending {
        let channel = self.clone();
        match request {
            Request::Read { offset, buffer } => {
                self.transfer(Direction::Read, offset, buffer, false)
            }
            Request::Write { offset, buffer, durable } => {
                self.transfer(Direction::Write, offset, buffer, durable)
            }
            Request::Flush => {
                let flushed = self.ring().flush(&self.image.file);
                Continued::new(&self.runtime, async move {
                    let result = flushed.await.map_err(of_sync);
                    Done { result, buffer: None }
                })
                .into()
            }
            Request::Zero { offset, len, deallocate, durable } => {
                Continued::new(&self.runtime, async move {
                    let mut result = channel.zero(offset, len, deallocate).await;
                    if durable && result.is_ok() {
                        result = channel.flush().await;
                    }
                    Done { result, buffer: None }
                })
                .into()
            }
            Request::Deallocate { offset, len } => Continued::new(&self.runtime, async move {
                let result = channel.allocate(Allocation::PunchHole, offset, len).await;
                Done { result, buffer: None }
            })
            .into(),
        }
    }

    fn charge_to(&self, payer: &CurrentPayer) {
        self.bounce.charge_to(payer.clone());
    }

    fn gather(&self, start: &mut dyn FnMut()) {
        let _plug = self.ring().plug();
        start();
    }
}

impl fmt::Debug for FileChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileChannel")
            .field("image", &self.image)
            .field("rings", &self.rings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_each_result_of_the_kernel() {
        let failed = |errno| Err(Error::new(errno, "a test"));
        for (result, direct, expected) in [
            (Ok(8), false, Next::Done),
            (Ok(3), false, Next::Ended),
            (Ok(0), true, Next::Ended),
            (failed(Errno::AGAIN), true, Next::Failed),
            (failed(Errno::NOMEM), false, Next::NoMemory),
            (failed(Errno::INVAL), true, Next::Bounce),
            (failed(Errno::INVAL), false, Next::Failed),
            (failed(Errno::IO), true, Next::Failed),
            (failed(Errno::NOSPC), true, Next::Failed),
        ] {
            assert_eq!(Next::after(&result, 8, direct), expected, "{result:?}");
        }
    }
}
