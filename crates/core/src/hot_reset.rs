//! Hot reset: all members of a set at once, by a user who holds every one that is open
//! (the kernel's `VFIO_DEVICE_PCI_HOT_RESET` and the information that goes with it).

use std::sync::Arc;
use std::time::Duration;

use crate::device::ResetCause;
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file::{File, FileShared};
use crate::mutation::{Mutation, active};
use crate::registered::Registered;
use crate::registry::DeviceRef;
use crate::set::SetGuard;
use crate::sync::{thread, try_lock};

/// How long a hot reset waits for the accesses that are in flight, in [`PAUSE`]s: half a second,
/// a tenth of what clients wait for an answer.
const PATIENCE: usize = if cfg!(any(loom, shuttle)) { 3 } else { 500 };
const PAUSE: Duration = Duration::from_millis(1);

/// A member of a device set, as the holder of a file sees it.
#[derive(Clone, Debug)]
pub struct SetMember {
    /// The device.
    pub device: DeviceRef,
    /// How many files it has.
    pub files: u32,
    /// Nobody but the asker's owner has it open, so it does not stand in the way of a hot reset.
    pub allowed: bool,
}

impl File {
    /// The members of the device's set. Takes the set lock.
    ///
    /// # Errors
    /// `ENODEV`: the file was taken away.
    pub fn set_members(&self) -> Result<Vec<SetMember>> {
        let (device, file) = self.parts();
        device.may_reset(file)?;
        let mut guard = device.set.lock();
        let member = |member: &crate::set::Member| SetMember {
            device: DeviceRef { registered: member.device.clone() },
            files: member.count(),
            allowed: member.owner().is_none_or(|owner| *owner == file.owner),
        };
        Ok(guard.members().map(member).collect())
    }

    /// Resets every member of the device's set, open or not ([`ResetCause::Set`]). While it
    /// lasts, accesses to any of them fail with `EBUSY`. Holds the set lock.
    ///
    /// When a reset fails, that member and those that were reset before it are in the error state;
    /// those after it are as they were.
    ///
    /// # Errors
    /// `EINVAL`: somebody else has a member open; `EBUSY`: an access to a member took too
    /// long, nothing was reset; `ENODEV`; what the device says that could not be reset.
    pub fn reset_set(&self) -> Result<()> {
        let (device, file) = self.parts();
        device.may_reset(file)?;
        let mut guard = device.set.lock();
        for member in guard.members() {
            if let Some(owner) = member.owner().filter(|owner| **owner != file.owner) {
                let what = format!("{} of the set is in use by {owner}", member.device.name());
                return Err(Error::new(Errno::INVAL, what));
            }
        }
        let members = guard.members().map(|member| member.device.clone()).collect();
        Stopped::stop(members)?.reset(&mut guard)
    }
}

impl Registered {
    fn may_reset(&self, file: &FileShared) -> Result<()> {
        if file.is_open() { Ok(()) } else { Err(self.is_gone()) }
    }
}

/// The members of a set, none of them accessible; accessible again when this is dropped.
struct Stopped {
    members: Vec<Arc<Registered>>,
}

impl Stopped {
    fn stop(members: Vec<Arc<Registered>>) -> Result<Self> {
        let mut stopped = Self { members: Vec::with_capacity(members.len()) };
        for member in members {
            let mut tries = 0;
            // With the device lock held for a moment: no access that has passed its checks is
            // left then.
            let locked = loop {
                if let Some(locked) = try_lock(&member.model) {
                    break locked;
                }
                tries += 1;
                if tries > PATIENCE {
                    let what = format!("{} did not come to rest", member.name());
                    return Err(Error::new(Errno::BUSY, what));
                }
                pause();
            };
            if !active(Mutation::HotResetDoesNotStop) {
                member.stop();
            }
            drop(locked);
            stopped.members.push(member);
        }
        Ok(stopped)
    }

    fn reset(&self, guard: &mut SetGuard<'_>) -> Result<()> {
        for (at, member) in self.members.iter().enumerate() {
            let Err(error) = member.reset(ResetCause::Set, None) else { continue };
            for member in &self.members[..at] {
                member.fail();
                member.emit(Event::Failed);
            }
            for member in &self.members[..=at] {
                guard.needs_reset(member);
            }
            return Err(error);
        }
        Ok(())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for member in &self.members {
            member.resume();
        }
    }
}

fn pause() {
    if cfg!(any(loom, shuttle)) {
        thread::yield_now();
    } else {
        std::thread::sleep(PAUSE);
    }
}
