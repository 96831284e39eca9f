//! Saving and restoring a registered device: the core's part (error state, files) and, inside it,
//! the device's own state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Format, Persistence, SaveState, Saved};
use crate::device::{Device, Why};
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file::{File, FileShared};
use crate::ids::{FileId, Owner};
use crate::registered::Registered;
use crate::registry::{DeviceRef, OpenPolicy};
use crate::set::{Phase, Transition};
use crate::stop::Stop;

const DEVICE: Format = Format { kind: "device", version: 1 };

/// Numbers of files from here on are refused in a restore: the sequence must not run out.
const FILE_LIMIT: u64 = 1 << 63;

/// The state of a registered device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceState {
    /// The device's name when it was saved, for people: a restore does not look at it.
    name: String,
    failed: bool,
    files: Vec<FileState>,
    /// `None`: the device is stateless, or in the error state, which nobody can trust.
    device: Option<Saved>,
}

/// The state of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileState {
    id: FileId,
    owner: Owner,
    /// When it was opened: nanoseconds since the epoch.
    since: u64,
}

impl FileState {
    fn of(file: &FileShared) -> Self {
        let status = file.status();
        let since = status.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { id: status.id, owner: status.owner, since: since.as_nanos() as u64 }
    }

    fn file(self) -> FileShared {
        let since = SystemTime::UNIX_EPOCH + Duration::from_nanos(self.since);
        FileShared::restored(self.id, self.owner, since)
    }
}

impl DeviceRef {
    /// Saves the device: its error state, its files with their numbers and owners, and its own
    /// state. Nobody may use its files meanwhile. Waits for a callback of the device, and while
    /// its set is being opened, closed or reset; not to be called from a callback or an observer.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the device cannot be saved; the message says why. `EBUSY`: the set does not
    /// become idle within two seconds. `ENODEV`: the device has been unregistered. `EIO`: it
    /// panicked.
    pub fn save(&self) -> Result<Saved> {
        self.registered.save()
    }

    /// Restores a device that has no files. Returns the files that it had when it was saved, open,
    /// with their numbers. It is opened for them (`open_device`, `open`), and then its own state
    /// is restored, from `image` if there is one: the newer of the two forms.
    ///
    /// The state may come from anybody: everything is checked. A refused restore leaves the device
    /// as an open and a close would. Blocks as [`DeviceRef::save`] does.
    ///
    /// # Errors
    /// `EINVAL`: damaged, of another kind or version, or not possible for this device; the message
    /// says what was found and what can be read. `EBUSY`: the device is in use. `EOPNOTSUPP`,
    /// `ENODEV` and `EIO` as for [`DeviceRef::save`]; what `open_device` and `open` say.
    pub fn restore(&self, saved: &Saved, image: Option<&[u8]>) -> Result<Vec<File>> {
        let files = self.registered.restore(saved, image)?;
        Ok(files.into_iter().map(|file| File::new(self.clone(), file)).collect())
    }

    /// The size of the device's image in bytes, which never changes; 0 for a stateless device.
    /// Takes the device lock.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the device cannot be saved. `ENODEV`, `EIO` as for [`DeviceRef::save`].
    pub fn image_len(&self) -> Result<usize> {
        self.registered.call(|device| Ok(state_of(device)?.map_or(0, |state| state.image_len())))
    }

    /// Writes the image of the device's own state, without allocating; `image` has
    /// [`DeviceRef::image_len`] bytes. Takes the device lock.
    ///
    /// # Errors
    /// `EINVAL`: `image` has another size. `EOPNOTSUPP`, `ENODEV`, `EIO` as for
    /// [`DeviceRef::save`].
    pub fn save_image(&self, image: &mut [u8]) -> Result<()> {
        self.registered.call(|device| match state_of(device)? {
            Some(state) if state.image_len() == image.len() => {
                state.save_image(image);
                Ok(())
            }
            None if image.is_empty() => Ok(()),
            _ => Err(Error::new(Errno::INVAL, "the image has another size")),
        })
    }
}

/// The state of a device; `None` if it is stateless.
fn state_of(device: &mut dyn Device) -> Result<Option<&mut dyn SaveState>> {
    match device.persistence() {
        Persistence::Stateless => Ok(None),
        Persistence::Saved(state) => Ok(Some(state)),
        Persistence::Unsaved(why) => {
            Err(Error::new(Errno::OPNOTSUPP, format!("it cannot be saved: {why}")))
        }
    }
}

impl Registered {
    /// Calls the device while it has quiesced; it goes on afterwards.
    fn while_quiesced<R>(
        self: &Arc<Self>,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        if !self.works() {
            return self.call(call);
        }
        let _stop = Stop::quiesced(self, Why::Save)?;
        self.call_stopped(call)
    }

    fn save(self: &Arc<Self>) -> Result<Saved> {
        // Nobody opens or closes it meanwhile, so that the files match the device's state.
        let marked = self.set.try_begin(Phase::Saving).map_err(|phase| self.set_is(phase))?;
        let files = {
            let mut guard = marked.lock();
            let member = guard.find(self).ok_or_else(|| self.is_gone())?;
            member.files.values().map(|file| FileState::of(file)).collect()
        };
        let failed = self.is_in_error_state();
        let device = self.while_quiesced(|device| match state_of(device)? {
            Some(state) if !failed => state.save().map(Some),
            _ => Ok(None),
        });
        let device = device.map_err(|error| self.cannot("save", error))?;
        let state = DeviceState { name: self.name().to_owned(), failed, files, device };
        Saved::new(DEVICE, &state)
    }

