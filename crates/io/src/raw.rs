//! The only module that hands memory to the kernel.
//!
//! # Why it is sound
//! The kernel gets addresses of a request's buffer: those of a `Vec` that the [`Request`] owns (its
//! buffer, aligned or not, or that of its [`Bounce`](crate::bounce::Bounce)), or of guest memory that its `Hold`s keep mapped. From the submission to the completion the
//! request is in [`Uring::in_flight`] or on the stack of [`perform`], where nothing else can
//! reach it. A [`Uring`] that is dropped with requests in flight leaks them.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use vfiod_dma::{Errno, Error, Result};

use crate::data::Buffer;
use crate::request::{Operation, Progress, Request};

/// Most pieces of one system call (`UIO_MAXIOV`); the rest of a request follows.
const PIECES: usize = 1024;

/// Requests that are gathered at most where the kernel takes its time: a disk begins with them while further
/// ones are prepared.
const GATHERED: usize = 8;

/// A request, and where its pieces are.
struct InFlight {
    request: Request,
    pieces: Pieces,
}

/// The pieces of a request's buffer.
enum Pieces {
    None,
    /// One needs no list that the kernel has to read. Its length is one of 32 bits.
    One(*mut u8, u32),
    Many(Box<[libc::iovec]>),
}

impl Pieces {
    fn of(mut pieces: impl Iterator<Item = libc::iovec>) -> Self {
        let Some(first) = pieces.next() else { return Self::None };
        let second = pieces.next();
        match (u32::try_from(first.iov_len), second) {
            (Ok(len), None) => Self::One(first.iov_base.cast(), len),
            _ => Self::Many(std::iter::once(first).chain(second).chain(pieces).collect()),
        }
    }
}

// SAFETY: the pieces point into what the request owns, which is `Send`; nobody uses them but the
// kernel.
unsafe impl Send for InFlight {}

impl InFlight {
    fn new(mut request: Request) -> Self {
        let mut done = request.done;
        // The part of a piece that was not moved yet.
        let mut rest = |at: *mut u8, len: usize| {
            let skipped = done.min(len);
            done -= skipped;
            let iov_base = at.wrapping_add(skipped).cast();
            (skipped < len).then_some(libc::iovec { iov_base, iov_len: len - skipped })
        };
        let pieces = match (&mut request.bounce, &mut request.buffer) {
            (Some(bounce), _) => {
                let bytes = bounce.bytes();
                let (iov_base, iov_len) = (bytes.as_mut_ptr().cast(), bytes.len());
                Pieces::of(std::iter::once(libc::iovec { iov_base, iov_len }))
            }
            (None, Buffer::None) => Pieces::None,
            (None, Buffer::Own(bytes)) => {
                Pieces::of(rest(bytes.as_mut_ptr(), bytes.len()).into_iter())
            }
            (None, Buffer::Aligned(bytes)) => {
                Pieces::of(rest(bytes.as_mut_ptr(), bytes.len()).into_iter())
            }
            (None, Buffer::Guest(holds)) => {
                let segments = holds.iter().flat_map(|hold| hold.segments());
                let pieces = segments.filter_map(|s| rest(s.as_ptr(), s.len()));
                Pieces::of(pieces.take(PIECES))
            }
        };
        Self { request, pieces }
    }

    fn entry(&self, key: usize) -> squeue::Entry {
        let fd = types::Fd(self.request.file.as_raw_fd());
        let done = self.request.done as u64;
        let list = self.list();
        let (pieces, count) = (list.as_ptr(), list.len() as u32);
        let entry = match (self.request.operation, &self.pieces) {
            (Operation::Read(offset), Pieces::One(at, len)) => {
                opcode::Read::new(fd, *at, *len).offset(offset + done).build()
            }
            (Operation::Write(offset), Pieces::One(at, len)) => {
                opcode::Write::new(fd, *at, *len).offset(offset + done).build()
            }
            (Operation::Read(offset), _) => {
                opcode::Readv::new(fd, pieces, count).offset(offset + done).build()
            }
            (Operation::Write(offset), _) => {
                opcode::Writev::new(fd, pieces, count).offset(offset + done).build()
            }
            (Operation::Flush, _) => {
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
            (Operation::Allocate { how, offset, len }, _) => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(how.mode()).build()
            }
        };
        entry.user_data(key as u64)
    }

