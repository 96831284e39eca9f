//! Copies between a buffer and guest memory: what is done under the lock, without it, by message.

use std::ops::Range;

use vfiod_buffer::{copy_of, push};
use vfiod_sync::Arc;

use crate::dirty::Writing;
use crate::error::{Errno, Error, Result};
use crate::in_flight::{Flight, InFlight};
use crate::map::{Map, Piece, Source, failed};
use crate::mapped_file::{Access, MappedFile};
use crate::peer::{Completion, DmaPeer, Ends, Reply};
use crate::ranges::InUse;
use crate::request::Perm;

/// Accesses up to this many bytes are copied under the lock, which takes under a microsecond;
/// larger ones without it.
pub const DIRECT: usize = 16 << 10;

/// Either direction of a copy.
pub(crate) enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Transfer<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Read(dst) => dst.len(),
            Self::Write(src) => src.len(),
        }
    }

    pub(crate) fn perm(&self) -> Perm {
        match self {
            Self::Read(_) => Perm::READ,
            Self::Write(_) => Perm::WRITE,
        }
    }

    fn writes(&self) -> bool {
        matches!(self, Self::Write(_))
    }

    /// Copies a part from or to a mapped file.
    #[inline]
    fn copy(&mut self, part: Range<usize>, mapped: &MappedFile, at: u64) -> Result<(), Access> {
        vfiod_sync::point();
        match self {
            Self::Read(dst) => mapped.read(at, &mut dst[part]),
            Self::Write(src) => mapped.write(at, &src[part]),
        }
    }

    /// Copies a part under the lock of `map`.
    #[inline]
    fn copy_under(
        &mut self,
        map: &Map,
        part: Range<usize>,
        mapped: &MappedFile,
        at: u64,
        iova: u64,
    ) -> Result<()> {
        let len = part.len();
        let copied = self.copy(part, mapped, at);
        // After the copy, and after a failed one, too: some of it may have been written.
        if self.writes() {
            map.written(iova, len);
        }
        copied.map_err(|access| failed(access, iova))
    }
}

/// A copy that is done with no lock held.
struct Later {
    part: Range<usize>,
    iova: u64,
    mapped: Arc<MappedFile>,
    at: u64,
}

/// A part of a transfer that is done by message.
pub(crate) struct Message {
    part: Range<usize>,
    peer: Arc<dyn DmaPeer>,
    iova: u64,
    ends: Ends,
}

impl Message {
    /// Asks for the data of a part: for where it belongs, and for what.
    pub(crate) fn start_read(self) -> (Range<usize>, Reply<Vec<u8>>) {
        let Self { part, peer, iova, ends } = self;
        let (completion, reply) = Completion::with(Some(ends));
        peer.start_read(iova, part.len(), completion);
        (part, reply)
    }

    /// Sends a part of `src`, which is the whole of what is written.
    pub(crate) fn start_write(self, src: &[u8]) -> Reply<()> {
        let Self { part, peer, iova, ends } = self;
        let (completion, reply) = Completion::with(Some(ends));
        match copy_of(&src[part]) {
            Ok(data) => peer.start_write(iova, data, completion),
            Err(none) => completion.complete(Err(none.into())),
        }
        reply
    }
}

/// Takes the data of a reply.
///
/// # Errors
/// `EIO`: the peer completed the request with another length than was asked for.
pub(crate) fn take_reply(data: &[u8], dst: &mut [u8]) -> Result<()> {
    if data.len() != dst.len() {
        let what = format!("a client's reply has {} bytes of {}", data.len(), dst.len());
        return Err(Error::new(Errno::IO, what));
    }
    dst.copy_from_slice(data);
    Ok(())
}

/// What is left of a transfer when the lock has been dropped.
#[derive(Default)]
pub(crate) struct Rest {
    copies: Vec<Later>,
    /// The range of all copies together, with the gaps that are reached by message.
    in_use: Option<(Option<Writing>, InUse, Flight)>,
    messages: Vec<Message>,
}

impl Rest {
    /// Does the copies; what is left are messages. The memory of the copies is given back before a
    /// client is waited for: it may be unmapping just then.
    pub(crate) fn copy(self, transfer: &mut Transfer<'_>) -> Result<Vec<Message>> {
        let Self { copies, in_use, messages } = self;
        let copied = copies.into_iter().try_for_each(|Later { part, iova, mapped, at }| {
            transfer.copy(part, &mapped, at).map_err(|access| failed(access, iova))
        });
        if let Some((writing, in_use, flight)) = in_use {
            drop(writing);
            drop(in_use);
            drop(flight);
        }
        copied.map(|()| messages)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty() && self.messages.is_empty()
    }
}

/// Copies a whole transfer if it lies in one mapped piece and is small enough to be done under the
/// lock; whether it did.
#[inline]
pub(crate) fn copy_direct(
    map: &Map,
    piece: &Piece<'_>,
    iova: u64,
    transfer: &mut Transfer<'_>,
) -> Result<bool> {
    let len = transfer.len();
    match piece.source {
        Source::File(file) if piece.len == len && len <= DIRECT => {
            transfer.copy_under(map, 0..len, &file.mapped, piece.at, iova)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Performs a transfer of several pieces as far as it is quick; the rest is to be done without the
/// lock.
///
/// # Errors
/// Of a copy; `ENOMEM`: there are too many pieces for the memory that there is.
pub(crate) fn transfer_pieces(
    map: &Map,
    pieces: Vec<(u64, Piece<'_>)>,
    transfer: &mut Transfer<'_>,
    in_flight: &Arc<InFlight>,
) -> Result<Rest> {
    let (len, writes) = (transfer.len(), transfer.writes());
    let writing = |iova, len| writes.then(|| Writing::new(&map.dirty, iova, len));
    let mut rest = Rest::default();
    let mut done = 0;
    for (iova, piece) in pieces {
        let part = done..done + piece.len;
        done += piece.len;
        match piece.source {
            Source::File(file) if len <= DIRECT => {
                transfer.copy_under(map, part, &file.mapped, piece.at, iova)?;
            }
            Source::File(file) => {
                let mapped = file.mapped.clone();
                push(&mut rest.copies, Later { part, iova, mapped, at: piece.at })?;
            }
            Source::Peer(peer) => {
                let ends = Ends::new(writing(iova, piece.len), in_flight.begin());
                let message = Message { part, peer: peer.clone(), iova: piece.at, ends };
                push(&mut rest.messages, message)?;
            }
        }
    }
    if let (Some(first), Some(last)) = (rest.copies.first(), rest.copies.last()) {
        let (first, last) = (first.iova, last.iova + (last.part.len() as u64 - 1));
        let in_use = map.ranges.begin(first, last);
        let len = (last - first) as usize + 1;
        rest.in_use = Some((writing(first, len), in_use, in_flight.begin()));
    }
    Ok(rest)
}
