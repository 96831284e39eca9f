//! The saved state of a registered device: the core's part (error state, files, interrupts,
//! mappings) and, inside it, the device's own state.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::descriptors::{FindDescriptors, KeepDescriptors};
use super::mappings::{self, Attachments};
use super::rings::{self, RingState};
use super::{Format, Persistence, SaveState, Saved};
use crate::device::{Device, Why};
use crate::device_ref::DeviceRef;
use crate::error::{Errno, Error, Result};
use crate::file::File;
use crate::file_state::FileShared;
use crate::ids::{DeviceId, FileId, Owner, SetKey};
use crate::irq::{FdToken, IrqState};
use crate::registered::{Registered, Transition};
use crate::set::Phase;
use crate::stop::Stop;
use crate::sync::atomic::Ordering;

pub(super) const DEVICE: Format = Format { kind: "device", version: 2 };

/// The state of a registered device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceState {
    /// Who the device was when it was saved. A restore does not look at it, except to see that an
    /// image belongs to it.
    pub(super) identity: Identity,
    /// Counts the changes of what follows but the device's own state; see [`super::image`].
    pub(super) setup: u64,
    pub(super) failed: bool,
    pub(super) files: Vec<FileState>,
    pub(super) interrupts: IrqState,
    /// Doorbells that were ever rung.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rings: Vec<RingState>,
    pub(super) attachments: Attachments,
    /// The memory that an open device shares with its clients, if there is any yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<FdToken>,
    /// `None`: the device is stateless, or in the error state, in which its state cannot be trusted.
    pub(super) device: Option<Saved>,
}

/// Who a device is. Whoever restores a process registers the device again as this
/// ([`DeviceSpec::id`](crate::DeviceSpec::id), [`SetId::restored`](crate::SetId::restored)), and then
/// restores its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its number.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// Its set: devices of one set have the same key.
    pub set: SetKey,
}

impl Identity {
    /// Reads who a saved device is.
    ///
    /// # Errors
    /// `EINVAL`: the state is damaged, or of another kind or version.
    pub fn of(saved: &Saved) -> Result<Self> {
        saved.read::<DeviceState>(DEVICE).map(|state| state.identity)
    }
}

/// The images of a device that go with its text, and are newer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Images<'a> {
    /// The core's ([`DeviceRef::save_core_image`]).
    pub core: Option<&'a [u8]>,
    /// The device's own ([`DeviceRef::save_image`]).
    pub own: Option<&'a [u8]>,
}

/// The state of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileState {
    pub(super) id: FileId,
    pub(super) owner: Owner,
    /// When it was opened: nanoseconds since the epoch.
    since: u64,
}

impl FileState {
    fn of(file: &FileShared) -> Self {
        let status = file.status();
        let since = status.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { id: status.id, owner: status.owner, since: since.as_nanos() as u64 }
    }

    pub(super) fn file(self) -> FileShared {
        let since = SystemTime::UNIX_EPOCH + Duration::from_nanos(self.since);
        FileShared::restored(self.id, self.owner, since)
    }
}

impl DeviceRef {
    /// Saves the device: its error state, its files with their numbers and owners, its interrupts
    /// and mappings, and its own state. `descriptors` keeps the eventfds and the files that are
    /// mapped. The device quiesces for that, and resumes; accesses of its files wait. Blocks while a
    /// callback of the device runs and while its set is being opened, closed or reset; not to be
    /// called from a callback or an observer.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the device cannot be saved; the message says why. `EBUSY`: the set does not
    /// become idle within two seconds. `ENODEV`: the device has been unregistered. `EIO`: it
    /// panicked. Errors of `descriptors`.
    pub fn save(&self, descriptors: &mut dyn KeepDescriptors) -> Result<Saved> {
        self.registered.save(descriptors)
    }

    /// Restores a device that has no files. Returns the files that it had when it was saved, open,
    /// with their numbers. The device is opened for them (`open_device`, `open`, no reset); interrupts
    /// and mappings are set up; then its own state is restored, from `image` if there is one, which is
    /// the newer form. Interrupts that were pending are signalled if they can be.
    ///
    /// The state may be hostile: everything is checked. A refused restore leaves the device as an open
    /// and a close would. Blocks as [`DeviceRef::save`] does.
    ///
    /// # Errors
    /// `EINVAL`: damaged, of another kind or version, or not possible for this device; the message
    /// says what was found and what can be read. `EBUSY`: the device is in use. `EOPNOTSUPP`,
    /// `ENODEV` and `EIO` as for [`DeviceRef::save`]; what `open_device`, `open` and `descriptors`
    /// return.
    pub fn restore(
        &self,
        saved: &Saved,
        image: Option<&[u8]>,
        descriptors: &mut dyn FindDescriptors,
    ) -> Result<Vec<File>> {
        self.restore_images(saved, Images { core: None, own: image }, descriptors)
    }

