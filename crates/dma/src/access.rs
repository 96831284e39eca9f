//! The data path: reading, writing and translating.

use std::ops::Range;

use super::mapped_file::{Access, MappedFile};
use super::pin::{Pin, Pinned, Pins, Segment};
use super::space::{DmaSpace, Map, Source};
use super::{DIRECT, DmaPeer, Perm, Scalar, failed};
use crate::error::{Errno, Error, Result};
use vfiod_sync::atomic::Ordering;
use vfiod_sync::{Arc, RwLockReadGuard, point, read};

/// How often a read-modify-write starts over because the peer changed the value meanwhile.
const TRIES: u32 = 10_000;

/// The contiguous head of a range of addresses.
struct Piece<'t> {
    source: &'t Source,
    /// Offset in the mapping; for a peer, the address.
    at: u64,
    len: usize,
}

impl Map {
    /// The first `len` bytes at `iova`, or as many as lie in one mapping. `len` is not 0.
    #[inline(always)]
    fn piece(&self, iova: u64, len: usize, perm: Perm) -> Result<Piece<'_>> {
        let Some((first, mapping)) = self.table.find(iova) else { return Err(unmapped(iova)) };
        if !mapping.perm().contains(perm) {
            return Err(forbidden(iova, perm));
        }
        let source = self.sources.get(mapping.source as usize).and_then(Option::as_ref);
        let Some(source) = source else { return Err(unmapped(iova)) };
        let at = match source {
            Source::File(_) => mapping.offset + (iova - first),
            Source::Peer(_) => iova,
        };
        let rest = mapping.last - iova;
        let len = if (len as u64 - 1) <= rest { len } else { rest as usize + 1 };
        Ok(Piece { source, at, len })
    }

    /// All pieces of a range; an error if any of them is missing or forbidden.
    fn pieces(&self, iova: u64, len: usize, perm: Perm) -> Result<Vec<(u64, Piece<'_>)>> {
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < len {
            let at = iova + done as u64;
            let piece = self.piece(at, len - done, perm)?;
            done += piece.len;
            pieces.push((at, piece));
        }
        Ok(pieces)
    }
}

#[cold]
fn unmapped(iova: u64) -> Error {
    Error::new(Errno::FAULT, format!("DMA to {iova:#x}, where nothing is mapped"))
}

#[cold]
fn forbidden(iova: u64, perm: Perm) -> Error {
    let what = if perm.contains(Perm::WRITE) { "written" } else { "read" };
    Error::new(Errno::ACCESS, format!("DMA to {iova:#x}, which may not be {what}"))
}

#[cold]
fn off() -> Error {
    Error::new(Errno::PERM, "DMA while the device may not master the bus")
}

/// Refuses a range that passes 2^64. `len` is not 0.
#[inline]
fn in_range(iova: u64, len: usize) -> Result<u64> {
    iova.checked_add(len as u64 - 1).ok_or_else(|| {
        Error::new(Errno::FAULT, format!("DMA of {len} bytes to {iova:#x}: past 2^64"))
    })
}

/// Either direction of a copy.
enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Transfer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(dst) => dst.len(),
            Self::Write(src) => src.len(),
        }
    }

    fn perm(&self) -> Perm {
        match self {
            Self::Read(_) => Perm::READ,
            Self::Write(_) => Perm::WRITE,
        }
    }

    #[inline]
    fn mapped(&mut self, part: Range<usize>, mapping: &MappedFile, at: u64) -> Result<(), Access> {
        point();
        match self {
            Self::Read(dst) => mapping.read(at, &mut dst[part]),
            // Dirty logging belongs after this.
            Self::Write(src) => mapping.write(at, &src[part]),
        }
    }

    fn message(&mut self, part: Range<usize>, peer: &dyn DmaPeer, iova: u64) -> Result<()> {
        match self {
            Self::Read(dst) => peer.dma_read(iova, &mut dst[part]),
            Self::Write(src) => peer.dma_write(iova, &src[part]),
        }
    }
}

/// Part of a transfer that is done with no lock held.
enum Later {
    Copy(Pin, Arc<MappedFile>, u64),
    Message(Arc<dyn DmaPeer>, u64),
}

/// A transfer under `map` as far as it is quick; the rest to be done later.
#[inline]
fn transfer(map: &Map, pins: &Arc<Pins>, iova: u64, transfer: &mut Transfer<'_>) -> Result<Rest> {
    let (len, perm) = (transfer.len(), transfer.perm());
    let piece = map.piece(iova, len, perm)?;
    if piece.len == len
        && len <= DIRECT
        && let Source::File(mapping) = piece.source
    {
        transfer.mapped(0..len, mapping, piece.at).map_err(|access| failed(access, iova))?;
        return Ok(Vec::new());
    }
    transfer_pieces(map, pins, iova, transfer)
}

