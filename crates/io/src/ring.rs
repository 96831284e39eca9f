//! The ring: where requests are started, and whose completions are taken.

use std::fmt;
use std::os::fd::OwnedFd;

use smallvec::smallvec;
use vfiod_buffer::Aligned;
use vfiod_dma::{Errno, Hold, Result};
use vfiod_sync::{Arc, Visited};

use crate::data::Buffer;
use crate::pool::Pool;
use crate::raw::Uring;
use crate::readiness;
use crate::reply::{Spare, Transfer, pair};
use crate::request::{Allocation, Operation, Request};

/// Threads of a ring that is none.
const THREADS: usize = 4;

/// How often a thread takes completions in a row because others have found the ring locked.
const VISITS: u32 = 4;

/// A ring of requests to the kernel. Cheap to clone; all clones are one ring.
///
/// Make one for each worker thread. Its owner calls [`Ring::reap`] when [`Ring::fd`] is readable.
/// Requests may be started from any thread; what is started between two calls of the same worker
/// is best gathered by a [`Plug`].
#[derive(Clone)]
pub struct Ring {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    eventfd: Arc<OwnedFd>,
}

enum Engine {
    /// Locked while requests are handed to the kernel, which may take long. Whoever looks for completions must not wait
    /// for that: it is a visitor.
    Uring(Box<Visited<Plugged>>),
    Threads(Pool),
}

struct Plugged {
    ring: Uring,
    /// Plugs that live.
    plugs: usize,
    /// What requests have in common with those who wait for them.
    spare: Spare,
    /// An empty list, whose memory is used again.
    completed: Completed,
}

/// Requests that have completed, with bytes or a negative errno.
type Completed = Vec<(Request, i64)>;

impl Plugged {
    /// Requests that have completed; the list comes back by [`Inner::complete`].
    fn completed(&mut self) -> Completed {
        std::mem::take(&mut self.completed)
    }

    /// Hands requests to the kernel, unless they are being gathered. If it takes none, the next call of
    /// `reap` tries again, which this makes come. Adds those that it has done at once.
    fn submit(&mut self, eventfd: &OwnedFd, completed: &mut Completed) {
        if self.plugs == 0 && self.ring.submit(completed) {
            readiness::signal(eventfd);
        }
    }
}

impl Inner {
    /// Wakes the tasks of requests that have completed. Without the ring's lock.
    fn complete(&self, completed: Completed) {
        match &self.engine {
            Engine::Uring(ring) => {
                wake(ring, completed);
                self.unlocked(ring);
            }
            Engine::Threads(_) => {
                completed.into_iter().for_each(|(request, result)| request.complete(result));
            }
        }
    }

    /// The ring was unlocked: takes what others would have taken meanwhile.
    fn unlocked(&self, ring: &Visited<Plugged>) {
        if ring.take_left() {
            self.visit(ring);
        }
    }

    /// Takes the requests that have completed, unless somebody has the ring locked, who does so afterwards. Returns
    /// how many there were.
    fn visit(&self, ring: &Visited<Plugged>) -> usize {
        let mut count = 0;
        for _ in 0..VISITS {
            let Some(mut plugged) = ring.try_visit() else { return count };
            let mut completed = plugged.completed();
            plugged.ring.completed(&mut completed);
            // There is room for those that waited.
            plugged.submit(&self.eventfd, &mut completed);
            if completed.is_empty() {
                plugged.completed = completed;
                drop(plugged);
            } else {
                drop(plugged);
                count += completed.len();
                wake(ring, completed);
            }
            if !ring.take_left() {
                return count;
            }
        }
        // Others come again and again: somebody else is to look, whom this wakes.
        readiness::signal(&self.eventfd);
        count
    }
}

/// Wakes the tasks of requests of a ring that have completed, without its lock, and gives the list back. It may have
/// been locked for that.
fn wake(ring: &Visited<Plugged>, mut completed: Completed) {
    completed.drain(..).for_each(|(request, result)| request.complete(result));
    // Whoever has it locked does without.
    if let Some(mut plugged) = ring.try_lock() {
        plugged.completed = completed;
    }
}

