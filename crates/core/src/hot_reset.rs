//! Hot reset: all members of a set at once, by a user who holds every one that is open
//! (the kernel's `VFIO_DEVICE_PCI_HOT_RESET` and the information that goes with it), or by the
//! administrator.
//!
//! With the set marked from the first step to the last:
//!
//! 1. Every open member must belong to the caller, else the reset is refused.
//! 2. Every member is stopped and quiesces: no call of the device but the reset, no task, no DMA.
//!    Accesses wait. If a member takes too long, the reset is abandoned and all members resume.
//! 3. Every member is reset. Those that share pages with clients come last, and are reset again if
//!    another one was reset after them: that erases what clients stored there meanwhile.
//! 4. Doorbells and unmasking eventfds that were signalled meanwhile are drained.
//! 5. Every member resumes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::{ResetCause, Why};
use crate::device_ref::DeviceRef;
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file::File;
use crate::file_state::FileShared;
use crate::ids::Owner;
use crate::registered::{Member, Registered, SetGuard, Transition};
use crate::set::{Phase, WAIT};
use crate::stop::{LIMIT, Stop};
use crate::timeout::Timeout;

/// A member of a device set.
#[derive(Clone, Debug)]
pub struct SetMember {
    /// The device.
    pub device: DeviceRef,
    /// How many files it has.
    pub files: u32,
    /// It is open, and its files belong to the caller.
    pub owned: bool,
    /// It does not prevent a hot reset: it is not open, or [`SetMember::owned`].
    pub allowed: bool,
}

/// What an administrator's reset does to members that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// It is refused.
    Refuse,
    /// They are reset without asking their users.
    Reset,
}

/// On whose authority a set is reset.
enum Authority<'a> {
    /// A user's: each open member must belong to this owner, or be one of which it presents a file.
    Owner(&'a Owner, &'a [&'a File]),
    /// The administrator's.
    Administrator(InUse),
}

impl Authority<'_> {
    /// Whether a member that is open is the caller's own.
    fn owns(&self, member: &Member) -> bool {
        match self {
            Self::Owner(caller, files) => {
                let presented = |file: &&File| {
                    let (_, shared) = file.parts();
                    shared.is_open() && member.files.contains_key(&shared.id)
                };
                member.owner().is_some_and(|owner| owner == *caller)
                    || (member.owner().is_some() && files.iter().any(presented))
            }
            Self::Administrator(_) => false,
        }
    }

    fn allows(&self, member: &Member) -> bool {
        matches!(self, Self::Administrator(InUse::Reset))
            || member.owner().is_none()
            || self.owns(member)
    }

    /// Checks that every open member may be reset: else `EINVAL` for an owner, `EBUSY` for the
    /// administrator.
    fn check(&self, guard: &mut SetGuard<'_>) -> Result<()> {
        let Some(member) = guard.members().find(|member| !self.allows(member)) else {
            return Ok(());
        };
        let errno = match self {
            Self::Owner(..) => Errno::INVAL,
            Self::Administrator(_) => Errno::BUSY,
        };
        let owner = member.owner().map_or_else(String::new, Owner::to_string);
        let what = format!("{} of the set is in use by {owner}", member.device.name());
        Err(Error::new(errno, what))
    }

    fn members(&self, guard: &mut SetGuard<'_>) -> Vec<SetMember> {
        let member = |member: &Member| SetMember {
            device: DeviceRef { registered: member.device.clone() },
            files: member.count(),
            owned: self.owns(member),
            allowed: self.allows(member),
        };
        guard.members().map(member).collect()
    }
}

impl File {
    /// The members of the device's set, this one among them. Takes the set lock.
    ///
    /// # Errors
    /// `ENODEV`: the file was revoked.
    pub fn set_members(&self) -> Result<Vec<SetMember>> {
        let (device, file) = self.parts();
        let mut guard = device.set.lock();
        device.may_reset(file)?;
        Ok(Authority::Owner(&file.owner, &[]).members(&mut guard))
    }