    /// The list of its pieces, where there is one.
    fn list(&self) -> &[libc::iovec] {
        if let Pieces::Many(list) = &self.pieces { list } else { &[] }
    }

    /// Asks the kernel by a system call. Returns bytes or a negative errno.
    fn perform(&self) -> i64 {
        let fd: RawFd = self.request.file.as_raw_fd();
        let one;
        let list = match self.pieces {
            Pieces::One(at, len) => {
                one = [libc::iovec { iov_base: at.cast(), iov_len: len as usize }];
                &one[..]
            }
            _ => self.list(),
        };
        let (pieces, count) = (list.as_ptr(), list.len() as libc::c_int);
        let at = |offset: u64| (offset + self.request.done as u64) as i64;
        // SAFETY: the pieces are of the request's own buffer, which is here until the call has
        // returned. The kernel checks the addresses, which only it uses.
        let result = unsafe {
            match self.request.operation {
                Operation::Read(offset) => libc::preadv(fd, pieces, count, at(offset)) as i64,
                Operation::Write(offset) => libc::pwritev(fd, pieces, count, at(offset)) as i64,
                Operation::Flush => i64::from(libc::fdatasync(fd)),
                Operation::Allocate { how, offset, len } => {
                    i64::from(libc::fallocate(fd, how.mode(), offset as i64, len as i64))
                }
            }
        };
        if result >= 0 {
            return result;
        }
        -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A ring, and the requests that the kernel works on.
pub(crate) struct Uring {
    ring: IoUring,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Requests that wait for a place in the ring.
    waiting: VecDeque<Request>,
    /// Entries that the kernel has not taken yet.
    unsubmitted: usize,
    /// Some that were gathered have been handed over before the others.
    began_early: bool,
    /// All that was handed over the last time had completed when the kernel returned, as from memory.
    completes_at_once: bool,
}

impl Uring {
    /// A plain ring with room for `entries` requests, whose completions make `eventfd` readable.
    ///
    /// # Errors
    /// What the kernel fails with: `EPERM` and `ENOSYS` where io_uring is forbidden or missing.
    pub(crate) fn new(entries: u32, eventfd: &OwnedFd) -> Result<Self> {
        let fails = |what: &'static str| {
            move |error: std::io::Error| {
                let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
                Error::new(errno, what)
            }
        };
        let ring = IoUring::new(entries).map_err(fails("cannot make an io_uring"))?;
        ring.submitter()
            .register_eventfd(eventfd.as_raw_fd())
            .map_err(fails("cannot watch an io_uring"))?;
        Ok(Self {
            ring,
            in_flight: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            unsubmitted: 0,
            began_early: false,
            completes_at_once: false,
        })
    }

    /// Queues a request; [`Uring::submit`] hands it to the kernel, or one of those after it does.
    pub(crate) fn push(&mut self, request: Request) {
        if self.waiting.is_empty() && self.has_room() {
            self.enter(request);
        } else {
            self.waiting.push_back(request);
        }
        if self.unsubmitted >= GATHERED && !self.completes_at_once {
            // What the kernel does not take now it is given again with the others.
            self.began_early = true;
            self.hand_over();
        }
    }

    /// Hands the queued requests to the kernel, as many as it has room for. The rest follows when
    /// requests complete. Adds those that the kernel does at once to `completed`, with bytes or a negative
    /// errno. Returns whether the owner is to look for completions, or to hand requests over again, although
    /// no event says so.
    #[must_use]
    pub(crate) fn submit(&mut self, completed: &mut Vec<(Request, i64)>) -> bool {
        let mut look_again = false;
        loop {
            let began_early = std::mem::take(&mut self.began_early);
            let has_some = self.unsubmitted > 0 || (!self.waiting.is_empty() && self.has_room());
            if !began_early && !has_some {
                return look_again;
            }
            // An event for what completes before the kernel returns would wake a task in vain. Where others
            // are in flight, theirs must not be missed.
            let silent = self.completes_at_once && self.in_kernel() == self.unsubmitted;
            if silent {
                self.ring.completion().disable_eventfd();
            }
            let taken = self.hand_over();
            if silent {
                self.ring.completion().enable_eventfd();
                // What completes from here on makes an event, or is seen below.
                fence(Ordering::SeqCst);
            }
            let returned = self.completed(completed);
            self.completes_at_once = self.in_kernel() == 0;
            // The kernel looks whether it is to make an event after it has stored the completion, without a
            // barrier between the two: one of another thread may be on its way, and make none.
            look_again |= !taken || (silent && !self.completes_at_once);
            // There is room for those that waited, or are to be repeated.
            if !taken || returned == 0 || self.waiting.is_empty() {
                return look_again;
            }
        }
    }

    /// Whether there is a place for one more request in the submission queue, and for its completion, so that
    /// the kernel does not have to keep that for us.
    fn has_room(&mut self) -> bool {
        let most = self.ring.params().cq_entries() as usize;
        self.in_kernel() < most && !self.ring.submission().is_full()
    }

    /// Requests that the kernel has, or that are in the submission queue.
    fn in_kernel(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Hands the queued requests over. `false`: the kernel took none for want of memory.
    fn hand_over(&mut self) -> bool {
        loop {
            while self.has_room()
                && let Some(request) = self.waiting.pop_front()
            {
                self.enter(request);
            }
            if self.unsubmitted == 0 {
                return true;
            }
            match self.ring.submit() {
                Ok(0) => return false,
                Ok(taken) => self.unsubmitted -= taken.min(self.unsubmitted),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // EAGAIN, EBUSY: the entries stay in the ring.
                Err(error) => {
                    tracing::debug!(%error, "io_uring takes no requests now");
                    return false;
                }
            }
        }
    }

    /// Puts a request into the submission queue, which has a place for it.
    fn enter(&mut self, request: Request) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        let entry = self.in_flight[key].insert(InFlight::new(request)).entry(key);
        // SAFETY: the entry's addresses are those of the request's own buffer and of its list of
        // pieces, neither of which is in the request itself; `in_flight` keeps them until the completion with
        // this key.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_ok() {
            self.unsubmitted += 1;
        } else if let Some(in_flight) = self.in_flight[key].take() {
            // Nothing was handed over.
            self.free.push(key);
            self.waiting.push_front(in_flight.request);
        }
    }

