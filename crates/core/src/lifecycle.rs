//! Open, release, revoke and unregister: the lifecycle of files and devices.
//!
//! The set lock is held around first open and last close, and for every change of the count of
//! files; never around `open`, `release`, `request` or a wait.
//!
//! A file is `Opening` while `open` runs for it, then `Open`, then `Gone`. Whoever moves it
//! from `Open` to `Gone` owes the device its release: its holder, by dropping it, or the
//! core, by revoking it. A file revoked while `Opening` is released by its opener.

use std::sync::Arc;
use std::time::Duration;

use crate::device::{DeviceFlags, ResetCause, Token};
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file::FileShared;
use crate::ids::{FileId, Owner};
use crate::irq::IrqIndex;
use crate::patience::Patience;
use crate::registered::Registered;
use crate::registry::OpenPolicy;
use crate::set::SetGuard;

/// `VFIO_PCI_REQ_IRQ_INDEX`.
const PCI_REQUEST_IRQ: IrqIndex = IrqIndex(4);

impl Registered {
    /// Opens the device: counted and opened under the set lock, then `open` without it.
    pub(crate) fn open_file(&self, owner: Owner, token: Option<Token>) -> Result<Arc<FileShared>> {
        let file = Arc::new(FileShared::new(self.registry.next_file(), owner));
        self.count_in(&mut self.set.lock(), &file, token)?;

        if let Err(error) = self.call(|device| device.open(file.id, &file.owner)) {
            tracing::debug!(device = self.name(), file = file.id.0, %error, "open failed");
            self.count_out(&file, false);
            return Err(error);
        }

        let mut guard = self.set.lock();
        if file.opened() {
            let count = guard.member(self).count();
            tracing::debug!(device = self.name(), file = file.id.0, count, "opened");
            self.emit(|subject| Event::FileOpened {
                subject,
                file: file.id,
                owner: &file.owner,
                count,
            });
            return Ok(file);
        }
        drop(guard);
        self.call_release(&file);
        self.count_out(&file, false);
        Err(self.is_leaving())
    }

    /// Checks that one more file is allowed, counts it, and opens the device for the first.
    fn count_in(
        &self,
        guard: &mut SetGuard<'_>,
        file: &Arc<FileShared>,
        token: Option<Token>,
    ) -> Result<()> {
        let Some(member) = guard.find(self) else { return Err(self.is_leaving()) };
        if member.leaving {
            return Err(self.is_leaving());
        }
        let first = match member.owner() {
            None => true,
            Some(_) if self.open_policy == OpenPolicy::Single => {
                let what = format!("{} is open, and takes one file at a time", self.name());
                return Err(Error::new(Errno::INVAL, what));
            }
            Some(owner) if *owner != file.owner => {
                let what = format!("{} is in use by {owner}", self.name());
                return Err(Error::new(Errno::BUSY, what));
            }
            Some(_) if self.is_in_error_state() => return Err(self.has_failed()),
            Some(_) => false,
        };
        self.admit_opener(token)?;
        guard.member(self).files.insert(file.id, file.clone());
        if !first {
            return Ok(());
        }
        self.first_open(guard).inspect_err(|error| {
            tracing::debug!(device = self.name(), %error, "first open failed");
            guard.member(self).files.remove(&file.id);
            if self.is_in_error_state() {
                guard.needs_reset(self);
            }
        })
    }

    /// Asks the device whether it may be opened with this token.
    fn admit_opener(&self, token: Option<Token>) -> Result<()> {
        let presented = token.or(self.token);
        self.call(|device| match (device.as_admission(), presented) {
            (Some(power), presented) => power.admit(presented),
            (None, None) => Ok(()),
            (None, Some(_)) => {
                let what = format!("{} has no use for a token", self.name());
                Err(Error::new(Errno::INVAL, what))
            }
        })
    }

    /// Releases a file that its holder lets go; nothing if it was taken away before.
    pub(crate) fn release_file(&self, file: &FileShared) {
        if file.take() {
            self.release_taken(file);
        }
    }

    fn release_taken(&self, file: &FileShared) {
        self.call_release(file);
        self.count_out(file, true);
    }

    fn call_release(&self, file: &FileShared) {
        let released = self.call(|device| {
            device.release(file.id);
            Ok(())
        });
        if let Err(error) = released {
            tracing::debug!(device = self.name(), file = file.id.0, %error, "release failed");
        }
    }

