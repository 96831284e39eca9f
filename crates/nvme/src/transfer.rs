//! Moves the data of commands: holds of guest memory where it is mapped, buffers where it is reached by
//! message.

use vfiod_buffer::zeroed;
use vfiod_core::Errno;
use vfiod_core::dma::{Attachment, Hold, Perm};
use vfiod_disk::{Buffer, Holds};
use vfiod_pci::{Task, Worker};

use crate::bounce::{BounceMemory, Bounced};
use crate::denied::Denied;
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

/// Pieces that a command may have without being charged for them.
pub(crate) const SHORT: usize = 64;

/// How the data of a command is moved.
enum Way {
    /// In the guest's memory itself. `None`: it is not held for now.
    Held(Option<Holds>),
    /// Through a buffer of so many bytes.
    Through(usize),
}

impl Way {
    /// # Errors
    /// Those of [`hold_all`].
    fn of(dma: &Attachment, pieces: &[Piece], direction: Direction) -> Result<Self, Denied> {
        Ok(match hold_all(dma, pieces, direction)? {
            Some(holds) => Self::Held(Some(holds)),
            None => Self::Through(pieces.iter().map(Piece::len).sum()),
        })
    }

    fn let_go(&mut self) {
        if let Self::Held(holds) = self {
            *holds = None;
        }
    }

    /// The bytes that are charged to the user, those of a long list included.
    fn charged(&self, pieces: &[Piece]) -> usize {
        let (of_piece, buffer) = match self {
            // A hold, and what the kernel is told of it.
            Self::Held(_) => (size_of::<Piece>() + size_of::<Hold>() + 16, 0),
            Self::Through(len) => (size_of::<Piece>(), *len),
        };
        let list = if pieces.len() > SHORT { pieces.len() * of_piece } else { 0 };
        list + buffer
    }

    fn buffer(&self) -> usize {
        match self {
            Self::Held(_) => 0,
            Self::Through(len) => *len,
        }
    }
}

/// Holds all pieces. `None`: they need a buffer.
///
/// # Errors
/// Data Transfer Error; no memory.
pub(crate) fn hold_all(
    dma: &Attachment,
    pieces: &[Piece],
    direction: Direction,
) -> Result<Option<Holds>, Denied> {
    let perm = if direction == Direction::ToHost { Perm::WRITE } else { Perm::READ };
    let mut holds = Holds::new();
    if pieces.len() > MAX_HOLDS {
        return Ok(None);
    }
    for piece in pieces {
        let &Piece::Memory(at, len) = piece else { return Ok(None) };
        match dma.hold(at, len, perm) {
            Ok(hold) => {
                holds.try_reserve(1).map_err(|_| Denied::Short)?;
                holds.push(hold);
            }
            Err(error) if error.errno() == Errno::OPNOTSUPP => return Ok(None),
            Err(error) => return Err(Denied::of_memory(&error)),
        }
    }
    Ok(Some(holds))
}

/// Finds the data of commands that are done together, as a back end takes it; what goes to the disk is in the buffers
/// then. What they need beside the guest's memory is charged as long as the last result lives; it is waited for
/// until `ends` says what the commands end with.
///
/// # Errors
/// Data Transfer Error; no memory; what `ends` says. Whose data it is.
pub(crate) async fn begin<'a, M: Worker, const N: usize>(
    task: &Task<M>,
    memory: &'a BounceMemory,
    ends: impl Future<Output = Status> + Send,
    pieces: [&[Piece]; N],
    direction: Direction,
) -> Result<([Buffer; N], Option<Bounced<'a>>), (usize, Denied)> {
    let mut ways = [const { Way::Through(0) }; N];
    for (n, way) in ways.iter_mut().enumerate() {
        *way = Way::of(task.dma(), pieces[n], direction).map_err(|denied| (n, denied))?;
    }
    let charged = ways.iter().zip(pieces).map(|(way, pieces)| way.charged(pieces)).sum();
    let (bounced, made) = if charged == 0 {
        (None, [const { Vec::new() }; N])
    } else {
        // While this waits, nobody waits who unmaps the guest's memory.
        ways.iter_mut().for_each(Way::let_go);
        let lens = ways.each_ref().map(Way::buffer);
        let make = || {
            let mut made = [const { Vec::new() }; N];
            for (buffer, len) in made.iter_mut().zip(lens) {
                *buffer = zeroed(len).ok()?;
            }
            Some(made)
        };
        let taken = memory.take(task, ends, charged, make).await;
        let (bounced, made) = taken.map_err(|status| (0, status.into()))?;
        (Some(bounced), made)
    };
    let mut buffers = [const { Buffer::Own(Vec::new()) }; N];
    for (n, (way, mut bytes)) in ways.into_iter().zip(made).enumerate() {
        buffers[n] = match way {
            Way::Held(Some(holds)) => Buffer::Guest(holds),
            Way::Held(None) => {
                let held = hold_all(task.dma(), pieces[n], direction);
                // What was mapped, and is no more, cannot be held.
                let held = held.and_then(|holds| Ok(holds.ok_or(Status::DATA_TRANSFER)?));
                Buffer::Guest(held.map_err(|denied| (n, denied))?)
            }
            Way::Through(_) => {
                if direction == Direction::FromHost {
                    let gathered = gather(task.dma(), pieces[n], &mut bytes).await;
                    gathered.map_err(|denied| (n, denied))?;
                }
                Buffer::Own(bytes)
            }
        };
    }
    Ok((buffers, bounced))
}

/// Gives the host what was read into a buffer of our own.
///
/// # Errors
/// Data Transfer Error; no memory.
pub(crate) async fn finish(
    dma: &Attachment,
    pieces: &[Piece],
    buffer: Option<Buffer>,
) -> Result<(), Denied> {
    match buffer {
        Some(Buffer::Own(bytes)) => scatter(dma, pieces, &bytes).await,
        _ => Err(Status::INTERNAL.into()),
    }
}

/// Reads guest memory, piece after piece.
///
/// # Errors
/// Data Transfer Error; no memory.
pub(crate) async fn gather(
    dma: &Attachment,
    pieces: &[Piece],
    mut bytes: &mut [u8],
) -> Result<(), Denied> {
    for piece in pieces {
        let (now, rest) = bytes.split_at_mut(piece.len());
        if let Piece::Memory(at, _) = *piece {
            dma.read(at, now).await.map_err(|error| Denied::of_memory(&error))?;
        }
        bytes = rest;
    }
    Ok(())
}

/// Writes guest memory, piece after piece.
///
/// # Errors
/// Data Transfer Error; no memory.
pub(crate) async fn scatter(
    dma: &Attachment,
    pieces: &[Piece],
    mut bytes: &[u8],
) -> Result<(), Denied> {
    for piece in pieces {
        let (now, rest) = bytes.split_at(piece.len());
        if let Piece::Memory(at, _) = *piece {
            dma.write(at, now).await.map_err(|error| Denied::of_memory(&error))?;
        }
        bytes = rest;
    }
    Ok(())
}
