//! What a saved state refers to by tokens: descriptors, address spaces, and clients that are reached by
//! message.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dma::{DmaPeer, Space};
use crate::error::{Errno, Error, Result};
use crate::ids::FileId;
use crate::irq::FdToken;

/// Stands for an address space in a saved state: devices that are attached to one space name the same
/// token. Whoever saves gives it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceToken(pub u64);

/// An address space that was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptSpace {
    /// For the first time: its mappings are saved along with the device.
    New(SpaceToken),
    /// Before: the state of another device has its mappings.
    Known(SpaceToken),
}

/// Keeps the descriptors of devices that are saved.
pub trait KeepDescriptors {
    /// Keeps a duplicate of a descriptor. Returns the token that stands for it in the saved state.
    ///
    /// # Errors
    /// No descriptor is left.
    fn keep(&mut self, fd: BorrowedFd<'_>) -> Result<FdToken>;

    /// Names an address space, by its identity ([`Space::is`]).
    fn keep_space(&mut self, space: &Space) -> KeptSpace;
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

    /// Returns the address space that was restored with another device under a token.
    fn space(&mut self, token: SpaceToken) -> Option<Space>;

    /// An address space was restored. Later states that name the token mean this one.
    fn add_space(&mut self, token: SpaceToken, space: &Space);

    /// Whether a file of another device may own mappings in the space of this one, because it is
    /// restored, too.
    fn is_file_of_another_device(&self, file: FileId) -> bool;
}

/// The descriptors of saved states, kept in this process. A token is a place in the table.
#[derive(Default)]
pub struct DescriptorTable {
    fds: Vec<OwnedFd>,
    /// Named by a save; a token is a place here.
    spaces: Vec<Space>,
    restored_spaces: BTreeMap<SpaceToken, Space>,
    other_files: BTreeSet<FileId>,
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

    /// Lets files of other devices, which are restored, too, own mappings in shared spaces.
    #[must_use]
    pub fn with_files_of_other_devices(self, files: impl IntoIterator<Item = FileId>) -> Self {
        Self { other_files: files.into_iter().collect(), ..self }
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

    fn keep_space(&mut self, space: &Space) -> KeptSpace {
        match self.spaces.iter().position(|known| known.is(space)) {
            Some(at) => KeptSpace::Known(SpaceToken(at as u64)),
            None => {
                self.spaces.push(space.clone());
                KeptSpace::New(SpaceToken(self.spaces.len() as u64 - 1))
            }
        }
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

    fn space(&mut self, token: SpaceToken) -> Option<Space> {
        self.restored_spaces.get(&token).cloned()
    }

    fn add_space(&mut self, token: SpaceToken, space: &Space) {
        self.restored_spaces.insert(token, space.clone());
    }

    fn is_file_of_another_device(&self, file: FileId) -> bool {
        self.other_files.contains(&file)
    }
}
