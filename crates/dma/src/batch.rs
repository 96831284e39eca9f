//! Many accesses under one acquisition of the lock.

use vfiod_sync::atomic::Ordering;

use crate::attachment::Attachment;
use crate::error::{Errno, Error, Result};
use crate::fault::Scalar;
use crate::map::{Map, Source, failed, forbidden, last_of, unmapped};
use crate::mapped_file::{Access, MappedFile};
use crate::request::Perm;
use crate::shared::Reading;
use crate::transfer::{Transfer, copy_direct, transfer_pieces};

/// How often a read-modify-write starts over because the peer changed the value meanwhile.
const TRIES: u32 = 10_000;
pub(crate) const RW: Perm = Perm::READ.union(Perm::WRITE);

/// How a range of guest memory is reached.
#[must_use = "what is reached by message has not been accessed"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is mapped, and the access is done.
    Mapped,
    /// Some of it is reached by message only, and nothing has been accessed: use
    /// [`Attachment::read`] or [`Attachment::write`] from a task.
    Message,
}

/// Accesses of one attachment that enter the map once; see [`Attachment::batch`].
///
/// Between two accesses it lets those in who wait to map or unmap, and looks whether the device may still begin one
/// (`EPERM`). Drop it before doing anything else that takes long. While it lives, its thread must not access the attachment in any other
/// way, nor map or unmap in its space.
pub struct Batch<'a> {
    attachment: &'a Attachment,
    /// `None` after a mapper was let in, and after a copy without the lock.
    reading: Option<Reading<'a, Map>>,
    hint: u64,
}

impl Attachment {
    /// Enters the map once for several accesses: see [`Batch`].
    ///
    /// # Errors
    /// `EPERM`: bus mastering is off, or the device is quiesced; `EFAULT`: no space is attached.
    #[inline]
    pub fn batch(&self) -> Result<Batch<'_>> {
        let reading = Some(self.enter()?);
        Ok(Batch { attachment: self, reading, hint: self.shard().hint() })
    }
}

