//! Requests that read, and give nobody what they read: compare, compare and write, verify.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use vfiod_buffer::NoMemory;
use vfiod_dma::{Errno, Error};
use vfiod_tasks::{race, yield_now};

use crate::channel::{DiskChannel, failed};
use crate::failure::{Failure, FailureKind};
use crate::in_flight::Parts;
use crate::interest::Interest;
use crate::pool::{Pair, Piece, Pool};
use crate::request::{Buffer, Done, Request};
use crate::started::Started;

/// Bytes that a compare reads at a time.
const COMPARED: usize = 64 << 10;
/// Compares that one channel does at a time.
const COMPARES: usize = 16;
/// How long a request waits whose memory there is not enough of for now.
const MOMENT: Duration = Duration::from_millis(10);
/// Bytes that a verify reads at a time.
const VERIFIED: u64 = 64 << 10;

/// What the compares of one channel compare with.
///
/// # Errors
/// There is no memory for the first one.
pub(crate) fn pool() -> Result<Arc<Pool<Pair>>, NoMemory> {
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
        let (durable, interest) = (self.durable(interest, durable), interest.clone());
        self.go_on(durable, async move {
            lock.granted().await;
            if let Err(failure) = channel.still_has(end, offset, len) {
                return Done { result: Err(failure), buffer: Some(buffer) };
            }
            if let (Err(failure), _) = channel.compare(&Interest::default(), offset, with).await {
                return Done { result: Err(failure), buffer: Some(buffer) };
            }
            equal();
            let done = channel.insist_on_write(&interest, offset, buffer).await;
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
    /// Writes a buffer, as often as there is too little memory. Begun anew from its comparison, a request would find
    /// what it has written itself.
    async fn insist_on_write(&self, interest: &Interest, offset: u64, buffer: Buffer) -> Done {
        let mut request = Request::Write { offset, buffer, durable: false };
        loop {
            let Done { result, buffer } = self.inner.start(request).await;
            let buffer = match (&result, buffer) {
                (Err(failure), Some(buffer)) if failure.kind == FailureKind::Short => buffer,
                (_, buffer) => return Done { result, buffer },
            };
            if let Err(failure) = self.moment(interest).await {
                return Done { result: Err(failure), buffer: Some(buffer) };
            }
            request = Request::Write { offset, buffer, durable: false };
        }
    }

    /// Waits until something may be tried again that lacks memory.
    ///
    /// # Errors
    /// Nobody wants it any more.
    async fn moment(&self, interest: &Interest) -> Result<(), Failure> {
        interest.lasts()?;
        let sleep = self.runtime.upgrade().map(|runtime| runtime.sleep(MOMENT));
        let slept = async {
            match sleep {
                Some(sleep) => sleep.await,
                // The runtime has ended, and time with it.
                None => std::future::pending().await,
            }
            Ok(())
        };
        race(slept, async { Err(interest.ended().await) }).await
    }

    async fn verify(&self, interest: &Interest, offset: u64, len: usize) -> Result<(), Failure> {
        let mut place = self.compares.take(len).await;
        let mut done = 0;
        while done < len {
            interest.lasts()?;
            let part = (len - done).min(place.room());
            self.read_into(&mut place, offset + done as u64, part).await?;
            done += part;
        }
        Ok(())
    }

    /// Reads so many bytes into the buffers of a comparison.
    async fn read_into(
        &self,
        place: &mut Piece<Pair>,
        offset: u64,
        part: usize,
    ) -> Result<(), Failure> {
        let lost = || Failure::from(Error::new(Errno::IO, "a buffer was lost with its back end"));
        let Some(Pair { mut disk, expected }) = place.take_out() else { return Err(lost()) };
        // It has room for that.
        disk.resize(part, 0);
        let done = self.inner.start(Request::Read { offset, buffer: Buffer::Own(disk) }).await;
        match done.buffer {
            Some(Buffer::Own(disk)) if disk.len() == part => {
                place.put_back(Some(Pair { disk, expected }));
                done.result
            }
            _ => done.result.and_then(|()| Err(lost())),
        }
    }

    async fn compare(
        &self,
        interest: &Interest,
        offset: u64,
        with: Buffer,
    ) -> (Result<(), Failure>, Buffer) {
        let (len, mut done) = (with.len(), 0);
        let mut place = self.compares.take(len).await;
        while done < len {
            let part = done..(done + place.room()).min(len);
            done = part.end;
            let compared = self.compare_part(interest, &mut place, offset, (&with, part)).await;
            if let Err(failure) = compared {
                return (Err(failure), with);
            }
        }
        (Ok(()), with)
    }

    /// Compares a part of a buffer with what the disk has there; the buffer belongs at `offset`.
    async fn compare_part(
        &self,
        interest: &Interest,
        place: &mut Piece<Pair>,
        offset: u64,
        (with, part): (&Buffer, Range<usize>),
    ) -> Result<(), Failure> {
        interest.lasts()?;
        let at = offset + part.start as u64;
        self.read_into(place, at, part.len()).await?;
        let Some(Pair { disk, expected }) = place.get_mut() else { return Ok(()) };
        expected.resize(part.len(), 0);
        with.take(part.start, expected)?;
        if disk == expected {
            return Ok(());
        }
        let error = Error::new(Errno::ILSEQ, format!("the disk has other data at {at:#x}"));
        Err(Failure { kind: FailureKind::Different, error })
    }
}