    fn restore(
        self: &Arc<Self>,
        saved: &Saved,
        image: Option<&[u8]>,
    ) -> Result<Vec<Arc<FileShared>>> {
        let state = saved.read(DEVICE).map_err(|error| self.cannot("restore", error))?;
        let DeviceState { name: _, failed, files, device } = state;
        self.check_files(&files).map_err(|error| self.cannot("restore", error))?;
        let opening = self.set.try_begin(Phase::Opening).map_err(|phase| self.set_is(phase))?;
        self.must_be_unused(&opening)?;
        let files: Vec<_> = files.into_iter().map(|file| Arc::new(file.file())).collect();

        self.reopen(&opening, &files)?;
        let restore = |own: &mut dyn Device| restore_own(own, failed, device.as_ref(), image);
        // Of a device that is not open no work starts.
        let restored =
            if files.is_empty() { self.call(restore) } else { self.while_quiesced(restore) };
        if let Err(error) = restored {
            self.close_again(&opening, &files);
            return Err(self.cannot("restore", error));
        }
        if failed {
            self.fail("it was, when it was saved");
        }
        self.enter_files(&opening, &files);
        Ok(files)
    }

    /// Whether the device could have these files: `EINVAL`.
    fn check_files(&self, files: &[FileState]) -> Result<()> {
        let mut ids = BTreeSet::new();
        if let Some(file) =
            files.iter().find(|file| file.id.0 >= FILE_LIMIT || !ids.insert(file.id))
        {
            return Err(Error::new(Errno::INVAL, format!("{} twice, or out of range", file.id)));
        }
        let Some((first, others)) = files.split_first() else { return Ok(()) };
        let what = match self.open_policy {
            OpenPolicy::Single if !others.is_empty() => {
                format!("{} files, and it takes one at a time", files.len())
            }
            _ if others.iter().any(|file| file.owner != first.owner) => {
                "files of several owners".to_owned()
            }
            _ => return Ok(()),
        };
        Err(Error::new(Errno::INVAL, what))
    }

    fn must_be_unused(&self, opening: &Transition<'_>) -> Result<()> {
        let mut guard = opening.lock();
        match guard.find(self) {
            Some(member) if !member.leaving => match member.owner() {
                None => Ok(()),
                Some(owner) => {
                    let what = format!("cannot restore {}: in use by {owner}", self.name());
                    Err(Error::new(Errno::BUSY, what))
                }
            },
            _ => Err(self.is_gone()),
        }
    }

    /// Opens the device for files that are to be restored, without a reset.
    fn reopen(&self, opening: &Transition<'_>, files: &[Arc<FileShared>]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let openings = self.context.openings();
        openings.begin(&files[0].owner, self.last_memory());
        if let Err(error) = self.call(|device| device.open_device()) {
            openings.end(self.last_memory());
            return Err(error);
        }
        files.iter().for_each(|file| file.enter_opening(openings.memory()));
        opening.lock().device_opened();
        for (at, file) in files.iter().enumerate() {
            if let Err(error) = self.call(|device| device.open(file.id, &file.owner)) {
                self.close_again_after(opening, &files[..at]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Closes the device again after a refused restore.
    fn close_again(&self, opening: &Transition<'_>, files: &[Arc<FileShared>]) {
        if !files.is_empty() {
            self.close_again_after(opening, files);
        }
    }

    fn close_again_after(&self, opening: &Transition<'_>, opened: &[Arc<FileShared>]) {
        for file in opened {
            // A panic has been dealt with.
            let _ = self.call(|device| {
                device.release(file.id);
                Ok(())
            });
        }
        let _ = self.call(|device| {
            device.close_device();
            Ok(())
        });
        self.context.openings().end(self.last_memory());
        opening.lock().device_closed();
    }

    /// Makes restored files the device's.
    fn enter_files(&self, opening: &Transition<'_>, files: &[Arc<FileShared>]) {
        tracing::debug!(device = self.name(), files = files.len(), "restored");
        if !files.is_empty() {
            self.emit(Event::DeviceOpened);
        }
        for (count, file) in (1..).zip(files) {
            self.registry.reserve_file(file.id);
            opening.lock().member(self).files.insert(file.id, file.clone());
            // Nobody has seen the file before: nobody can have revoked it.
            file.opened();
            self.emit(|subject| Event::FileOpened {
                subject,
                file: file.id,
                owner: &file.owner,
                count,
            });
        }
    }

    #[cold]
    fn cannot(&self, what: &str, error: Error) -> Error {
        let why = error.message();
        Error::new(error.errno(), format!("cannot {what} {}: {why}", self.name())).because(error)
    }
}

/// Restores the device's own state, from the image if there is one.
fn restore_own(
    device: &mut dyn Device,
    failed: bool,
    saved: Option<&Saved>,
    image: Option<&[u8]>,
) -> Result<()> {
    let unexpected = |what: &str| Err(Error::new(Errno::INVAL, what.to_owned()));
    match (state_of(device)?, saved, image) {
        // The state of a failed device is not saved: a reset makes a new one.
        (_, None, _) if failed => Ok(()),
        (Some(state), Some(_), Some(image)) => state.restore_image(image),
        (Some(state), Some(saved), None) => state.restore(saved),
        (Some(_), None, _) => unexpected("the device's own state is missing"),
        (None, Some(_), _) => unexpected("a state of a device that has none"),
        (None, None, Some(image)) if !image.is_empty() => {
            unexpected("an image of a device that has none")
        }
        (None, None, _) => Ok(()),
    }
}
