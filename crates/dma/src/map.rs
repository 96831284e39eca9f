//! What the data path reads: the mappings of a space, and what is behind them.

use std::os::fd::OwnedFd;

use vfiod_buffer::push;
use vfiod_sync::Arc;

use crate::dirty::DirtyLog;
use crate::error::{Errno, Error, Result};
use crate::mapped_file::{Access, MappedFile};
use crate::peer::DmaPeer;
use crate::ranges::Ranges;
use crate::request::Perm;
use crate::table::Table;

/// What is behind mappings.
pub(crate) enum Source {
    /// A file, or a part of one, mapped into this process.
    File(FileSource),
    /// Memory reached by messages.
    Peer(Arc<dyn DmaPeer>),
}

pub(crate) struct FileSource {
    pub(crate) mapped: Arc<MappedFile>,
    /// The descriptor of this file and access mode, which all its sources share.
    pub(crate) fd: Arc<OwnedFd>,
    /// Where in the file `mapped` begins, in bytes.
    pub(crate) offset: u64,
}

/// The mappings of a space, as the data path needs them.
pub(crate) struct Map {
    pub(crate) table: Table,
    pub(crate) sources: Vec<Option<Source>>,
    pub(crate) ranges: Arc<Ranges>,
    pub(crate) dirty: Arc<DirtyLog>,
    /// Whether `dirty` is on: here, so that an access looks at nothing else while it is off.
    pub(crate) logging: bool,
}

/// The contiguous head of a range of addresses.
pub(crate) struct Piece<'t> {
    pub(crate) source: &'t Source,
    /// Offset in the mapped file; for a peer, the address.
    pub(crate) at: u64,
    pub(crate) len: usize,
}

impl Map {
    /// The first `len` bytes at `iova`, or as many as lie in one mapping. `len` is not 0.
    ///
    /// # Errors
    /// `EFAULT`: nothing is mapped there; `EACCES`: the mapping does not allow `perm`.
    #[inline(always)]
    pub(crate) fn piece(
        &self,
        iova: u64,
        len: usize,
        perm: Perm,
        hint: &mut u64,
    ) -> Result<Piece<'_>> {
        let Some((first, mapping)) = self.table.find_near(iova, hint) else {
            return Err(unmapped(iova));
        };
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

    /// All pieces of a range, each with its address.
    ///
    /// # Errors
    /// As [`Map::piece`], if any of them is missing or forbidden; `EFAULT` past 2^64; `ENOMEM`: a client
    /// chooses how small its mappings are, and there is no memory for so many pieces.
    pub(crate) fn pieces(
        &self,
        iova: u64,
        len: usize,
        perm: Perm,
        hint: &mut u64,
    ) -> Result<Vec<(u64, Piece<'_>)>> {
        last_of(iova, len)?;
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < len {
            let at = iova + done as u64;
            let piece = self.piece(at, len - done, perm, hint)?;
            done += piece.len;
            push(&mut pieces, (at, piece))?;
        }
        Ok(pieces)
    }

    /// A range has been written under the lock of this map. `len` is not 0.
    #[inline(always)]
    pub(crate) fn written(&self, iova: u64, len: usize) {
        if self.logging {
            self.dirty.mark(iova, len);
        }
    }
}

/// The last address of a range. `len` is not 0.
///
/// # Errors
/// `EFAULT`: it passes 2^64.
#[inline]
pub(crate) fn last_of(iova: u64, len: usize) -> Result<u64> {
    iova.checked_add(len as u64 - 1).ok_or_else(|| {
        Error::new(Errno::FAULT, format!("DMA of {len} bytes to {iova:#x}: past 2^64"))
    })
}

#[cold]
pub(crate) fn unmapped(iova: u64) -> Error {
    Error::new(Errno::FAULT, format!("DMA to {iova:#x}, where nothing is mapped"))
}

#[cold]
pub(crate) fn forbidden(iova: u64, perm: Perm) -> Error {
    let what = if perm.contains(Perm::WRITE) { "written" } else { "read" };
    Error::new(Errno::ACCESS, format!("DMA to {iova:#x}, which may not be {what}"))
}

/// The error of an access to a client's memory at `iova`.
#[cold]
pub(crate) fn failed(access: Access, iova: u64) -> Error {
    match access {
        Access::Gone => Error::new(
            Errno::FAULT,
            format!("the client's file does not reach to what is mapped at {iova:#x}"),
        ),
        Access::Missing => Error::new(
            Errno::FAULT,
            format!(
                "the client's file does not reach to what is mapped at {iova:#x}, or the kernel has no \
                 page for it: a free huge page (vm.nr_hugepages), or room in its tmpfs"
            ),
        ),
        Access::NoMemory => Error::new(
            Errno::FAULT,
            format!(
                "the kernel has no page for what is missing in the client's file at {iova:#x}: no huge \
                 page is free (vm.nr_hugepages), its tmpfs is full, or the daemon may not have more \
                 memory"
            ),
        ),
        Access::ReadOnly => Error::new(
            Errno::ACCESS,
            format!("the client's file behind {iova:#x} is not open for writing"),
        ),
        Access::Misaligned => Error::new(
            Errno::INVAL,
            format!("an atomic access at {iova:#x}, which is not aligned to its size"),
        ),
        Access::Unsupported => Error::new(
            Errno::OPNOTSUPP,
            "this architecture has no recoverable atomic read-modify-write",
        ),
    }
}
