//! Restoring a registered device from its saved state, which may come from anybody.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::descriptors::FindDescriptors;
use super::device::{DEVICE, DeviceState, FileState, Images, state_of};
use super::image::Header;
use super::{Saved, mappings, rings};
use crate::device::Device;
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file_state::FileShared;
use crate::ids::{FileId, NUMBER_LIMIT};
use crate::irq::{FdToken, IrqState};
use crate::policy::{OpenPolicy, Retained};
use crate::registered::{Registered, Transition};
use crate::set::Phase;
use crate::sync::atomic::Ordering;
use crate::sync::lock;

impl Registered {
    pub(super) fn restore(
        self: &Arc<Self>,
        saved: &Saved,
        images: Images<'_>,
        descriptors: &mut dyn FindDescriptors,
    ) -> Result<Vec<Arc<FileShared>>> {
        let mut read = || {
            let mut state = saved.read::<DeviceState>(DEVICE)?;
            if let Some(image) = images.core {
                self.merge_core_image(&mut state, image)?;
            }
            self.restore_state(state, images.own, descriptors)
        };
        read().map_err(|error| self.cannot("restore", error))
    }

    /// Puts what the core's image says into the text that it goes with.
    fn merge_core_image(&self, state: &mut DeviceState, image: &[u8]) -> Result<()> {
        let (header, rest) = Header::read(image)?;
        let refuse = |what: String| Err(Error::new(Errno::INVAL, what));
        if header.device != state.identity.id {
            let (own, other) = (state.identity.id, header.device);
            return refuse(format!("the core's image is of {other}, the text of {own}"));
        }
        if header.setup != state.setup {
            let (own, other) = (state.setup, header.setup);
            return refuse(format!("the core's image is of set-up {other}, the text of {own}"));
        }
        let vectors = self.context.irqs().flat_len();
        let (vectors, rings) = rest.split_at(vectors.min(rest.len()));
        self.context.irqs().merge_flat(&mut state.interrupts, vectors)?;
        state.rings = rings::read_flat(self.context.work(), rings)?;
        state.failed = header.failed;
        Ok(())
    }

    fn restore_state(
        self: &Arc<Self>,
        state: DeviceState,
        image: Option<&[u8]>,
        descriptors: &mut dyn FindDescriptors,
    ) -> Result<Vec<Arc<FileShared>>> {
        let DeviceState {
            identity: _,
            setup,
            failed,
            files,
            interrupts,
            rings,
            attachments,
            memory,
            device,
        } = state;
        let ids: Vec<FileId> = files.iter().map(|file| file.id).collect();
        self.check_files(&files)?;
        check_eventfds(&interrupts, &ids)?;
        rings::check(self.context.work(), &rings)?;
        let opening = self.set.try_begin(Phase::Opening).map_err(|phase| self.set_is(phase))?;
        self.must_be_unused(&opening)?;
        let files: Vec<_> = files.into_iter().map(|file| Arc::new(file.file())).collect();
        // To be put back if the state is refused. There are no descriptors: it has no file.
        let interrupts_before = self.context.irqs().save(|_, _| FdToken(u64::MAX));

        let memory = memory.map(|token| descriptors.find(token)).transpose()?;
        let (openings, mut memory_before) = (self.context.openings(), None);
        if let Some(file) = files.first() {
            memory_before = openings.begin_restored(&file.owner, memory)?;
        } else if memory.is_some() {
            return Err(Error::new(Errno::INVAL, "memory of a device that is not open"));
        }
        if let Err(error) = self.reopen(&opening, &files) {
            openings.put_back(memory_before);
            return Err(error);
        }
        let own_space = self.context.own_space();
        let mut spaces = None;
        let restore = |own: &mut dyn Device| {
            let restored = mappings::restore_all(&attachments, &own_space, &ids, descriptors)?;
            self.context.attachment().attach(&restored.attached);
            spaces = Some(restored);
            self.context.irqs().restore(&interrupts, |token| descriptors.find(token))?;
            // Last, and it finds the vectors' levels and masks as they are to be: it signals
            // nothing.
            restore_own(own, failed, device.as_ref(), image)?;
            // A failed device is rung by nobody.
            rings::restore(self.context.work(), if failed { &[] } else { &rings });
            Ok(())
        };
        // Of a device that is not open no work starts.
        let restored =
            if files.is_empty() { self.call(restore) } else { self.while_quiesced(restore) };
        if let Err(error) = restored {
            self.context.attach_own_space();
            if let Some(spaces) = spaces {
                spaces.undo();
            }
            // Cannot fail: it is what the vectors were.
            let _ = self.context.irqs().restore(&interrupts_before, |_| Err(no_descriptor()));
            if !files.is_empty() {
                self.close_again(&opening, &files);
                openings.put_back(memory_before);
            }
            return Err(error);
        }
        if let Some(before) = memory_before {
            before.end();
        }
        if failed {
            self.fail("it was, when it was saved");
        }
        if let Some(spaces) = spaces {
            spaces.publish(descriptors);
            for (left_by, space) in spaces.left {
                if let Some(file) = files.iter().find(|file| file.id == left_by) {
                    file.has_left(space);
                }
            }
        }
        self.setup.store(setup, Ordering::Release);
        *lock(&self.retained) =
            files.first().map_or(Retained::Unknown, |file| Retained::User(file.owner.clone()));
        self.enter_files(&opening, &files);
        Ok(files)
    }