impl Batch<'_> {
    /// The map, entered again if need be.
    #[inline(always)]
    fn map(&mut self) -> Result<(&Map, &mut u64)> {
        if self.reading.as_ref().is_none_or(Reading::writer_waits) || !self.attachment.bus_master()
        {
            self.enter_again()?;
        }
        match &self.reading {
            Some(map) => Ok((map, &mut self.hint)),
            None => Err(unmapped(0)),
        }
    }

    #[cold]
    fn enter_again(&mut self) -> Result<()> {
        self.reading = None;
        self.reading = Some(self.attachment.enter()?);
        Ok(())
    }

    fn transfer(&mut self, iova: u64, mut what: Transfer<'_>) -> Result<Reach> {
        if what.len() == 0 {
            return Ok(Reach::Mapped);
        }
        let attachment = self.attachment;
        let (map, hint) = self.map()?;
        let piece = map.piece(iova, what.len(), what.perm(), hint)?;
        if copy_direct(map, &piece, iova, &mut what)? {
            return Ok(Reach::Mapped);
        }
        let pieces = map.pieces(iova, what.len(), what.perm(), hint)?;
        if pieces.iter().any(|(_, piece)| matches!(piece.source, Source::Peer(_))) {
            return Ok(Reach::Message);
        }
        let rest = transfer_pieces(map, pieces, &mut what, attachment.counter())?;
        if !rest.is_empty() {
            self.reading = None;
            // No messages are left: that was looked at before.
            rest.copy(&mut what)?;
        }
        Ok(Reach::Mapped)
    }

    /// Reads guest memory, across adjoining mappings; 1, 2, 4 or 8 aligned bytes of one mapping in
    /// one piece.
    ///
    /// # Errors
    /// As [`Attachment::read`].
    #[inline]
    pub fn read(&mut self, iova: u64, dst: &mut [u8]) -> Result<Reach> {
        self.transfer(iova, Transfer::Read(dst))
    }

    /// Writes guest memory, across adjoining mappings.
    ///
    /// # Errors
    /// As [`Attachment::write`].
    #[inline]
    pub fn write(&mut self, iova: u64, src: &[u8]) -> Result<Reach> {
        self.transfer(iova, Transfer::Write(src))
    }

    /// Where `len` bytes at `iova` are, or the first of them where they do not lie in one
    /// mapping: [`Span::len`] says how many.
    ///
    /// # Errors
    /// `EFAULT`: not mapped, or past 2^64; `EACCES`: the mapping forbids it; `EINVAL`: `len` is 0;
    /// `EPERM`: bus mastering was switched off, or the device quiesced, meanwhile.
    #[inline]
    pub fn translate(&mut self, iova: u64, len: usize, perm: Perm) -> Result<Span<'_>> {
        if len == 0 {
            return Err(Error::new(Errno::INVAL, "a translation of 0 bytes"));
        }
        last_of(iova, len)?;
        let (map, hint) = self.map()?;
        let piece = map.piece(iova, len, perm, hint)?;
        let mapped = match piece.source {
            Source::File(file) => Some(&*file.mapped),
            Source::Peer(_) => None,
        };
        Ok(Span { map, mapped, at: piece.at, len: piece.len, iova, perm })
    }

    /// An atomic access to one integer; `None` where it is reached by message.
    #[inline]
    fn atomic<T: Scalar, R>(
        &mut self,
        iova: u64,
        perm: Perm,
        access: impl FnOnce(&MappedFile, u64) -> Result<R, Access>,
    ) -> Result<Option<R>> {
        if !iova.is_multiple_of(T::SIZE as u64) {
            return Err(failed(Access::Misaligned, iova));
        }
        let (map, hint) = self.map()?;
        let piece = map.piece(iova, T::SIZE, perm, hint)?;
        if piece.len != T::SIZE {
            return Err(Error::new(
                Errno::INVAL,
                format!("an atomic access at {iova:#x} that crosses from one mapping to another"),
            ));
        }
        let Source::File(file) = piece.source else { return Ok(None) };
        let result = access(&file.mapped, piece.at);
        if perm.contains(Perm::WRITE) {
            map.written(iova, T::SIZE);
        }
        result.map(Some).map_err(|access| failed(access, iova))
    }

    /// Loads an integer, in the machine's byte order, in one piece, with at least acquire
    /// ordering. `None`: it is reached by message.
    ///
    /// # Errors
    /// As [`Attachment::read`]; `EINVAL`: the address, or its place in the file, is not aligned,
    /// or the integer crosses from one mapping to another.
    #[inline]
    pub fn load<T: Scalar>(&mut self, iova: u64) -> Result<Option<T>> {
        self.atomic::<T, _>(iova, Perm::READ, |mapped, at| mapped.load(at))
    }

    /// Stores an integer, in the machine's byte order, in one piece: at least release ordering,
    /// sequentially consistent if asked.
    ///
    /// # Errors
    /// As [`Attachment::write`]; `EINVAL` as for [`Batch::load`].
    #[inline]
    pub fn store<T: Scalar>(&mut self, iova: u64, value: T, ordering: Ordering) -> Result<Reach> {
        let store = |mapped: &MappedFile, at| mapped.store(at, value, ordering);
        let stored = self.atomic::<T, _>(iova, Perm::WRITE, store)?;
        Ok(if stored.is_some() { Reach::Mapped } else { Reach::Message })
    }

    /// Exchanges an integer, sequentially consistent, and returns what was there.
    ///
    /// # Errors
    /// As [`Batch::load`] and [`Batch::store`]; `EOPNOTSUPP`: the memory is reached by message, or
    /// the architecture is not x86-64.
    pub fn swap<T: Scalar>(&mut self, iova: u64, value: T) -> Result<T> {
        self.atomic::<T, _>(iova, RW, |mapped, at| mapped.swap(at, value))?.ok_or_else(by_message)
    }

    /// Stores `new` if `old` is there, sequentially consistent, and returns what was there.
    ///
    /// # Errors
    /// As [`Batch::swap`].
    pub fn compare_exchange<T: Scalar>(&mut self, iova: u64, old: T, new: T) -> Result<T> {
        let exchange = |mapped: &MappedFile, at| mapped.compare_exchange(at, old, new);
        self.atomic::<T, _>(iova, RW, exchange)?.ok_or_else(by_message)
    }

    /// Changes an integer by a function of it, sequentially consistent, and returns what was
    /// there.
    ///
    /// # Errors
    /// As [`Batch::swap`]; `EAGAIN`: the client changed the value again and again.
    pub fn fetch_update<T: Scalar>(&mut self, iova: u64, f: impl Fn(T) -> T) -> Result<T> {
        let mut old = self.load(iova)?.ok_or_else(by_message)?;
        for _ in 0..TRIES {
            let seen = self.compare_exchange(iova, old, f(old))?;
            if seen == old {
                return Ok(old);
            }
            old = seen;
        }
        Err(Error::new(Errno::AGAIN, format!("the client keeps changing the value at {iova:#x}")))
    }

    /// Adds to an integer, wrapping around; otherwise as [`Batch::fetch_update`].
    ///
    /// # Errors
    /// As [`Batch::fetch_update`].
    pub fn fetch_add<T: Scalar>(&mut self, iova: u64, value: T) -> Result<T> {
        self.fetch_update(iova, |old: T| T::narrow(old.widen().wrapping_add(value.widen())))
    }

    /// Sets bits of an integer; otherwise as [`Batch::fetch_update`].
    ///
    /// # Errors
    /// As [`Batch::fetch_update`].
    pub fn fetch_or<T: Scalar>(&mut self, iova: u64, value: T) -> Result<T> {
        self.fetch_update(iova, |old: T| T::narrow(old.widen() | value.widen()))
    }

    /// Keeps only the given bits of an integer; otherwise as [`Batch::fetch_update`].
    ///
    /// # Errors
    /// As [`Batch::fetch_update`].
    pub fn fetch_and<T: Scalar>(&mut self, iova: u64, value: T) -> Result<T> {
        self.fetch_update(iova, |old: T| T::narrow(old.widen() & value.widen()))
    }
}