    /// As [`DeviceRef::restore`], with the core's image, too.
    ///
    /// # Errors
    /// As [`DeviceRef::restore`]. `EINVAL` also if the core's image is of another device, or was made
    /// after another set-up than the text: files, eventfds, mappings and attachments changed in
    /// between.
    pub fn restore_images(
        &self,
        saved: &Saved,
        images: Images<'_>,
        descriptors: &mut dyn FindDescriptors,
    ) -> Result<Vec<File>> {
        let files = self.registered.restore(saved, images, descriptors)?;
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
pub(super) fn state_of(device: &mut dyn Device) -> Result<Option<&mut dyn SaveState>> {
    match device.persistence() {
        Persistence::Stateless => Ok(None),
        Persistence::Saved(state) => Ok(Some(state)),
        Persistence::Unsaved(why) => {
            Err(Error::new(Errno::OPNOTSUPP, format!("it cannot be saved: {why}")))
        }
    }
}

impl Registered {
    /// Calls the device while it has quiesced; it resumes afterwards.
    pub(super) fn while_quiesced<R>(
        self: &Arc<Self>,
        call: impl FnOnce(&mut dyn Device) -> Result<R>,
    ) -> Result<R> {
        if !self.works() {
            return self.call(call);
        }
        let _stop = Stop::quiesced(self, Why::Save)?;
        self.call_stopped(call)
    }

    fn save(self: &Arc<Self>, descriptors: &mut dyn KeepDescriptors) -> Result<Saved> {
        let (_marked, files) = self.begin_save()?;
        let read = |device: &mut dyn Device| self.read_state(device, &files, descriptors);
        // Of a device that is not open no work is to be stopped, and none starts afterwards.
        let saved = if files.is_empty() { self.call(read) } else { self.while_quiesced(read) };
        saved.map_err(|error| self.cannot("save", error))
    }

    /// Saves the device and leaves it stopped.
    pub(super) fn save_and_stop(
        self: &Arc<Self>,
        descriptors: &mut dyn KeepDescriptors,
    ) -> Result<(Saved, Stop)> {
        let (_marked, files) = self.begin_save()?;
        let mut save = || {
            let stop = Stop::quiesced(self, Why::Save)?;
            let saved = self.call_stopped(|device| self.read_state(device, &files, descriptors))?;
            Ok((saved, stop))
        };
        save().map_err(|error| self.cannot("save", error))
    }

    /// Marks the set, so that no open or close changes the files before the state is read. Returns the
    /// files.
    pub(super) fn begin_save(&self) -> Result<(Transition<'_>, Vec<Arc<FileShared>>)> {
        let marked = self.set.try_begin(Phase::Saving).map_err(|phase| self.set_is(phase))?;
        let files = {
            let mut guard = marked.lock();
            let member = guard.find(self).ok_or_else(|| self.is_gone())?;
            member.files.values().cloned().collect()
        };
        Ok((marked, files))
    }

    fn read_state(
        &self,
        device: &mut dyn Device,
        files: &[Arc<FileShared>],
        descriptors: &mut dyn KeepDescriptors,
    ) -> Result<Saved> {
        let failed = self.is_in_error_state();
        let device = match state_of(device)? {
            Some(state) if !failed => Some(state.save()?),
            _ => None,
        };
        // After the device: it has quiesced, so that none of this changes any more.
        let setup = self.setup.load(Ordering::Acquire);
        let interrupts = self.save_interrupts(descriptors)?;
        let left = files.iter().map(|file| (file.id, file.left_spaces())).collect();
        let (attached, own) = (self.context.attached_space(), self.context.own_space());
        let attachments = mappings::save_all(&attached, &own, left, descriptors)?;
        let memory = self.context.openings().memory().filter(|_| !files.is_empty());
        let memory = memory.as_ref().and_then(|memory| memory.fd());
        let memory = memory.map(|fd| descriptors.keep(fd)).transpose()?;
        let (id, name, set) = (self.id(), self.name().to_owned(), self.set_key());
        let state = DeviceState {
            identity: Identity { id, name, set },
            setup,
            failed,
            files: files.iter().map(|file| FileState::of(file)).collect(),
            interrupts,
            rings: rings::save(self.context.work()),
            attachments,
            memory,
            device,
        };
        Saved::new(DEVICE, &state)
    }

    fn save_interrupts(&self, descriptors: &mut dyn KeepDescriptors) -> Result<IrqState> {
        let mut failed = None;
        let state = self.context.irqs().save(|_, fd| {
            descriptors.keep(fd).unwrap_or_else(|error| {
                failed.get_or_insert(error);
                FdToken(u64::MAX)
            })
        });
        failed.map_or(Ok(state), Err)
    }

    #[cold]
    pub(super) fn cannot(&self, what: &str, error: Error) -> Error {
        let why = error.message();
        Error::new(error.errno(), format!("cannot {what} {}: {why}", self.name())).because(error)
    }
}
