//! Attaching a device to another address space, and joining that of another device of the same owner.

use crate::dma::{MapOwner, Space};
use crate::error::{Errno, Error, Result};
use crate::file::File;
use crate::ids::{DeviceId, FileId, Owner};
use crate::registered::{Member, Registered};

impl File {
    /// Attaches the device to another address space, which other devices may be attached to. An
    /// access of the device finds one or the other; one that is in flight goes on where it began.
    /// What the device's files map from now on is in the new space; what a file has mapped in
    /// the old one stays there until the file is gone. After its last close the device is attached
    /// to an empty space of its own.
    ///
    /// Takes the set lock. Blocks until the copies of the device that are under way have ended, and not
    /// for a client.
    ///
    /// # Errors
    /// `ENODEV`: the file was revoked.
    pub fn attach_space(&self, space: &Space) -> Result<()> {
        self.enter_space(space, |_, _| Ok(()))
    }

    /// Attaches the device to the space of another device, which the same owner has open by `file`.
    /// From then on all files of both devices map into one space; what a file has mapped goes with
    /// it. The space lives on for this device when the other one is closed. After its last close
    /// the device has an empty space of its own.
    ///
    /// Succeeds without effect if the device is attached to that space already. Takes the locks of
    /// both sets, one after the other.
    ///
    /// # Errors
    /// `ENOENT`: no device with this number is registered, or it has no such file; `EACCES`: the file
    /// is another owner's; `EBUSY`: a file of this device has mappings in the space that would be
    /// left; `ENODEV`: this file was revoked.
    pub fn join_space(&self, device: DeviceId, file: FileId) -> Result<()> {
        let (registered, shared) = self.parts();
        let gone = || Error::new(Errno::NODEV, format!("{} was revoked", shared.id));
        let spaces = registered.environment.spaces().ok_or_else(gone)?;
        let space = spaces.find_space(device, file, &shared.owner)?;
        self.enter_space(&space, |member, left| {
            if member.files.keys().any(|file| left.has_mappings_of(MapOwner::from(*file))) {
                let what =
                    format!("{} has mappings in the space it would leave", registered.name());
                return Err(Error::new(Errno::BUSY, what));
            }
            Ok(())
        })
    }

    /// Attaches the device to a space, if the file is open and the device may leave its own.
    fn enter_space(
        &self,
        space: &Space,
        may_leave: impl FnOnce(&Member, &Space) -> Result<()>,
    ) -> Result<()> {
        let (registered, shared) = self.parts();
        let gone = || Error::new(Errno::NODEV, format!("{} was revoked", shared.id));
        // With the set lock held, so that the last close of this device comes afterwards and
        // detaches it. Nothing below waits for a client.
        let mut guard = registered.set.lock();
        let member = guard.find(registered).ok_or_else(gone)?;
        if !shared.is_open() || !member.files.contains_key(&shared.id) {
            return Err(gone());
        }
        let left = registered.context.attached_space();
        if left.is(space) {
            return Ok(());
        }
        may_leave(member, &left)?;
        // Another file has mapped, or is about to map, into the space that is left: that goes with that
        // file.
        member.files.values().for_each(|file| file.has_left(left.clone()));
        registered.context.attachment().attach(space);
        drop(guard);
        registered.set_up();
        Ok(())
    }
}

impl Registered {
    /// The space of the device, for an owner that has it open by this file.
    pub(crate) fn space_for(&self, file: FileId, owner: &Owner) -> Result<Space> {
        let none = || Error::new(Errno::NOENT, format!("{} has no {file}", self.name()));
        let mut guard = self.set.lock();
        let member = guard.find(self).ok_or_else(none)?;
        let found = member.files.get(&file).filter(|file| file.is_open()).ok_or_else(none)?;
        if found.owner != *owner {
            let what = format!("{file} of {} is not of {owner}", self.name());
            return Err(Error::new(Errno::ACCESS, what));
        }
        Ok(self.context.attached_space())
    }
}
