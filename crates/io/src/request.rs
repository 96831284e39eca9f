//! A request: what the kernel is to do, and what it does it with.

use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use vfiod_dma::{Errno, Error, Perm, Result};
use vfiod_sync::Arc;

use crate::bounce::Bounce;
use crate::data::Buffer;
use crate::reply::Completion;

/// What the kernel is to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads from an offset in bytes.
    Read(u64),
    /// Writes to an offset in bytes.
    Write(u64),
    /// Makes what was written durable, as far as it is needed to read it again.
    Flush,
    /// Changes what is allocated.
    Allocate { how: Allocation, offset: u64, len: u64 },
}

/// How a range of a file is to be allocated (`fallocate`). The size of the file stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Gives the range's blocks back; it reads as zeroes.
    PunchHole,
    /// Makes the range read as zeroes, and keeps its blocks where the file system can.
    Zero,
    /// Allocates blocks; what is there stays.
    Reserve,
}

impl Allocation {
    pub(crate) fn mode(self) -> i32 {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        match self {
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | keep,
            Self::Zero => libc::FALLOC_FL_ZERO_RANGE | keep,
            Self::Reserve => keep,
        }
    }
}

/// A request before it is handed to the kernel.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) buffer: Buffer,
    /// Bytes that were moved already.
    pub(crate) done: usize,
    /// How often the kernel gave it up.
    pub(crate) given_up: u32,
    /// What is moved instead of guest memory that the kernel cannot reach.
    pub(crate) bounce: Option<Bounce>,
    pub(crate) completion: Completion,
}

/// How often a request is repeated that the kernel gives up. Threads do not end as often.
const MOST_REPEATS: u32 = 100;

/// What becomes of a request after the kernel has returned.
pub(crate) enum Progress {
    /// It is complete, with bytes or a negative errno.
    Complete(i64),
    /// It is to be handed to the kernel again, for the rest.
    Again,
}

impl Request {
    /// Takes what the kernel returned: bytes, or a negative errno.
    ///
    /// When a thread ends, the kernel may cancel or interrupt what that thread has submitted to an
    /// io_uring: such requests are repeated, which does no harm at a fixed offset. So is the rest
    /// of what was moved in part, until the end of the file. What a stream has is all there is.
    /// Where the kernel cannot reach guest memory, the rest is moved through a buffer.
    pub(crate) fn advance(&mut self, result: i64) -> Progress {
        let given_up = [libc::ECANCELED, libc::EINTR].map(|errno| -i64::from(errno));
        if given_up.contains(&result) && self.given_up < MOST_REPEATS {
            self.given_up += 1;
            return Progress::Again;
        }
        let failed = |errno: Errno| Progress::Complete(-i64::from(errno.raw_os_error()));
        if let Some(errno) = self.begin_bounce(result) {
            return errno.map_or_else(failed, |()| Progress::Again);
        }
        let Ok(moved) = usize::try_from(result) else { return Progress::Complete(result) };
        if let Err(errno) = self.take_bounced(moved) {
            return failed(errno);
        }
        self.done += moved;
        if moved > 0 && self.done < self.buffer.len() && is_storage(&self.file) {
            return self.prepare_bounce().map_or_else(failed, |()| Progress::Again);
        }
        Progress::Complete(self.done as i64)
    }

    /// Goes on through a buffer if this was the first failure to reach guest memory; `None`: it was
    /// not.
    fn begin_bounce(&mut self, result: i64) -> Option<Result<(), Errno>> {
        let unreachable = result == -i64::from(libc::EFAULT);
        let in_guest = matches!(self.buffer, Buffer::Guest(_));
        if !unreachable || !in_guest || self.bounce.is_some() {
            return None;
        }
        let bounce = Bounce::new(self.buffer.len() - self.done);
        Some(bounce.and_then(|bounce| {
            self.bounce = Some(bounce);
            self.prepare_bounce()
        }))
    }

    /// Begins the next piece, if the request goes through a buffer: with what is to be written.
    fn prepare_bounce(&mut self) -> Result<(), Errno> {
        let rest = self.buffer.len() - self.done;
        let (Buffer::Guest(holds), Some(bounce)) = (&self.buffer, &mut self.bounce) else {
            return Ok(());
        };
        bounce.begin(rest);
        match self.operation {
            Operation::Write(_) => bounce.take(holds, self.done),
            _ => Ok(()),
        }
    }