impl Ring {
    /// A ring with room for `entries` requests in the kernel, by io_uring, or by threads where
    /// io_uring is forbidden or missing. More requests may be started: they wait.
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left; `EINVAL`: `entries` is 0 or above 32,768.
    pub fn new(entries: u32) -> Result<Self> {
        match Self::with_io_uring(entries) {
            Err(error) if matches!(error.errno(), Errno::PERM | Errno::NOSYS | Errno::ACCESS) => {
                tracing::info!(%error, "no io_uring; I/O is done by threads");
                Self::with_threads(THREADS)
            }
            made => made,
        }
    }

    /// A ring by io_uring (Linux 5.6).
    ///
    /// # Errors
    /// `EPERM`, `ENOSYS`: io_uring is forbidden or missing; otherwise as [`Ring::new`].
    pub fn with_io_uring(entries: u32) -> Result<Self> {
        let eventfd = readiness::new()?;
        let ring = Uring::new(entries, &eventfd)?;
        let engine = Engine::Uring(Box::new(Visited::new(Plugged {
            ring,
            plugs: 0,
            spare: Spare::default(),
            completed: Vec::new(),
        })));
        Ok(Self { inner: Arc::new(Inner { engine, eventfd }) })
    }

    /// A ring by at most `threads` threads, which start when they are needed.
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let eventfd = readiness::new()?;
        let engine = Engine::Threads(Pool::new(threads, eventfd.clone()));
        Ok(Self { inner: Arc::new(Inner { engine, eventfd }) })
    }

    /// Whether both are the same ring.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether requests go to io_uring.
    pub fn is_io_uring(&self) -> bool {
        matches!(self.inner.engine, Engine::Uring(_))
    }

    /// Becomes readable when requests have completed; [`Ring::reap`] is to be called then. Requests that
    /// the kernel has done when they are handed to it complete without that. Not to be read.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.inner.eventfd
    }

    /// Takes the requests that have completed and wakes their tasks. Returns how many there were. Does not block:
    /// while another thread hands requests to the kernel, that one does so afterwards.
    pub fn reap(&self) -> usize {
        // Drained first: what completes from here on makes it readable again. That it was not
        // readable is no error.
        _ = rustix::io::read(&*self.inner.eventfd, &mut [0; 8]);
        self.take()
    }

    /// As [`Ring::reap`], without a look at the descriptor: for those whom each of its changes tells.
    pub(crate) fn take(&self) -> usize {
        match &self.inner.engine {
            Engine::Uring(ring) => self.inner.visit(ring),
            Engine::Threads(pool) => {
                let completed = pool.completed();
                let count = completed.len();
                self.inner.complete(completed);
                count
            }
        }
    }

    /// How many requests have not completed.
    pub fn in_flight(&self) -> usize {
        match &self.inner.engine {
            Engine::Uring(ring) => {
                let count = ring.lock().ring.len();
                self.inner.unlocked(ring);
                count
            }
            Engine::Threads(pool) => pool.len(),
        }
    }

    /// Gathers the requests that are started while the result lives: they are handed to the
    /// kernel together when it is dropped.
    pub fn plug(&self) -> Plug<'_> {
        if let Engine::Uring(ring) = &self.inner.engine {
            ring.lock().plugs += 1;
            self.inner.unlocked(ring);
        }
        Plug { ring: self }
    }

    fn start(&self, operation: Operation, file: &Arc<OwnedFd>, buffer: Buffer) -> Transfer {
        let (file, bounce) = (file.clone(), None);
        let request = |completion| Request {
            operation,
            file,
            buffer,
            done: 0,
            given_up: 0,
            bounce,
            completion,
        };
        match &self.inner.engine {
            Engine::Uring(ring) => {
                let mut plugged = ring.lock();
                let (completion, transfer) = plugged.spare.pair();
                let request = request(completion);
                if let Err(error) = request.check() {
                    drop(plugged);
                    request.refuse(error);
                    self.inner.unlocked(ring);
                    return transfer;
                }
                plugged.ring.push(request);
                if plugged.plugs == 0 {
                    let mut completed = plugged.completed();
                    plugged.submit(&self.inner.eventfd, &mut completed);
                    drop(plugged);
                    self.inner.complete(completed);
                } else {
                    drop(plugged);
                    self.inner.unlocked(ring);
                }
                transfer
            }
            Engine::Threads(pool) => {
                let (completion, transfer) = pair();
                let request = request(completion);
                match request.check() {
                    Ok(()) => pool.push(request),
                    Err(error) => request.refuse(error),
                }
                transfer
            }
        }
    }

    /// Starts to read a file from `offset`, in bytes, over the whole length of a buffer. The request has
    /// begun when this returns; the future waits for it.
    ///
    /// Returns the bytes read, fewer than the buffer has at the end of the file, and the buffer.
    ///
    /// # Errors
    /// `EACCES`: guest memory that is not held for writing; `EFAULT`: the client truncated its file;
    /// `EINVAL`: past 2^63; what the file fails with; `EIO`: the ring has ended first.
    pub fn read_into(&self, file: &Arc<OwnedFd>, offset: u64, buffer: Buffer) -> Transfer {
        self.start(Operation::Read(offset), file, buffer)
    }

    /// Starts to write a buffer to a file at `offset`, in bytes. Otherwise as [`Ring::read_into`].
    ///
    /// # Errors
    /// As [`Ring::read_into`]; `EACCES`: guest memory that is not held for reading.
    pub fn write_from(&self, file: &Arc<OwnedFd>, offset: u64, buffer: Buffer) -> Transfer {
        self.start(Operation::Write(offset), file, buffer)
    }

    /// Starts to read a file from `offset`, in bytes, into guest memory that is held for writing.
    ///
    /// Returns the bytes read, fewer than the hold has at the end of the file, and the hold.
    ///
    /// # Errors
    /// As [`Ring::read_into`].
    pub fn read_to_guest(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        hold: Hold,
    ) -> impl Future<Output = (Result<usize>, Option<Hold>)> + Send + use<> {
        let transfer = self.read_into(file, offset, Buffer::Guest(smallvec![hold]));
        with_buffer(transfer, Buffer::into_hold)
    }

    /// Starts to write guest memory that is held for reading to a file at `offset`, in bytes.
    ///
    /// # Errors
    /// As [`Ring::write_from`].
    pub fn write_from_guest(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        hold: Hold,
    ) -> impl Future<Output = (Result<usize>, Option<Hold>)> + Send + use<> {
        let transfer = self.write_from(file, offset, Buffer::Guest(smallvec![hold]));
        with_buffer(transfer, Buffer::into_hold)
    }

    /// Starts to read a file from `offset`, in bytes, over the whole length of a buffer, which
    /// comes back.
    ///
    /// # Errors
    /// `EINVAL`: past 2^63; what the file fails with.
    pub fn read(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (Result<usize>, Vec<u8>)> + Send + use<> {
        let transfer = self.read_into(file, offset, Buffer::Own(buffer));
        with_buffer(transfer, Buffer::into_own)
    }

    /// Starts to write a buffer, which comes back, to a file at `offset`, in bytes.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub fn write(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (Result<usize>, Vec<u8>)> + Send + use<> {
        let transfer = self.write_from(file, offset, Buffer::Own(buffer));
        with_buffer(transfer, Buffer::into_own)
    }

    /// Starts to read a file from `offset`, in bytes, over the whole length of an aligned buffer, which
    /// comes back unless the ring has ended first.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub fn read_aligned(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Aligned,
    ) -> impl Future<Output = (Result<usize>, Option<Aligned>)> + Send + use<> {
        let transfer = self.read_into(file, offset, Buffer::Aligned(buffer));
        with_buffer(transfer, Buffer::into_aligned)
    }

    /// Starts to write an aligned buffer, which comes back unless the ring has ended first, to a file
    /// at `offset`, in bytes.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub fn write_aligned(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Aligned,
    ) -> impl Future<Output = (Result<usize>, Option<Aligned>)> + Send + use<> {
        let transfer = self.write_from(file, offset, Buffer::Aligned(buffer));
        with_buffer(transfer, Buffer::into_aligned)
    }

    /// Starts to make durable what has been written to a file and completed (`fdatasync`).
    ///
    /// # Errors
    /// What the file fails with.
    pub fn flush(&self, file: &Arc<OwnedFd>) -> impl Future<Output = Result<()>> + Send + use<> {
        let transfer = self.start(Operation::Flush, file, Buffer::None);
        async move { transfer.await.0.map(drop) }
    }

    /// Starts to change what is allocated of a range of a file, in bytes.
    ///
    /// # Errors
    /// `EINVAL`: past 2^63, or no bytes; `EOPNOTSUPP`: the file system cannot; what the file
    /// fails with.
    pub fn allocate(
        &self,
        file: &Arc<OwnedFd>,
        how: Allocation,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        let transfer = self.start(Operation::Allocate { how, offset, len }, file, Buffer::None);
        async move { transfer.await.0.map(drop) }
    }
}

