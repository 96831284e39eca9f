//! Requests that read, and give nobody what they read: compare, compare and write, verify.

use std::sync::Arc;

use vfiod_dma::{Errno, Error};
use vfiod_tasks::yield_now;

use crate::channel::{DiskChannel, failed};
use crate::failure::{Failure, FailureKind};
use crate::in_flight::Parts;
use crate::interest::Interest;
use crate::pool::Pool;
use crate::request::{Buffer, Done, Request};
use crate::started::Started;

/// Bytes that a compare reads at a time.
const COMPARED: usize = 64 << 10;
/// Compares that one channel does at a time.
const COMPARES: usize = 16;
/// Bytes that a verify reads at a time.
const VERIFIED: u64 = 64 << 10;

/// What the compares of one channel compare with.
pub(crate) fn pool() -> Arc<Pool> {
    Pool::new(COMPARED, COMPARES)
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
}

impl Parts {
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