    /// Gives the guest what has been read, if the request goes through a buffer.
    fn take_bounced(&mut self, moved: usize) -> Result<(), Errno> {
        match (self.operation, &self.buffer, &mut self.bounce) {
            (Operation::Read(_), Buffer::Guest(holds), Some(bounce)) => {
                bounce.put(holds, self.done, moved)
            }
            _ => Ok(()),
        }
    }

    /// Whether the kernel may be asked at all.
    ///
    /// # Errors
    /// `EINVAL`: a range past 2^63; `EACCES`: guest memory that is held for the other direction.
    pub(crate) fn check(&self) -> Result<()> {
        let (offset, len) = match (self.operation, &self.buffer) {
            (Operation::Read(at) | Operation::Write(at), buffer) => (at, buffer.len() as u64),
            (Operation::Allocate { offset, len, .. }, _) => (offset, len),
            (Operation::Flush, _) => (0, 0),
        };
        if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            let what = format!("I/O of {len} bytes at {offset:#x}: past 2^63");
            return Err(Error::new(Errno::INVAL, what));
        }
        let Buffer::Guest(holds) = &self.buffer else { return Ok(()) };
        let (needed, what) = match self.operation {
            Operation::Read(_) => (Perm::WRITE, "a read needs guest memory held for writing"),
            _ => (Perm::READ, "a write needs guest memory held for reading"),
        };
        let all = holds.iter().all(|hold| hold.perm().contains(needed));
        if all { Ok(()) } else { Err(Error::new(Errno::ACCESS, what)) }
    }

    /// Ends the request with what the kernel returned: bytes, or a negative errno.
    pub(crate) fn complete(self, result: i64) {
        let result = match usize::try_from(result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => {
                let errno = i32::try_from(-result).map_or(Errno::IO, Errno::from_raw_os_error);
                Err(Error::new(errno, self.failure()))
            }
        };
        self.completion.complete((result, self.buffer));
    }

    /// Ends the request without the kernel.
    pub(crate) fn refuse(self, error: Error) {
        self.completion.complete((Err(error), self.buffer));
    }

    fn failure(&self) -> &'static str {
        match self.operation {
            Operation::Read(_) => "cannot read the file",
            Operation::Write(_) => "cannot write the file",
            Operation::Flush => "cannot flush the file",
            Operation::Allocate { .. } => "cannot change the allocation of the file",
        }
    }
}

/// Whether a file has an end, and less than was asked for comes only there.
fn is_storage(file: &OwnedFd) -> bool {
    let kind = rustix::fs::fstat(file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(kind, Ok(FileType::RegularFile | FileType::BlockDevice))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn request(file: OwnedFd, len: usize) -> Request {
        let (completion, _transfer) = crate::reply::pair();
        let (operation, buffer) = (Operation::Read(0), Buffer::Own(vec![0; len]));
        let (file, bounce) = (Arc::new(file), None);
        Request { operation, file, buffer, done: 0, given_up: 0, bounce, completion }
    }

    /// What a request completes with after these results; `None`: it is repeated.
    fn after(mut request: Request, results: &[i32]) -> Option<i64> {
        let mut progress = Progress::Again;
        for result in results {
            assert!(matches!(progress, Progress::Again), "complete before {result}");
            progress = request.advance((*result).into());
        }
        if let Progress::Complete(result) = progress { Some(result) } else { None }
    }

    #[test]
    fn request_is_repeated_until_the_kernel_has_done_it() {
        let file = || memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        let (canceled, interrupted) = (-libc::ECANCELED, -libc::EINTR);
        let rows: [(&[i32], Option<i64>); 8] = [
            (&[8], Some(8)),
            (&[canceled], None),
            (&[canceled, interrupted, 8], Some(8)),
            (&[3], None),
            (&[3, canceled, 5], Some(8)),
            (&[3, 0], Some(3)),
            (&[0], Some(0)),
            (&[3, -libc::EIO], Some(-i64::from(libc::EIO))),
        ];
        for (results, expected) in rows {
            assert_eq!(after(request(file(), 8), results), expected, "{results:?}");
        }
        let for_ever = [canceled; MOST_REPEATS as usize + 1];
        assert_eq!(after(request(file(), 8), &for_ever), Some(canceled.into()));
    }

    #[test]
    fn part_of_a_stream_is_all_of_it() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(after(request(socket.into(), 8), &[3]), Some(3));
    }
}