type Rest = Vec<(Range<usize>, u64, Later)>;

fn transfer_pieces(
    map: &Map,
    pins: &Arc<Pins>,
    iova: u64,
    transfer: &mut Transfer<'_>,
) -> Result<Rest> {
    let len = transfer.len();
    in_range(iova, len)?;
    // Everything is looked up before anything is copied.
    let pieces = map.pieces(iova, len, transfer.perm())?;
    let (mut done, mut rest) = (0, Vec::new());
    for (iova, piece) in pieces {
        let part = done..done + piece.len;
        done += piece.len;
        match piece.source {
            Source::File(mapping) if len <= DIRECT => {
                transfer.mapped(part, mapping, piece.at).map_err(|access| failed(access, iova))?
            }
            Source::File(mapping) => {
                let pin = pins.add(iova, iova + (piece.len as u64 - 1));
                rest.push((part, iova, Later::Copy(pin, mapping.clone(), piece.at)));
            }
            Source::Peer(peer) => rest.push((part, iova, Later::Message(peer.clone(), piece.at))),
        }
    }
    Ok(rest)
}

/// Does the rest. First what is pinned, so that nothing is while a peer is waited for: it may
/// be unmapping just then.
fn finish(rest: Rest, transfer: &mut Transfer<'_>) -> Result<()> {
    let mut messages = Vec::new();
    for (part, iova, later) in rest {
        match later {
            Later::Copy(pin, mapping, at) => {
                transfer.mapped(part, &mapping, at).map_err(|access| failed(access, iova))?;
                drop(pin);
            }
            Later::Message(peer, at) => messages.push((part, peer, at)),
        }
    }
    for (part, peer, at) in messages {
        transfer.message(part, &*peer, at)?;
    }
    Ok(())
}

impl DmaSpace {
    #[inline]
    fn mastering(&self) -> Result<()> {
        if self.bus_master() { Ok(()) } else { Err(off()) }
    }

    #[inline]
    fn transfer(&self, iova: u64, mut what: Transfer<'_>) -> Result<()> {
        self.mastering()?;
        if what.len() == 0 {
            return Ok(());
        }
        let map = read(&self.inner.map);
        let rest = transfer(&map, &self.inner.pins, iova, &mut what)?;
        drop(map);
        if rest.is_empty() { Ok(()) } else { finish(rest, &mut what) }
    }

    /// Reads guest memory, across adjoining mappings. Never blocks on a mapper; waits for the
    /// peer only where the memory is reached by messages. 1, 2, 4 or 8 aligned bytes are read
    /// in one piece.
    ///
    /// # Errors
    /// `EFAULT`: not mapped, or the peer cut its file short; `EACCES`: a mapping forbids it;
    /// `EPERM`: bus mastering is off; what [`DmaPeer`] says. Where a mapping is missing or
    /// forbids it, nothing has been accessed; after another error some may have been.
    pub fn read(&self, iova: u64, dst: &mut [u8]) -> Result<()> {
        self.transfer(iova, Transfer::Read(dst))
    }

    /// Writes guest memory; as [`DmaSpace::read`]. `EACCES` also where the file behind a
    /// mapping is not open for writing.
    pub fn write(&self, iova: u64, src: &[u8]) -> Result<()> {
        self.transfer(iova, Transfer::Write(src))
    }