impl Drop for Batch<'_> {
    #[inline]
    fn drop(&mut self) {
        let shard = self.attachment.shard();
        if shard.hint() != self.hint {
            shard.set_hint(self.hint);
        }
    }
}

#[cold]
fn by_message() -> Error {
    Error::new(Errno::OPNOTSUPP, "no atomic read-modify-write of memory reached by messages")
}

/// A contiguous piece of guest memory; valid until the next use of its [`Batch`].
pub struct Span<'t> {
    map: &'t Map,
    mapped: Option<&'t MappedFile>,
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

    /// Whether it is mapped. If not, it is reached by message, and the methods below fail with
    /// `EOPNOTSUPP`.
    pub fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    #[inline]
    fn within(&self, offset: usize, len: usize, perm: Perm) -> Result<(&MappedFile, u64)> {
        if !self.perm.contains(perm) {
            return Err(forbidden(self.iova, perm));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(Errno::INVAL, "an access outside the translated memory"));
        }
        match self.mapped {
            Some(mapped) => Ok((mapped, self.at + offset as u64)),
            None => Err(Error::new(Errno::OPNOTSUPP, "memory that only messages reach")),
        }
    }

    /// Copies out, from an offset in bytes.
    ///
    /// # Errors
    /// `EINVAL`: outside it; `EACCES`: not translated for reading; `EFAULT`: the client truncated
    /// its file; `EOPNOTSUPP`: not [`Span::is_mapped`].
    #[inline]
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        let (mapped, at) = self.within(offset, dst.len(), Perm::READ)?;
        mapped.read(at, dst).map_err(|access| failed(access, self.iova))
    }

    /// Copies in, to an offset in bytes.
    ///
    /// # Errors
    /// As [`Span::read`]; `EACCES`: not translated for writing.
    #[inline]
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        let (mapped, at) = self.within(offset, src.len(), Perm::WRITE)?;
        let written = mapped.write(at, src);
        if !src.is_empty() {
            self.map.written(self.iova + offset as u64, src.len());
        }
        written.map_err(|access| failed(access, self.iova))
    }
}
