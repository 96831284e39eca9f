//! Moves the data of commands: holds of guest memory where it is mapped, buffers where it is reached by
//! message.

use vfiod_buffer::zeroed;
use vfiod_core::Errno;
use vfiod_core::dma::{Attachment, Perm};
use vfiod_disk::{Buffer, Holds};
use vfiod_pci::Task;

use crate::bounce::{BounceMemory, Bounced};
use crate::controller::Nvme;
use crate::piece::Piece;
use vfiod_nvme_spec::Status;

/// Pieces of guest memory that a back end is given; data in more of them goes through a buffer.
const MAX_HOLDS: usize = 512;
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
    match hold_all(task.dma(), pieces, direction)? {
        Some(holds) => Ok(Data { buffer: Buffer::Guest(holds), bounced: None }),
        None => bounce(task, memory, pieces, direction).await,
    }
}

/// Holds all pieces. `None`: they need a buffer.
///
/// # Errors
/// Data Transfer Error; Internal Error: no memory.
pub(crate) fn hold_all(
    dma: &Attachment,
    pieces: &[Piece],
    direction: Direction,
) -> Result<Option<Holds>, Status> {
    let perm = if direction == Direction::ToHost { Perm::WRITE } else { Perm::READ };
    let mut holds = Holds::new();
    if pieces.len() > MAX_HOLDS {
        return Ok(None);
    }
    for piece in pieces {
        let &Piece::Memory(at, len) = piece else { return Ok(None) };
        match dma.hold(at, len, perm) {
            Ok(hold) => {
                holds.try_reserve(1).map_err(|_| Status::INTERNAL)?;
                holds.push(hold);
            }
            Err(error) if error.errno() == Errno::OPNOTSUPP => return Ok(None),
            Err(_) => return Err(Status::DATA_TRANSFER),
        }
    }
    Ok(Some(holds))
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