    /// Takes the table lock once for several accesses. To be dropped soon: mappers wait
    /// for it. While it lives, its thread must make no other access to this space.
    ///
    /// # Errors
    /// `EPERM`: bus mastering is off.
    #[inline]
    pub fn access(&self) -> Result<DmaAccess<'_>> {
        self.mastering()?;
        Ok(DmaAccess { space: self, map: Some(read(&self.inner.map)) })
    }

    /// Holds guest memory in place, for asynchronous or large accesses: until the result is
    /// dropped, an unmap of it waits.
    ///
    /// # Errors
    /// As [`DmaSpace::read`] and [`DmaSpace::write`]; `EINVAL`: no bytes; `EOPNOTSUPP` where
    /// the memory is reached by messages.
    pub fn pin(&self, iova: u64, len: usize, perm: Perm) -> Result<Pinned> {
        self.mastering()?;
        let map = read(&self.inner.map);
        let mut segments = Vec::new();
        let last = match len {
            0 => return Err(Error::new(Errno::INVAL, "pinning 0 bytes")),
            _ => in_range(iova, len)?,
        };
        for (_, piece) in map.pieces(iova, len, perm)? {
            let Source::File(mapping) = piece.source else {
                return Err(Error::new(
                    Errno::OPNOTSUPP,
                    format!("memory at {iova:#x} is reached by messages and cannot be pinned"),
                ));
            };
            segments.push(Segment { mapping: mapping.clone(), at: piece.at, len: piece.len });
        }
        let pin = self.inner.pins.add(iova, last);
        drop(map);
        Pinned::new(pin, segments, iova, len, perm)
    }

    /// An atomic access to one integer.
    #[inline]
    fn atomic<T: Scalar, R>(
        &self,
        iova: u64,
        perm: Perm,
        mapped: impl FnOnce(&MappedFile, u64) -> Result<R, Access>,
        message: impl FnOnce(&dyn DmaPeer) -> Result<R>,
    ) -> Result<R> {
        self.mastering()?;
        if !iova.is_multiple_of(T::SIZE as u64) {
            return Err(failed(Access::Misaligned, iova));
        }
        let map = read(&self.inner.map);
        let piece = map.piece(iova, T::SIZE, perm)?;
        if piece.len != T::SIZE {
            return Err(Error::new(
                Errno::INVAL,
                format!("an atomic access at {iova:#x} that crosses from one mapping to another"),
            ));
        }
        match piece.source {
            Source::File(mapping) => {
                mapped(mapping, piece.at).map_err(|access| failed(access, iova))
            }
            Source::Peer(peer) => {
                let peer = peer.clone();
                drop(map);
                message(&*peer)
            }
        }
    }

    /// Loads an integer, in the machine's byte order, in one piece: acquire at least, whatever
    /// is asked. Where the memory is reached by messages, the peer reads it as it likes.
    ///
    /// # Errors
    /// As [`DmaSpace::read`]; `EINVAL` where the address, or its place in the file, is not
    /// aligned to the size.
    #[inline]
    pub fn load<T: Scalar>(&self, iova: u64, _ordering: Ordering) -> Result<T> {
        self.atomic::<T, _>(
            iova,
            Perm::READ,
            |mapping, at| mapping.load(at),
            |peer| {
                let mut bytes = [0; 8];
                peer.dma_read(iova, &mut bytes[..T::SIZE])?;
                Ok(scalar(bytes))
            },
        )
    }

    /// Stores an integer, in the machine's byte order, in one piece: release at least,
    /// sequentially consistent if asked.
    ///
    /// # Errors
    /// As [`DmaSpace::write`]; `EINVAL` as for [`DmaSpace::load`].
    #[inline]
    pub fn store<T: Scalar>(&self, iova: u64, value: T, ordering: Ordering) -> Result<()> {
        self.atomic::<T, _>(
            iova,
            Perm::WRITE,
            // Dirty logging belongs after this and the two below.
            |mapping, at| mapping.store(at, value, ordering),
            |peer| peer.dma_write(iova, &bytes(value)[..T::SIZE]),
        )
    }

    /// Exchanges an integer, sequentially consistent. What was there.
    ///
    /// # Errors
    /// As [`DmaSpace::load`] and [`DmaSpace::store`]; `EOPNOTSUPP` where the memory is reached
    /// by messages, or on an architecture other than x86-64.
    pub fn swap<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.atomic::<T, _>(iova, RW, |mapping, at| mapping.swap(at, value), |_| Err(by_message()))
    }

    /// Stores `new` if `old` is there, sequentially consistent. What was there.
    ///
    /// # Errors
    /// As [`DmaSpace::swap`].
    pub fn compare_exchange<T: Scalar>(&self, iova: u64, old: T, new: T) -> Result<T> {
        self.atomic::<T, _>(
            iova,
            RW,
            |mapping, at| mapping.compare_exchange(at, old, new),
            |_| Err(by_message()),
        )
    }

    /// Changes an integer by a function of it, sequentially consistent. What was there.
    ///
    /// # Errors
    /// As [`DmaSpace::swap`]; `EAGAIN` where the peer changed the value again and again.
    pub fn fetch_update<T: Scalar>(&self, iova: u64, f: impl Fn(T) -> T) -> Result<T> {
        let mut old = self.load(iova, Ordering::SeqCst)?;
        for _ in 0..TRIES {
            let seen = self.compare_exchange(iova, old, f(old))?;
            if seen == old {
                return Ok(old);
            }
            old = seen;
        }
        Err(Error::new(Errno::AGAIN, format!("the client keeps changing the value at {iova:#x}")))
    }

    /// Adds to an integer, wrapping around; as [`DmaSpace::fetch_update`].
    pub fn fetch_add<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.fetch_update(iova, |old: T| T::narrow(old.widen().wrapping_add(value.widen())))
    }

    /// Sets bits of an integer; as [`DmaSpace::fetch_update`].
    pub fn fetch_or<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.fetch_update(iova, |old: T| T::narrow(old.widen() | value.widen()))
    }

    /// Keeps only the given bits of an integer; as [`DmaSpace::fetch_update`].
    pub fn fetch_and<T: Scalar>(&self, iova: u64, value: T) -> Result<T> {
        self.fetch_update(iova, |old: T| T::narrow(old.widen() & value.widen()))
    }
}