    /// Resets every member of the device's set, open or not ([`ResetCause::Set`]). Meanwhile no
    /// member is opened or closed, and accesses to any member wait, at most a second. Blocks for
    /// up to two seconds until the set is idle, two more until all members have quiesced, and as
    /// long as their resets take.
    ///
    /// Afterwards every member is as a reset leaves it. What clients did to any member before or
    /// meanwhile has no effect: neither stores into pages that they have mapped, nor doorbells and
    /// unmasking eventfds that they signalled. A store into the pages of a member after its last
    /// reset counts as made after the hot reset: no device has read the pages in between.
    ///
    /// If the reset of a member fails, that member and those that were reset before it are in the
    /// error state; those after it are unchanged.
    ///
    /// # Errors
    /// `EINVAL`: another owner has a member open. `EBUSY`: the set did not become idle, or a member
    /// did not quiesce; nothing was reset. `ENODEV`: the file was revoked. Errors of the member that
    /// could not be reset; `EIO`: it panicked.
    pub fn reset_set(&self) -> Result<()> {
        self.reset_set_with(&[])
    }

    /// Resets the set as [`File::reset_set`] does, but waits no longer than `limit` for the set and the
    /// members together.
    ///
    /// # Errors
    /// As [`File::reset_set`].
    pub fn reset_set_within(&self, limit: Duration) -> Result<()> {
        self.reset_presenting(&[], limit)
    }

    /// Resets the set as [`File::reset_set`] does, for a caller that presents files of other owners
    /// to prove that it may reset their devices, too, as kernel users do with group descriptors.
    /// Files of devices outside the set, and revoked files, prove nothing.
    ///
    /// # Errors
    /// As [`File::reset_set`].
    pub fn reset_set_with(&self, files: &[&File]) -> Result<()> {
        self.reset_presenting(files, WAIT + LIMIT)
    }

    fn reset_presenting(&self, files: &[&File], limit: Duration) -> Result<()> {
        let (device, file) = self.parts();
        let end = Instant::now() + limit;
        let resetting = device.begin_reset(limit)?;
        // With the set marked: a revoked file is released only after the reset.
        device.may_reset(file)?;
        let left = end.saturating_duration_since(Instant::now());
        reset(&resetting, &Authority::Owner(&file.owner, files), left)
    }
}

impl DeviceRef {
    /// The members of the device's set as the administrator sees them: none is owned, and those that
    /// are not open are allowed. Empty once the device has been unregistered. Takes the set lock.
    pub fn set_members(&self) -> Vec<SetMember> {
        let mut guard = self.registered.set.lock();
        if guard.find(&self.registered).is_none() {
            return Vec::new();
        }
        Authority::Administrator(InUse::Refuse).members(&mut guard)
    }

    /// Resets every member of the device's set on the administrator's authority, not on a user's.
    /// Otherwise as [`File::reset_set`].
    ///
    /// # Errors
    /// `EBUSY`: a member is open (the message names its owner) and `in_use` is [`InUse::Refuse`]; or
    /// the set did not become idle, or a member did not quiesce. `ENODEV`: the device has been
    /// unregistered. Errors of the member that could not be reset; `EIO`: it panicked.
    pub fn reset_set(&self, in_use: InUse) -> Result<()> {
        let resetting = self.registered.begin_reset(WAIT)?;
        if resetting.lock().find(&self.registered).is_none() {
            return Err(self.registered.is_gone());
        }
        reset(&resetting, &Authority::Administrator(in_use), LIMIT)
    }
}

impl Registered {
    fn begin_reset(&self, limit: Duration) -> Result<Transition<'_>> {
        let mut timeout = Timeout::new(WAIT.min(limit));
        let resetting = self.set.try_begin_within(Phase::Resetting, &mut timeout);
        resetting.map_err(|phase| self.set_is(phase))
    }

    fn may_reset(&self, file: &FileShared) -> Result<()> {
        if file.is_open() { Ok(()) } else { Err(self.is_gone()) }
    }
}

