//! The saved form of the mappings in a device's address space.

use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::descriptors::{FindDescriptors, KeepDescriptors};
use crate::dma::{Backing, MapOwner, MapRequest, Perm, Space};
use crate::error::{Errno, Error, Result};
use crate::ids::FileId;
use crate::irq::FdToken;

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MappingState {
    /// First and last IO virtual address.
    first: u64,
    last: u64,
    read: bool,
    write: bool,
    /// The file that made it; `None`: it stays until it is unmapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<FileId>,
    /// `None`: it is reached by message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<MappedFile>,
}

/// What is behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MappedFile {
    fd: FdToken,
    /// Offset of the first byte, bytes.
    offset: u64,
}

/// Saves the mappings of a space. Each descriptor is kept once.
pub(super) fn save(space: &Space, keep: &mut dyn KeepDescriptors) -> Result<Vec<MappingState>> {
    let snapshot = space.snapshot();
    let descriptors = snapshot.descriptors.iter();
    let tokens = descriptors.map(|fd| keep.keep(fd.as_fd())).collect::<Result<Vec<_>>>()?;
    let mapping = |info: &crate::dma::MappingInfo| MappingState {
        first: info.iova,
        last: info.last,
        read: info.perm.contains(Perm::READ),
        write: info.perm.contains(Perm::WRITE),
        owner: info.owner.map(|MapOwner(file)| FileId(file)),
        file: info.file.map(|(at, offset)| MappedFile { fd: tokens[at], offset }),
    };
    Ok(snapshot.mappings.iter().map(mapping).collect())
}

/// Restores mappings to a space without any. After an error it has none again.
///
/// # Errors
/// `EBUSY`: the space has mappings. `EINVAL`: a mapping that cannot be, or of a file that is not
/// among `files`. What the descriptors' owner and [`Space::map`] return.
pub(super) fn restore(
    space: &Space,
    mappings: &[MappingState],
    files: &[FileId],
    find: &mut dyn FindDescriptors,
) -> Result<()> {
    if !space.is_empty() {
        return Err(Error::new(Errno::BUSY, "its address space has mappings"));
    }
    mappings.iter().try_for_each(|mapping| map(space, mapping, files, find)).inspect_err(|_| {
        // No access is in flight: nobody has seen the mappings.
        let _ = space.unmap_all(Duration::ZERO);
    })
}

fn map(
    space: &Space,
    mapping: &MappingState,
    files: &[FileId],
    find: &mut dyn FindDescriptors,
) -> Result<()> {
    let &MappingState { first, last, read, write, owner, ref file } = mapping;
    let refused = |what: &str| {
        Err(Error::new(Errno::INVAL, format!("the mapping {first:#x}-{last:#x} {what}")))
    };
    if owner.is_some_and(|owner| !files.contains(&owner)) {
        return refused("is of a file that is not there");
    }
    let size = last.checked_sub(first).and_then(|size| size.checked_add(1));
    let Some(size) = size else { return refused("has no size") };
    let backing = match file {
        Some(MappedFile { fd, offset }) => Backing::File { fd: find.find(*fd)?, offset: *offset },
        None => Backing::Peer(find.peer(owner)?),
    };
    let mut perm = Perm::empty();
    perm.set(Perm::READ, read);
    perm.set(Perm::WRITE, write);
    space.map(owner.map(MapOwner::from), MapRequest { iova: first, size, perm, backing })
}
