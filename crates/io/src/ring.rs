//! The ring: where requests are started, and whose completions are taken.

use std::fmt;
use std::os::fd::OwnedFd;

use vfiod_buffer::Aligned;
use vfiod_dma::{Completion, Errno, Hold, Reply, Result};
use vfiod_sync::{Arc, Mutex, lock};

use crate::pool::Pool;
use crate::raw::{Submitted, Uring};
use crate::readiness;
use crate::request::{Allocation, Buffer, Completed, Operation, Request};

/// Threads of a ring that is none.
const THREADS: usize = 4;

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
    Uring(Box<Mutex<Plugged>>),
    Threads(Pool),
}

struct Plugged {
    ring: Uring,
    /// Plugs that live.
    plugs: usize,
}

impl Inner {
    /// Hands requests to the kernel. If it takes none, the next call of `reap` tries again, which
    /// this makes come. Returns those that it has done at once.
    fn submit(&self, ring: &mut Uring) -> Vec<(Request, i64)> {
        let Submitted { completed, look_again } = ring.submit();
        if look_again {
            readiness::signal(&self.eventfd);
        }
        completed
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
        let engine = Engine::Uring(Box::new(Mutex::new(Plugged { ring, plugs: 0 })));
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

    /// Takes the requests that have completed and wakes their tasks. Returns how many there were.
    /// Does not block.
    pub fn reap(&self) -> usize {
        // Drained first: what completes from here on makes it readable again. That it was not
        // readable is no error.
        _ = rustix::io::read(&*self.inner.eventfd, &mut [0; 8]);
        let completed = match &self.inner.engine {
            Engine::Uring(ring) => {
                let mut plugged = lock(ring);
                let mut completed = plugged.ring.completed();
                // There is room for those that waited.
                if plugged.plugs == 0 {
                    completed.extend(self.inner.submit(&mut plugged.ring));
                }
                completed
            }
            Engine::Threads(pool) => pool.completed(),
        };
        let count = completed.len();
        complete(completed);
        count
    }

    /// How many requests have not completed.
    pub fn in_flight(&self) -> usize {
        match &self.inner.engine {
            Engine::Uring(ring) => lock(ring).ring.len(),
            Engine::Threads(pool) => pool.len(),
        }
    }

    /// Gathers the requests that are started while the result lives: they are handed to the
    /// kernel together when it is dropped.
    pub fn plug(&self) -> Plug<'_> {
        if let Engine::Uring(ring) = &self.inner.engine {
            lock(ring).plugs += 1;
        }
        Plug { ring: self }
    }

    fn start(&self, operation: Operation, file: &Arc<OwnedFd>, buffer: Buffer) -> Reply<Completed> {
        let (completion, reply) = Completion::new();
        let (file, bounce) = (file.clone(), None);
        let request = Request { operation, file, buffer, done: 0, given_up: 0, bounce, completion };
        if let Err(error) = request.check() {
            request.refuse(error);
            return reply;
        }
        match &self.inner.engine {
            Engine::Uring(ring) => {
                let mut plugged = lock(ring);
                plugged.ring.push(request);
                let completed = match plugged.plugs {
                    0 => self.inner.submit(&mut plugged.ring),
                    _ => Vec::new(),
                };
                drop(plugged);
                complete(completed);
            }
            Engine::Threads(pool) => pool.push(request),
        }
        reply
    }

    /// Starts to read a file from `offset`, in bytes, into guest memory that is held for writing.
    /// The request has begun when this returns; the future waits for it.
    ///
    /// Returns the bytes read, fewer than the hold has at the end of the file, and the hold.
    ///
    /// # Errors
    /// `EACCES`: the memory is not held for writing; `EFAULT`: the client truncated its file;
    /// `EINVAL`: past 2^63; what the file fails with.
    pub fn read_to_guest(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        hold: Hold,
    ) -> impl Future<Output = (Result<usize>, Option<Hold>)> + Send + use<> {
        let reply = self.start(Operation::Read(offset), file, Buffer::Guest(vec![hold]));
        async move { finish(reply).await.map_buffer(Buffer::into_hold) }
    }

