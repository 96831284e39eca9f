//! What a saved state refers to by tokens: descriptors, and clients that are reached by message.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::dma::DmaPeer;
use crate::error::{Errno, Error, Result};
use crate::ids::FileId;
use crate::irq::FdToken;

/// Keeps the descriptors of a device that is saved.
pub trait KeepDescriptors {
    /// Keeps a duplicate of a descriptor. Returns the token that stands for it in the saved state.
    ///
    /// # Errors
    /// No descriptor is left.
    fn keep(&mut self, fd: BorrowedFd<'_>) -> Result<FdToken>;
}

/// Finds what a saved state refers to, for its restore.
pub trait FindDescriptors {
    /// Returns the descriptor that a token stands for, or a duplicate of it.
    ///
    /// # Errors
    /// `EINVAL`: there is none. No descriptor is left.
    fn find(&mut self, token: FdToken) -> Result<OwnedFd>;

    /// Returns the client whose memory is reached by message, of the file that made the mapping.
    ///
    /// # Errors
    /// `EINVAL`: there is no such client.
    fn peer(&mut self, file: Option<FileId>) -> Result<Arc<dyn DmaPeer>>;
}

/// The descriptors of saved states, kept in this process. A token is a place in the table.
#[derive(Default)]
pub struct DescriptorTable {
    fds: Vec<OwnedFd>,
    peer: Option<Arc<dyn DmaPeer>>,
}

impl DescriptorTable {
    /// A table without descriptors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `peer` the client behind every mapping that is reached by message.
    #[must_use]
    pub fn with_peer(self, peer: Arc<dyn DmaPeer>) -> Self {
        Self { peer: Some(peer), ..self }
    }
}

impl fmt::Debug for DescriptorTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescriptorTable").field("fds", &self.fds).finish_non_exhaustive()
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::new(errno, "cannot duplicate a descriptor").because(error)
    })
}

impl KeepDescriptors for DescriptorTable {
    fn keep(&mut self, fd: BorrowedFd<'_>) -> Result<FdToken> {
        self.fds.push(duplicate(fd)?);
        Ok(FdToken(self.fds.len() as u64 - 1))
    }
}

impl FindDescriptors for DescriptorTable {
    fn find(&mut self, token: FdToken) -> Result<OwnedFd> {
        use std::os::fd::AsFd;
        let at = usize::try_from(token.0).ok();
        let fd = at.and_then(|at| self.fds.get(at)).ok_or_else(|| {
            Error::new(Errno::INVAL, format!("there is no descriptor {}", token.0))
        })?;
        duplicate(fd.as_fd())
    }

    fn peer(&mut self, _file: Option<FileId>) -> Result<Arc<dyn DmaPeer>> {
        let none = || Error::new(Errno::INVAL, "a mapping by message, and no client for it");
        self.peer.clone().ok_or_else(none)
    }
}