const RW: Perm = Perm::READ.union(Perm::WRITE);

fn by_message() -> Error {
    Error::new(Errno::OPNOTSUPP, "no atomic read-modify-write of memory reached by messages")
}

fn scalar<T: Scalar>(bytes: [u8; 8]) -> T {
    let value = u64::from_ne_bytes(bytes);
    T::narrow(if cfg!(target_endian = "big") { value >> (64 - 8 * T::SIZE) } else { value })
}

fn bytes<T: Scalar>(value: T) -> [u8; 8] {
    let value = value.widen();
    let value = if cfg!(target_endian = "big") { value << (64 - 8 * T::SIZE) } else { value };
    value.to_ne_bytes()
}

/// Several accesses under one acquisition of the table lock; see [`DmaSpace::access`].
pub struct DmaAccess<'a> {
    space: &'a DmaSpace,
    /// `None` only while a message is under way.
    map: Option<RwLockReadGuard<'a, Map>>,
}

impl<'a> DmaAccess<'a> {
    #[inline]
    fn map(&self) -> Result<&Map> {
        self.map.as_deref().ok_or_else(|| unmapped(0))
    }

    fn transfer(&mut self, iova: u64, mut what: Transfer<'_>) -> Result<()> {
        if what.len() == 0 {
            return Ok(());
        }
        let rest = transfer(self.map()?, &self.space.inner.pins, iova, &mut what)?;
        if rest.is_empty() {
            return Ok(());
        }
        self.map = None;
        let result = finish(rest, &mut what);
        self.map = Some(read(&self.space.inner.map));
        result
    }

    /// As [`DmaSpace::read`]. What is large or reached by messages is read with the lock
    /// dropped meanwhile.
    pub fn read(&mut self, iova: u64, dst: &mut [u8]) -> Result<()> {
        self.transfer(iova, Transfer::Read(dst))
    }

    /// As [`DmaSpace::write`], likewise.
    pub fn write(&mut self, iova: u64, src: &[u8]) -> Result<()> {
        self.transfer(iova, Transfer::Write(src))
    }

    /// Where `len` bytes at `iova` are, or the first of them where they do not lie in one
    /// mapping: [`Span::len`] tells.
    ///
    /// # Errors
    /// `EFAULT`: not mapped, or past 2^64; `EACCES`: the mapping forbids it. `EINVAL`: `len`
    /// is 0.
    #[inline]
    pub fn translate(&self, iova: u64, len: usize, perm: Perm) -> Result<Span<'_>> {
        if len == 0 {
            return Err(Error::new(Errno::INVAL, "a translation of 0 bytes"));
        }
        in_range(iova, len)?;
        let piece = self.map()?.piece(iova, len, perm)?;
        let mapping = match piece.source {
            Source::File(mapping) => Some(&**mapping),
            Source::Peer(_) => None,
        };
        Ok(Span { mapping, at: piece.at, len: piece.len, iova, perm })
    }
}

/// A contiguous piece of guest memory, valid while its [`DmaAccess`] is held.
pub struct Span<'t> {
    mapping: Option<&'t MappedFile>,
    at: u64,
    len: usize,
    iova: u64,
    perm: Perm,
}

impl Span<'_> {
    /// Its length in bytes, not 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its address.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Whether it is memory here; if not, only messages reach it, and the methods below say
    /// `EOPNOTSUPP`.
    pub fn is_mapped(&self) -> bool {
        self.mapping.is_some()
    }

    #[inline]
    fn within(&self, offset: usize, len: usize, perm: Perm) -> Result<(&MappedFile, u64)> {
        if !self.perm.contains(perm) {
            return Err(forbidden(self.iova, perm));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(Errno::INVAL, "an access outside the translated memory"));
        }
        match self.mapping {
            Some(mapping) => Ok((mapping, self.at + offset as u64)),
            None => Err(Error::new(Errno::OPNOTSUPP, "memory that only messages reach")),
        }
    }

    /// Copies out, from an offset in bytes.
    ///
    /// # Errors
    /// `EINVAL`: outside it; `EACCES`: not translated for reading; `EFAULT`: the peer cut its
    /// file short; `EOPNOTSUPP`: not [`Span::is_mapped`].
    #[inline]
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        let (mapping, at) = self.within(offset, dst.len(), Perm::READ)?;
        mapping.read(at, dst).map_err(|access| failed(access, self.iova))
    }

    /// Copies in, to an offset in bytes; errors as for [`Span::read`].
    #[inline]
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        let (mapping, at) = self.within(offset, src.len(), Perm::WRITE)?;
        // Dirty logging belongs after this.
        mapping.write(at, src).map_err(|access| failed(access, self.iova))
    }
}