    /// Takes from the device what the file gave it, and the file out of the count; closes the
    /// device after the last.
    fn count_out(&self, file: &FileShared, announced: bool) {
        self.drop_resources(file);
        let mut guard = self.set.lock();
        let Some(member) = guard.find(self) else { return };
        if member.files.remove(&file.id).is_none() {
            return;
        }
        let count = member.count();
        let leaving = member.leaving;
        if announced {
            tracing::debug!(device = self.name(), file = file.id.0, count, "released");
            self.emit(|subject| Event::FileReleased { subject, file: file.id, count });
        }
        if count > 0 {
            return;
        }
        self.last_close(&mut guard);
        if leaving {
            self.drained.notify_all();
        }
    }

    /// Drops the DMA windows and eventfds that a file gave the device.
    pub(crate) fn drop_resources(&self, file: &FileShared) {
        file.drop_doorbells();
        self.context.irqs().drop_file(file.id);
        self.context.dma().drop_owner(file.id.into());
    }

    /// Waits for the last file to be gone, asking for it again and again, and takes away what
    /// is left when time is up. No file can be opened from now on.
    pub(crate) fn drain(&self, deadline: Option<Duration>) {
        let mut patience = Patience::new(deadline);
        let mut guard = self.set.lock();
        guard.member(self).leaving = true;
        tracing::debug!(device = self.name(), "unregistering");
        while !guard.member(self).files.is_empty() {
            let Some(n) = patience.ask() else {
                drop(guard);
                return self.revoke_all();
            };
            drop(guard);
            self.request(n);
            guard = self.set.lock();
            while !guard.member(self).files.is_empty() {
                let Some(time) = patience.wait() else { break };
                guard.wait(&self.drained, time);
            }
        }
    }

    fn request(&self, n: u32) {
        // Told first: what the users do about it is told by others.
        self.emit(|subject| Event::Requested { subject, n });
        let told = self.call(|device| Ok(device.as_request().map(|power| power.request(n))));
        let told = match told {
            Ok(Some(true)) => true,
            _ if self.description.flags.contains(DeviceFlags::PCI) => {
                self.context.irqs().trigger(PCI_REQUEST_IRQ, 0).unwrap_or(false)
            }
            _ => false,
        };
        // Rarer and rarer, as the intervals grow.
        tracing::debug!(device = self.name(), n, told, "asked the users to let go");
    }

    /// Takes one file away, by its number.
    pub(crate) fn revoke(&self, id: FileId) -> Result<()> {
        let gone = || Error::new(Errno::NOENT, format!("{} has no {id}", self.name()));
        let file = {
            let mut guard = self.set.lock();
            let member = guard.find(self).ok_or_else(gone)?;
            member.files.get(&id).cloned().ok_or_else(gone)?
        };
        self.revoke_file(&file);
        Ok(())
    }

    fn revoke_file(&self, file: &FileShared) {
        if !file.revoke() {
            return;
        }
        tracing::debug!(device = self.name(), file = file.id.0, "revoked");
        self.emit(|subject| Event::Revoked { subject, file: file.id });
        self.release_taken(file);
    }

    /// Refuses every open from now on, unless the device has files.
    pub(crate) fn bar_opens_if_unused(&self) -> Result<()> {
        let mut guard = self.set.lock();
        let Some(member) = guard.find(self) else { return Ok(()) };
        if let Some(owner) = member.owner() {
            return Err(Error::new(Errno::BUSY, format!("{} is in use by {owner}", self.name())));
        }
        guard.member(self).leaving = true;
        Ok(())
    }

    /// Takes every file away, and waits until those are gone that others are releasing.
    fn revoke_all(&self) {
        let files: Vec<_> = self.set.lock().member(self).files.values().cloned().collect();
        for file in files {
            self.revoke_file(&file);
        }
        let mut guard = self.set.lock();
        while !guard.member(self).files.is_empty() {
            guard.wait(&self.drained, Duration::MAX);
        }
    }

    /// Leaves the set and lets the device itself go. No files are left.
    pub(crate) fn leave(&self) {
        self.set.lock().leave(self);
        let model = crate::sync::lock(&self.model).take();
        if let Err(panic) = crate::contain::contain(|| drop(model)) {
            tracing::error!(device = self.name(), error = %panic, "dropping the device failed");
        }
    }

    /// DEVICE_RESET by the holder of a file.
    pub(crate) fn reset_for(&self, file: &FileShared) -> Result<()> {
        if !self.description.flags.contains(DeviceFlags::RESET) {
            let what = format!("{} has no reset", self.name());
            return Err(Error::new(Errno::INVAL, what));
        }
        self.reset(ResetCause::Client, Some(file))
    }

    #[cold]
    fn is_leaving(&self) -> Error {
        Error::new(Errno::NODEV, format!("{} is being unregistered", self.name()))
    }
}
