//! Moves the data of commands: holds of guest memory where it is mapped, buffers where it is reached by
//! message.

use std::time::Duration;

use vfiod_buffer::{push, zeroed};
use vfiod_core::dma::{Attachment, Perm};
use vfiod_core::{Errno, MemoryCharge};
use vfiod_disk::Buffer;
use vfiod_pci::Task;
use vfiod_sync::atomic::{AtomicUsize, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Waiters, race};

use crate::controller::Nvme;
use crate::piece::Piece;
use crate::spec::Status;

/// Pieces of guest memory that a back end is given; data in more of them goes through a buffer.
const MAX_HOLDS: usize = 512;
/// Bytes of buffers that a controller may have at the same time, unless the options say so.
pub(crate) const MAX_BOUNCE: usize = 16 << 20;

/// How long a command waits before it looks again whether its user may have the memory. Nobody tells when that
/// has other memory back.
const RETRY: Duration = Duration::from_millis(10);

/// The buffers of a controller.
#[derive(Debug)]
pub(crate) struct BounceMemory {
    limit: usize,
    used: Mutex<usize>,
    /// Commands that wait for buffers.
    waiting: AtomicUsize,
    released: Waiters,
}

impl Default for BounceMemory {
    fn default() -> Self {
        Self::new(MAX_BOUNCE)
    }
}

/// A command that waits for a buffer.
struct Waiting<'a>(&'a BounceMemory);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.released.wake_all();
        }
    }
}

/// Bytes of buffers that are in use.
#[derive(Debug)]
pub(crate) struct Bounced<'a> {
    memory: &'a BounceMemory,
    len: usize,
    /// What the user is charged.
    _charge: MemoryCharge,
}

impl BounceMemory {
    /// Buffers of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        let (used, waiting) = (Mutex::default(), AtomicUsize::new(0));
        Self { limit, used, waiting, released: Waiters::new() }
    }

    /// Whether no command waits for a buffer. Otherwise no more are read.
    pub(crate) fn is_enough(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Waits until no command waits for a buffer.
    pub(crate) async fn enough(&self) {
        self.released.wait_for(|| self.is_enough().then_some(())).await;
    }

    /// Waits until a buffer of `len` bytes may be made, and the user who has the controller open may have it.
    /// One alone may be of any length.
    pub(crate) async fn take(&self, task: &Task<Nvme>, len: usize) -> Bounced<'_> {
        let take = || {
            let mut used = lock(&self.used);
            let fits = *used == 0 || *used + len <= self.limit;
            let charge = fits.then(|| task.charge_memory(len as u64).ok()).flatten()?;
            *used += len;
            Some(charge)
        };
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(self);
        loop {
            let taken = async { Some(self.released.wait_for(take).await) };
            let retry = async {
                task.task().sleep(RETRY).await;
                None
            };
            if let Some(_charge) = race(taken, retry).await {
                return Bounced { memory: self, len, _charge };
            }
        }
    }
}

impl Drop for Bounced<'_> {
    fn drop(&mut self) {
        *lock(&self.memory.used) -= self.len;
        self.memory.released.wake_all();
    }
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToHost,
    FromHost,
}

/// The data of a command, as a back end takes it.
pub(crate) struct Data<'a> {
    pub(crate) buffer: Buffer,
    /// `None`: the buffer is the guest's memory.
    bounced: Option<Bounced<'a>>,
}

/// Finds the data of a command; what goes to the disk is in the buffer then.
///
/// # Errors
/// Data Transfer Error; Internal Error: no memory.
pub(crate) async fn begin<'a>(
    task: &Task<Nvme>,
    memory: &'a BounceMemory,
    pieces: &[Piece],
    direction: Direction,
) -> Result<Data<'a>, Status> {
    let perm = if direction == Direction::ToHost { Perm::WRITE } else { Perm::READ };
    let mut holds = Vec::new();
    if pieces.len() > MAX_HOLDS {
        return bounce(task, memory, pieces, direction).await;
    }
    for piece in pieces {
        let &Piece::Memory(at, len) = piece else {
            drop(holds);
            return bounce(task, memory, pieces, direction).await;
        };
        match task.dma().hold(at, len, perm) {
            Ok(hold) => push(&mut holds, hold).map_err(|_| Status::INTERNAL)?,
            Err(error) if error.errno() == Errno::OPNOTSUPP => {
                drop(holds);
                return bounce(task, memory, pieces, direction).await;
            }
            Err(_) => return Err(Status::DATA_TRANSFER),
        }
    }
    Ok(Data { buffer: Buffer::Guest(holds), bounced: None })
}

async fn bounce<'a>(
    task: &Task<Nvme>,
    memory: &'a BounceMemory,
    pieces: &[Piece],
    direction: Direction,
) -> Result<Data<'a>, Status> {
    let len = pieces.iter().map(Piece::len).sum();
    let bounced = Some(memory.take(task, len).await);
    let mut bytes = zeroed(len).map_err(|_| Status::INTERNAL)?;
    if direction == Direction::FromHost {
        gather(task.dma(), pieces, &mut bytes).await?;
    }
    Ok(Data { buffer: Buffer::Own(bytes), bounced })
}

/// Gives the host what was read, if it is not there already.
///
/// # Errors
/// Data Transfer Error.
pub(crate) async fn finish(
    dma: &Attachment,
    pieces: &[Piece],
    bounced: Option<Bounced<'_>>,
    buffer: Option<Buffer>,
) -> Result<(), Status> {
    match (bounced, buffer) {
        (Some(_bounced), Some(Buffer::Own(bytes))) => scatter(dma, pieces, &bytes).await,
        (Some(_), _) => Err(Status::INTERNAL),
        (None, _) => Ok(()),
    }
}

impl<'a> Data<'a> {
    /// The buffer, and what says how it came to be.
    pub(crate) fn split(self) -> (Buffer, Option<Bounced<'a>>) {
        (self.buffer, self.bounced)
    }
}

/// Reads guest memory, piece after piece.
///
/// # Errors
/// Data Transfer Error.
pub(crate) async fn gather(
    dma: &Attachment,
    pieces: &[Piece],
    mut bytes: &mut [u8],
) -> Result<(), Status> {
    for piece in pieces {
        let (now, rest) = bytes.split_at_mut(piece.len());
        if let Piece::Memory(at, _) = *piece {
            dma.read(at, now).await.map_err(|_| Status::DATA_TRANSFER)?;
        }
        bytes = rest;
    }
    Ok(())
}

/// Writes guest memory, piece after piece.
///
/// # Errors
/// Data Transfer Error.
pub(crate) async fn scatter(
    dma: &Attachment,
    pieces: &[Piece],
    mut bytes: &[u8],
) -> Result<(), Status> {
    for piece in pieces {
        let (now, rest) = bytes.split_at(piece.len());
        if let Piece::Memory(at, _) = *piece {
            dma.write(at, now).await.map_err(|_| Status::DATA_TRANSFER)?;
        }
        bytes = rest;
    }
    Ok(())
}