    /// Takes what has completed, with bytes or a negative errno. Queues what is to be repeated. Returns how
    /// many requests the kernel has returned.
    pub(crate) fn completed(&mut self, completed: &mut Vec<(Request, i64)>) -> usize {
        let mut returned = 0;
        let mut queue = self.ring.completion();
        queue.sync();
        for entry in queue {
            returned += 1;
            let key = entry.user_data() as usize;
            if let Some(InFlight { mut request, .. }) =
                self.in_flight.get_mut(key).and_then(Option::take)
            {
                self.free.push(key);
                match request.advance(entry.result().into()) {
                    Progress::Complete(result) => completed.push((request, result)),
                    Progress::Again => self.waiting.push_front(request),
                }
            }
        }
        returned
    }

    /// Requests that have not completed.
    pub(crate) fn len(&self) -> usize {
        self.in_kernel() + self.waiting.len()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_kernel() > 0 {
            // The kernel may still use their memory, so that it must not be given back.
            let count = self.in_kernel();
            tracing::warn!(count, "an io_uring ends before its requests; their memory is lost");
            std::mem::forget(std::mem::take(&mut self.in_flight));
        }
    }
}

/// Performs a request on this thread.
pub(crate) fn perform(mut request: Request) -> (Request, i64) {
    loop {
        let in_flight = InFlight::new(request);
        let result = in_flight.perform();
        request = in_flight.request;
        if let Progress::Complete(result) = request.advance(result) {
            return (request, result);
        }
    }
}
