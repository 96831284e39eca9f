//! A device that stays stopped after it was saved, for whoever goes on with it elsewhere.

use std::fmt;
use std::marker::PhantomData;

use super::Saved;
use super::descriptors::KeepDescriptors;
use crate::device_ref::DeviceRef;
use crate::error::Result;
use crate::opening::Last;
use crate::stop::Stop;

/// A device that was saved and is stopped ([`DeviceRef::save_and_stop`]): it has quiesced, and calls of
/// it wait (an access for a second, an open for two; a release and an unregister until the end of this).
/// The thread that has stopped it does not wait: its calls get `EBUSY`, and files that it drops are
/// released at the end of this, which comes in the same thread.
///
/// Dropping it resumes the device, which is then as if it had been saved only.
#[must_use = "dropping it resumes the device"]
pub struct SavedAndStopped {
    saved: Saved,
    stop: Stop,
    /// Not to be sent to another thread.
    _thread: PhantomData<*const ()>,
}

impl SavedAndStopped {
    /// The saved state.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// The device.
    pub fn device(&self) -> DeviceRef {
        DeviceRef { registered: self.stop.device().clone() }
    }

    /// Ends the device here without resuming it, because another process has restored its state, and
    /// returns the state. The device is dropped without `release` and `close_device`; its interrupts and
    /// mappings are given up, and what it shares with clients is left as it is. From then on everything
    /// that its files do fails with `ENODEV`, and so does an open. Files are dropped, and the device is
    /// unregistered, as usual.
    ///
    /// Blocks for up to a second for each file whose memory is still being accessed. Takes the set lock
    /// and the device lock.
    pub fn hand_over(self) -> Saved {
        let Self { saved, stop, _thread } = self;
        let device = stop.device().clone();
        let files: Vec<_> = {
            let mut guard = device.set.lock();
            guard
                .find(&device)
                .map_or(Vec::new(), |member| member.files.values().cloned().collect())
        };
        device.context.openings().end(Last::Forgotten);
        device.drop_model();
        files.iter().for_each(|file| device.drop_resources(file));
        tracing::debug!(device = device.name(), "handed over");
        // Calls find no device now.
        stop.leave_closed();
        saved
    }
}

impl DeviceRef {
    /// Saves the device as [`DeviceRef::save`], and leaves it stopped, for somebody who goes on with it
    /// elsewhere: nothing happens to the state that was saved until the result is dropped, or handed
    /// over. Stop serving its files before: what a client maps or sets up meanwhile is not in the state.
    ///
    /// # Errors
    /// As [`DeviceRef::save`]; the device has resumed then.
    pub fn save_and_stop(&self, descriptors: &mut dyn KeepDescriptors) -> Result<SavedAndStopped> {
        let (saved, stop) = self.registered.save_and_stop(descriptors)?;
        Ok(SavedAndStopped { saved, stop, _thread: PhantomData })
    }
}

impl fmt::Debug for SavedAndStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SavedAndStopped").field(&self.device().name()).finish()
    }
}