    /// Starts to write guest memory that is held for reading to a file at `offset`, in bytes.
    ///
    /// # Errors
    /// As [`Ring::read_to_guest`]; `EACCES`: the memory is not held for reading.
    pub fn write_from_guest(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        hold: Hold,
    ) -> impl Future<Output = (Result<usize>, Option<Hold>)> + Send + use<> {
        let reply = self.start(Operation::Write(offset), file, Buffer::Guest(vec![hold]));
        async move { finish(reply).await.map_buffer(Buffer::into_hold) }
    }

    /// Starts to read a file from `offset`, in bytes, into several holds, one after the other, which
    /// come back in this order. Otherwise as [`Ring::read_to_guest`].
    ///
    /// # Errors
    /// As [`Ring::read_to_guest`].
    pub fn read_to_holds(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        holds: Vec<Hold>,
    ) -> impl Future<Output = (Result<usize>, Vec<Hold>)> + Send + use<> {
        let reply = self.start(Operation::Read(offset), file, Buffer::Guest(holds));
        async move { finish(reply).await.map_buffer(Buffer::into_holds) }
    }

    /// Starts to write several holds, one after the other, to a file at `offset`, in bytes. They come
    /// back in this order. Otherwise as [`Ring::write_from_guest`].
    ///
    /// # Errors
    /// As [`Ring::write_from_guest`].
    pub fn write_from_holds(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        holds: Vec<Hold>,
    ) -> impl Future<Output = (Result<usize>, Vec<Hold>)> + Send + use<> {
        let reply = self.start(Operation::Write(offset), file, Buffer::Guest(holds));
        async move { finish(reply).await.map_buffer(Buffer::into_holds) }
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
        let reply = self.start(Operation::Read(offset), file, Buffer::Own(buffer));
        async move { finish(reply).await.map_buffer(Buffer::into_own) }
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
        let reply = self.start(Operation::Write(offset), file, Buffer::Own(buffer));
        async move { finish(reply).await.map_buffer(Buffer::into_own) }
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
        let reply = self.start(Operation::Read(offset), file, Buffer::Aligned(buffer));
        async move { finish(reply).await.map_buffer(Buffer::into_aligned) }
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
        let reply = self.start(Operation::Write(offset), file, Buffer::Aligned(buffer));
        async move { finish(reply).await.map_buffer(Buffer::into_aligned) }
    }

    /// Starts to make durable what has been written to a file and completed (`fdatasync`).
    ///
    /// # Errors
    /// What the file fails with.
    pub fn flush(&self, file: &Arc<OwnedFd>) -> impl Future<Output = Result<()>> + Send + use<> {
        let reply = self.start(Operation::Flush, file, Buffer::None);
        async move { finish(reply).await.result.map(drop) }
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
        let reply = self.start(Operation::Allocate { how, offset, len }, file, Buffer::None);
        async move { finish(reply).await.result.map(drop) }
    }
}

/// Wakes the tasks of requests that have completed. Without the ring's lock.
fn complete(completed: Vec<(Request, i64)>) {
    completed.into_iter().for_each(|(request, result)| request.complete(result));
}

struct Finished {
    result: Result<usize>,
    buffer: Buffer,
}

impl Finished {
    fn map_buffer<B>(self, f: impl FnOnce(Buffer) -> B) -> (Result<usize>, B) {
        (self.result, f(self.buffer))
    }
}

/// The result and the buffer of a request.
async fn finish(reply: Reply<Completed>) -> Finished {
    match reply.await {
        Ok((result, buffer)) => Finished { result, buffer },
        // The ring has ended first, and keeps the buffer for the kernel.
        Err(error) => Finished { result: Err(error), buffer: Buffer::None },
    }
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
            let mut plugged = lock(ring);
            plugged.plugs -= 1;
            let completed = match plugged.plugs {
                0 => self.ring.inner.submit(&mut plugged.ring),
                _ => Vec::new(),
            };
            drop(plugged);
            complete(completed);
        }
    }
}
