//! The saved form of address spaces and their mappings.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::descriptors::{FindDescriptors, KeepDescriptors, KeptSpace, SpaceToken};
use crate::dma::{Backing, MapOwner, MapRequest, Perm, Space};
use crate::error::{Errno, Error, Result};
use crate::ids::FileId;
use crate::irq::FdToken;

/// The address spaces that a device's state names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attachments {
    /// The space that the device is attached to.
    attached: SpaceToken,
    /// It is the space that the device was registered with.
    own: bool,
    /// For files that have mappings in spaces that the device has left: those spaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    left: BTreeMap<FileId, Vec<SpaceToken>>,
    /// The mappings of those spaces that no device saved before has.
    spaces: BTreeMap<SpaceToken, Vec<MappingState>>,
}

/// Spaces of a device that are restored.
pub(super) struct Restored {
    pub(super) attached: Space,
    /// Spaces that files have mappings in, and that the device has left.
    pub(super) left: Vec<(FileId, Space)>,
    /// Spaces that were restored with this device.
    new: Vec<(SpaceToken, Space)>,
}

impl Restored {
    /// Removes all mappings again.
    pub(super) fn undo(&self) {
        // No access is in flight: nobody has seen the mappings.
        self.new.iter().for_each(|(_, space)| _ = space.unmap_all(Duration::ZERO));
    }

    /// Makes the spaces known to the states of other devices.
    pub(super) fn publish(&self, find: &mut dyn FindDescriptors) {
        self.new.iter().for_each(|(token, space)| find.add_space(*token, space));
    }
}

/// Saves the spaces of a device: the one that it is attached to, its own, and those that its files
/// have left.
pub(super) fn save_all(
    attached: &Space,
    own: &Space,
    left: Vec<(FileId, Vec<Space>)>,
    keep: &mut dyn KeepDescriptors,
) -> Result<Attachments> {
    let mut spaces = BTreeMap::new();
    let mut name = |space: &Space| match keep.keep_space(space) {
        KeptSpace::Known(token) => Ok::<_, Error>(token),
        KeptSpace::New(token) => {
            spaces.insert(token, save(space, keep)?);
            Ok(token)
        }
    };
    let token = name(attached)?;
    let mut left_by = BTreeMap::new();
    for (file, left) in left {
        let tokens = left.iter().map(&mut name).collect::<Result<Vec<_>>>()?;
        if !tokens.is_empty() {
            left_by.insert(file, tokens);
        }
    }
    Ok(Attachments { attached: token, own: attached.is(own), left: left_by, spaces })
}

/// Restores the spaces of a device whose own space is `own`. After an error nothing is left of it.
///
/// # Errors
/// `EBUSY`: its own space has mappings. `EINVAL`: a mapping that cannot be, or of a file that is not
/// there; a space that is not restored; errors of `find` and of [`Space::map`].
pub(super) fn restore_all(
    saved: &Attachments,
    own: &Space,
    files: &[FileId],
    find: &mut dyn FindDescriptors,
) -> Result<Restored> {
    let Attachments { attached, own: is_own, left, spaces } = saved;
    let mut restored = Restored { attached: own.clone(), left: Vec::new(), new: Vec::new() };
    let filled = spaces.iter().try_for_each(|(token, mappings)| {
        let new = || Space::with_files(own.accepted_files());
        let space = if *is_own && token == attached { own.clone() } else { new() };
        restore(&space, mappings, files, find)?;
        restored.new.push((*token, space));
        Ok(())
    });
    let mut found = |token: SpaceToken| {
        let mut new = restored.new.iter();
        let space = match new.find(|(known, _)| *known == token) {
            Some((_, space)) => Some(space.clone()),
            None => find.space(token),
        };
        space.ok_or_else(|| {
            let what = format!("address space {}, which has not been restored", token.0);
            Error::new(Errno::INVAL, what)
        })
    };
    let named = filled.and_then(|()| {
        let attached = found(*attached)?;
        let mut left_by = Vec::new();
        for (file, tokens) in left {
            if !files.contains(file) {
                let what = format!("a space that {file} has left, which is not there");
                return Err(Error::new(Errno::INVAL, what));
            }
            for token in tokens {
                left_by.push((*file, found(*token)?));
            }
        }
        Ok((attached, left_by))
    });
    match named {
        Ok((attached, left)) => {
            (restored.attached, restored.left) = (attached, left);
            Ok(restored)
        }
        Err(error) => {
            restored.undo();
            Err(error)
        }
    }
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MappingState {
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
///
/// # Errors
/// `ENOMEM`: there is no memory for a list of the mappings; what `keep` says.
fn save(space: &Space, keep: &mut dyn KeepDescriptors) -> Result<Vec<MappingState>> {
    let snapshot = space.try_snapshot()?;
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
    let mut mappings = Vec::new();
    let none = |_| Error::new(Errno::NOMEM, "no memory for a list of the mappings");
    mappings.try_reserve_exact(snapshot.mappings.len()).map_err(none)?;
    mappings.extend(snapshot.mappings.iter().map(mapping));
    Ok(mappings)
}

/// Restores mappings to a space without any. After an error it has none again.
///
/// # Errors
/// `EBUSY`: the space has mappings. `EINVAL`: a mapping that cannot be, or of a file that is not
/// among `files`. What the descriptors' owner and [`Space::map`] return.
fn restore(
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
    let is_there = |owner: FileId| files.contains(&owner) || find.is_file_of_another_device(owner);
    if owner.is_some_and(|owner| !is_there(owner)) {
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
