//! A disk that keeps nothing.

use std::sync::Arc;

use vfiod_dma::{Errno, Error, Result};
use vfiod_tasks::Runtime;

use crate::backend::{About, Backend, Channel};
use crate::bytes::{AtOnce, Bytes};
use crate::limits::Limits;
use crate::pending::Pending;
use crate::request::{Done, Request};

const BLOCK: u32 = 512;

/// A disk that reads as zeroes, and takes writes and forgets them: to measure what is in front of a
/// back end. It fills guest memory with zeroes only if it is told to.
#[derive(Debug)]
pub struct Null {
    capacity: u64,
    fill: bool,
}

impl Null {
    /// A disk of this many bytes. `fill`: guest memory is filled with zeroes by a read; otherwise it
    /// keeps what it has, and the time that takes is not measured.
    ///
    /// # Errors
    /// `EINVAL`: the capacity is 0, above 2^63, or no multiple of 512.
    pub fn new(capacity: u64, fill: bool) -> Result<Arc<Self>> {
        if capacity == 0 || capacity > i64::MAX as u64 || !capacity.is_multiple_of(BLOCK.into()) {
            let what = format!("a disk of {capacity} bytes: the size is a multiple of 512, not 0");
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(Arc::new(Self { capacity, fill }))
    }
}

impl AtOnce for Null {
    fn copies(&self) -> bool {
        self.fill
    }

    fn read(&self, _offset: u64, into: &mut dyn Bytes) -> Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let len = if self.fill { into.len() } else { 0 };
        for at in (0..len).step_by(ZEROES.len()) {
            into.put(at, &ZEROES[..ZEROES.len().min(len - at)])?;
        }
        Ok(())
    }

    fn write(&self, _offset: u64, _from: &mut dyn Bytes) -> Result<()> {
        Ok(())
    }
}

impl Backend for Null {
    fn limits(&self) -> Limits {
        Limits {
            capacity: self.capacity,
            block: BLOCK,
            atomic_write: 4096,
            preferred_write: BLOCK,
            read_only: false,
            volatile: false,
            deallocate: Some(BLOCK),
            deallocated_reads_zero: true,
            max_range: self.capacity,
        }
    }

    fn about(&self) -> About {
        About { kind: "null", ..About::default() }
    }

    fn connect(self: Arc<Self>, _runtime: &Runtime) -> Result<Arc<dyn Channel>> {
        Ok(self)
    }
}

impl Channel for Null {
    fn start(&self, request: Request) -> Pending {
        let (result, buffer) = match request {
            Request::Read { offset, mut buffer } => (self.read(offset, &mut buffer), Some(buffer)),
            Request::Write { buffer, .. } => (Ok(()), Some(buffer)),
            _ => (Ok(()), None),
        };
        Pending::ended(Done { result: result.map_err(Into::into), buffer })
    }

    fn at_once(&self) -> Option<&dyn AtOnce> {
        Some(self)
    }
}