/// Resets the members. Waits for them no longer than `limit`, and [`LIMIT`].
fn reset(resetting: &Transition<'_>, authority: &Authority<'_>, limit: Duration) -> Result<()> {
    let mut members: Vec<_> = {
        let mut guard = resetting.lock();
        authority.check(&mut guard)?;
        guard.members().map(|member| member.device.clone()).collect()
    };
    members.sort_by_key(|member| member.shares_memory());
    Stopped::stop(&members, limit.min(LIMIT))?.reset(resetting)
}

/// The members of a set, all of them quiesced. They resume when this is dropped.
struct Stopped {
    /// Those that share pages come last.
    stops: Vec<Stop>,
}

impl Stopped {
    /// `EBUSY`: a call takes too long, or a device does not quiesce; those that were stopped resume.
    fn stop(members: &[Arc<Registered>], limit: Duration) -> Result<Self> {
        let mut timeout = Timeout::new(limit);
        let Some(first) = members.first() else { return Ok(Self { stops: Vec::new() }) };
        let deadline = first.environment.runtime.now() + limit;
        let mut stopped = Self { stops: Vec::new() };
        stopped.quiesce(members, &mut timeout, deadline).map_err(|error| {
            let what = format!("hot reset abandoned: {error}; nothing was reset");
            Error::new(error.errno(), what).because(error)
        })?;
        // Halt DMA only once the reset can no longer end with `EBUSY`: a call that made it fail
        // must keep its DMA.
        for stop in &stopped.stops {
            stop.device().context.attachment().quiesce();
        }
        Ok(stopped)
    }

    fn quiesce(
        &mut self,
        members: &[Arc<Registered>],
        timeout: &mut Timeout,
        deadline: Instant,
    ) -> Result<()> {
        // Stop all of them first, so that no new call delays the quiesce, however many there are.
        for member in members {
            self.stops.push(Stop::claim(member, timeout)?);
        }
        for stop in &self.stops {
            stop.await_calls(timeout)?;
        }
        for stop in &mut self.stops {
            stop.ask(Why::HotReset)?;
        }
        for stop in &mut self.stops {
            stop.await_idle(deadline)?;
        }
        Ok(())
    }

    fn reset(mut self, resetting: &Transition<'_>) -> Result<()> {
        let members: Vec<_> = self.stops.iter().map(|stop| stop.device().clone()).collect();
        for stop in &mut self.stops {
            stop.forget_rings();
        }
        for (at, member) in members.iter().enumerate() {
            if let Err(error) = member.reset(ResetCause::Set, None) {
                give_up(resetting, &members[..=at], member);
                return Err(error);
            }
        }
        // The last member needs no second reset: a store into its pages after its reset counts as
        // made after the hot reset.
        let before_last = members.split_last().map_or(&[][..], |(_, rest)| rest);
        for member in before_last.iter().filter(|member| member.shares_memory()) {
            if let Err(error) = member.reset_quietly(ResetCause::Set, None) {
                give_up(resetting, &members, member);
                return Err(error);
            }
        }
        for member in resetting.lock().members() {
            member.files.values().for_each(|file| file.silence_doorbells());
            member.device.context.irqs().silence_unmasks();
        }
        Ok(())
    }
}

/// Puts those that were reset into the error state along with the one that failed.
fn give_up(resetting: &Transition<'_>, touched: &[Arc<Registered>], failed: &Arc<Registered>) {
    for member in touched {
        resetting.lock().needs_reset(member);
        if !Arc::ptr_eq(member, failed) {
            member.fail(&format!("the reset of its set failed at {}", failed.name()));
            member.emit(Event::Failed);
        }
    }
}