/// What a request comes to, with its buffer as `f` has it.
async fn with_buffer<B>(transfer: Transfer, f: impl FnOnce(Buffer) -> B) -> (Result<usize>, B) {
    let (result, buffer) = transfer.await;
    (result, f(buffer))
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("io_uring", &self.is_io_uring())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

/// Gathers requests; see [`Ring::plug`].
#[must_use = "requests are gathered while this lives"]
pub struct Plug<'a> {
    ring: &'a Ring,
}

impl Drop for Plug<'_> {
    fn drop(&mut self) {
        if let Engine::Uring(ring) = &self.ring.inner.engine {
            let mut plugged = ring.lock();
            plugged.plugs -= 1;
            if plugged.plugs == 0 {
                let mut completed = plugged.completed();
                plugged.submit(&self.ring.inner.eventfd, &mut completed);
                drop(plugged);
                self.ring.inner.complete(completed);
            } else {
                drop(plugged);
                self.ring.inner.unlocked(ring);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::pipe::pipe;

    use super::*;

    /// Whoever looks for completions does not wait for a thread that hands requests to the kernel, which takes
    /// the completions when it has done so.
    #[test]
    fn look_does_not_wait_for_a_submission_which_looks_in_its_place() {
        let Ok(ring) = Ring::with_io_uring(4) else {
            eprintln!("SKIPPED: io_uring is forbidden here");
            return;
        };
        let Engine::Uring(inner) = &ring.inner.engine else { unreachable!("it is made of one") };
        // A read of a pipe completes when something was written.
        let (end, other) = pipe().unwrap();
        let mut read = ring.read_into(&Arc::new(end), 0, Buffer::Own(vec![0; 1]));
        assert_eq!(ring.in_flight(), 1);
        let submitting = inner.lock();
        rustix::io::write(&other, b"x").unwrap();
        let visitor = ring.clone();
        let looked = std::thread::spawn(move || visitor.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !looked.is_finished() {
            assert!(std::time::Instant::now() < deadline, "a look waits for a submission");
            std::thread::yield_now();
        }
        assert_eq!(looked.join().unwrap(), 0);
        drop(submitting);
        ring.inner.unlocked(inner);
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let read = std::pin::Pin::new(&mut read).poll(cx);
        assert!(read.is_ready(), "nobody has looked in its place");
    }

    /// Whatever locks a ring takes what a look has left meanwhile.
    #[test]
    fn whoever_locks_a_ring_makes_the_look_that_was_left() {
        let Ok(ring) = Ring::with_io_uring(4) else {
            eprintln!("SKIPPED: io_uring is forbidden here");
            return;
        };
        let Engine::Uring(inner) = &ring.inner.engine else { unreachable!("it is made of one") };
        let file = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        let file = Arc::new(file);
        let leave = || {
            let submitting = inner.lock();
            assert_eq!(ring.take(), 0, "left to whoever has it");
            drop(submitting);
        };
        let read = |bytes| drop(ring.read_into(&file, 0, Buffer::Own(vec![0; bytes])));
        let gathering = ring.plug();
        leave();
        read(1);
        assert!(!inner.take_left(), "a request that is gathered");
        leave();
        let beside = ring.plug();
        assert!(!inner.take_left(), "a plug beside another one");
        leave();
        drop(beside);
        assert!(!inner.take_left(), "the end of a plug beside another one");
        leave();
        drop(gathering);
        assert!(!inner.take_left(), "the last plug");
        leave();
        read(1);
        assert!(!inner.take_left(), "a request");
        leave();
        drop(ring.read_into(&file, u64::MAX, Buffer::Own(vec![0; 1])));
        assert!(!inner.take_left(), "a request that is refused");
        leave();
        ring.in_flight();
        assert!(!inner.take_left(), "a count");
    }
}
