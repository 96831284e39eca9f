//! Where the data of a command is, piece by piece.

use smallvec::SmallVec;

use crate::denied::Denied;

/// A piece of the data of a command, in the order of the data. Its length is in bytes, and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Guest memory, from an address on.
    Memory(u64, usize),
    /// What the host does not want of what is read (SGL bit bucket).
    Discarded(usize),
}

impl Piece {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Memory(_, len) | Self::Discarded(len) => *len,
        }
    }

    /// Its first bytes, at most so many, and the rest.
    pub(crate) fn split(self, most: usize) -> (Self, Option<Self>) {
        match self {
            Self::Memory(at, len) if len > most => {
                let rest = Self::Memory(at.saturating_add(most as u64), len - most);
                (Self::Memory(at, most), Some(rest))
            }
            Self::Discarded(len) if len > most => {
                (Self::Discarded(most), Some(Self::Discarded(len - most)))
            }
            all => (all, None),
        }
    }
}

/// The pieces of a command, of which most have one or two.
pub(crate) type Pieces = SmallVec<[Piece; 2]>;

/// Adds a piece; one that adjoins the one before becomes part of it.
///
/// # Errors
/// No memory.
pub(crate) fn add(pieces: &mut Pieces, piece: Piece) -> Result<(), Denied> {
    if let (Some(Piece::Memory(before, so_far)), Piece::Memory(address, len)) =
        (pieces.last_mut(), piece)
        && before.checked_add(*so_far as u64) == Some(address)
    {
        *so_far += len;
        return Ok(());
    }
    pieces.try_reserve(1).map_err(|_| Denied::Short)?;
    pieces.push(piece);
    Ok(())
}