    /// Whether the device could have these files: `EINVAL`.
    fn check_files(&self, files: &[FileState]) -> Result<()> {
        let mut ids = BTreeSet::new();
        if let Some(file) =
            files.iter().find(|file| file.id.0 >= NUMBER_LIMIT || !ids.insert(file.id))
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

    pub(super) fn must_be_unused(&self, opening: &Transition<'_>) -> Result<()> {
        let mut guard = opening.lock();
        match guard.find(self) {
            Some(member) if member.open_pauses > 0 => Err(self.opens_are_paused()),
            Some(member) if !member.leaving => match member.owner() {
                None => Ok(()),
                Some(owner) => {
                    let what = format!("in use by {owner}");
                    Err(Error::new(Errno::BUSY, what))
                }
            },
            _ => Err(self.is_gone()),
        }
    }

    /// Opens the device for files that are to be restored, without a reset.
    fn reopen(self: &Arc<Self>, opening: &Transition<'_>, files: &[Arc<FileShared>]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        self.call(|device| device.open_device())?;
        let openings = self.context.openings();
        files.iter().for_each(|file| file.enter_opening(openings.memory()));
        opening.lock().device_opened();
        for (at, file) in files.iter().enumerate() {
            if let Err(error) = self.call(|device| device.open(file.id, &file.owner)) {
                self.close_again(opening, &files[..at]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Closes the device again after a refused restore. `opened` are the files for which `open`
    /// has succeeded.
    fn close_again(self: &Arc<Self>, opening: &Transition<'_>, opened: &[Arc<FileShared>]) {
        for file in opened {
            // A panic has been dealt with.
            let _ = self.call(|device| {
                device.release(file.id);
                Ok(())
            });
        }
        let stop = self.stop_for_close();
        let _ = self.call_stopped(|device| {
            device.close_device();
            Ok(())
        });
        if let Some(stop) = stop {
            stop.leave_closed();
        }
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
            self.environment.reserve_file(file.id);
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
}

/// Eventfds must be of the device's files.
fn check_eventfds(interrupts: &IrqState, files: &[FileId]) -> Result<()> {
    let vectors = interrupts.indices.iter().flat_map(|vectors| vectors.values());
    let mut eventfds = vectors.flat_map(|vector| vector.trigger.iter().chain(&vector.unmask));
    match eventfds.find(|eventfd| !files.contains(&eventfd.file)) {
        Some(eventfd) => {
            let what = format!("an eventfd of {}, which is not there", eventfd.file);
            Err(Error::new(Errno::INVAL, what))
        }
        None => Ok(()),
    }
}

pub(super) fn no_descriptor() -> Error {
    Error::new(Errno::INVAL, "a descriptor where there is none")
}

/// Restores the device's own state, from the image if there is one.
pub(super) fn restore_own(
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
