//! Open, release, revoke and unregister: the lifecycle of files and devices.
//!
//! First open, last close and every change of the count of files happen with the set marked
//! (`set.rs`); no callback and no wait happens under the set lock.
//!
//! A file is `Opening` while `open` runs for it, then `Open`, then `Gone`. Whoever moves it
//! from `Open` to `Gone` owes the device its release: its holder, by dropping it, or the
//! core, by revoking it. A file revoked while `Opening` is released by its opener.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::RequestBackoff;
use crate::device::{Device, DeviceFlags, ResetCause, Token};
use crate::error::{Errno, Error, Result};
use crate::event::Event;
use crate::file_state::FileShared;
use crate::held::{self, Inside};
use crate::ids::{FileId, Owner};
use crate::policy::OpenPolicy;
use crate::registered::{BY_THIS_THREAD, Registered, SetGuard, Transition};
use crate::set::{Phase, WAIT};
use crate::timeout::Timeout;

/// How long a request to close a device waits for the device: the next one follows anyway.
const REQUEST_WAIT: Duration = Duration::from_millis(50);

/// Whether a file's release is emitted: only if its open was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Announce {
    Yes,
    No,
}

impl Registered {
    /// Opens the device: counts the file, opens the device for the first one with the set marked, and
    /// calls `open` without the mark.
    pub(crate) fn open_file(
        self: &Arc<Self>,
        owner: Owner,
        token: Option<Token>,
    ) -> Result<Arc<FileShared>> {
        if self.is_stopped_here() {
            return Err(self.is_being_reset());
        }
        let _inside = Inside::new(&**self);
        let file = Arc::new(FileShared::new(self.environment.next_file(), owner));
        let opening = self.begin_opening(&file.owner, token)?;
        self.count_in(&opening, &file)?;
        file.enter_opening(self.context.openings().memory());
        drop(opening);

        if let Err(error) = self.call(|device| device.open(file.id, &file.owner)) {
            tracing::debug!(device = self.name(), file = file.id.0, %error, "open failed");
            self.count_out(&file, Announce::No);
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
        self.release_now(&file, Announce::No);
        Err(self.is_leaving())
    }

    /// Marks the set for an owner that may open the device, by its policy and by the device's own
    /// decision. A device that is busy is asked without the mark: the other members of its set do not
    /// wait for it.
    fn begin_opening(&self, owner: &Owner, token: Option<Token>) -> Result<Transition<'_>> {
        let mut guard = self.set.try_lock_idle().map_err(|phase| self.set_is(phase))?;
        self.may_open(&mut guard, owner)?;
        let opening = guard.mark(Phase::Opening);
        if let Some(admitted) = self.admit_opener(token, &mut Timeout::new(Duration::ZERO)) {
            return admitted.map(|()| opening);
        }
        drop(opening);
        let mut timeout = Timeout::new(WAIT);
        let busy = || Error::new(Errno::BUSY, format!("{} is busy", self.name()));
        self.admit_opener(token, &mut timeout).ok_or_else(busy)??;
        let guard = self.set.try_lock_idle_within(&mut timeout);
        let mut guard = guard.map_err(|phase| self.set_is(phase))?;
        self.may_open(&mut guard, owner)?;
        Ok(guard.mark(Phase::Opening))
    }

    /// Counts a file, and opens the device for the first one.
    fn count_in(self: &Arc<Self>, opening: &Transition<'_>, file: &Arc<FileShared>) -> Result<()> {
        let first = {
            let mut guard = opening.lock();
            // Check again: since the caller's check an unregister may have begun, or a file may have
            // been revoked.
            let first = self.may_open(&mut guard, &file.owner)?;
            guard.member(self).files.insert(file.id, file.clone());
            self.set_up();
            first
        };
        if !first {
            return Ok(());
        }
        self.first_open(opening, &file.owner).inspect_err(|error| {
            tracing::debug!(device = self.name(), %error, "first open failed");
            let mut guard = opening.lock();
            let member = guard.member(self);
            member.files.remove(&file.id);
            if member.leaving {
                self.drained.notify_all();
            }
            if self.is_in_error_state() {
                guard.needs_reset(self);
            }
        })
    }

    /// Checks that the policy allows one more file of an owner. Returns whether it is the first.
    fn may_open(&self, guard: &mut SetGuard<'_>, opener: &Owner) -> Result<bool> {
        let Some(member) = guard.find(self) else { return Err(self.is_leaving()) };
        if member.leaving {
            return Err(self.is_leaving());
        }
        if member.open_pauses > 0 {
            return Err(self.opens_are_paused());
        }
        match member.owner() {
            None => Ok(true),
            Some(_) if self.open_policy == OpenPolicy::Single => {
                let what = format!("{} is open, and takes one file at a time", self.name());
                Err(Error::new(Errno::INVAL, what))
            }
            Some(owner) if owner != opener => {
                let what = format!("{} is in use by {owner}", self.name());
                Err(Error::new(Errno::BUSY, what))
            }
            Some(_) if self.is_in_error_state() => Err(self.has_failed()),
            Some(_) => Ok(false),
        }
    }

    /// Asks the device whether it may be opened with this token; `None`: it is busy.
    fn admit_opener(&self, token: Option<Token>, timeout: &mut Timeout) -> Option<Result<()>> {
        let presented = token.or(self.token);
        self.call_within(timeout, |device| match (device.as_admission(), presented) {
            (Some(power), presented) => power.admit(presented),
            (None, None) => Ok(()),
            (None, Some(_)) => {
                let what = format!("{} takes no token", self.name());
                Err(Error::new(Errno::INVAL, what))
            }
        })
    }

    /// Releases a file that its holder closes, unless it was revoked before.
    pub(crate) fn release_file(self: &Arc<Self>, file: &Arc<FileShared>) {
        if file.take() {
            self.release_taken(file);
        }
    }

    fn release_taken(self: &Arc<Self>, file: &Arc<FileShared>) {
        self.release_now(file, Announce::Yes);
    }

    /// Releases a file. Removes its mappings and eventfds first, so that no callback that follows can
    /// wait for the peer. Of the rest is deferred what would wait for the calling thread.
    fn release_now(self: &Arc<Self>, file: &Arc<FileShared>, announce: Announce) {
        self.note_departure();
        self.drop_resources(file);
        self.finish_release(file, announce);
    }

    /// Where all files of the device are being released, its DMA waits from now on: it has yet to quiesce, and must
    /// not find that its memory is gone.
    fn note_departure(&self) {
        let mut guard = self.set.lock();
        if let Some(member) = guard.find(self) {
            let files = &member.files;
            let leaving = !files.is_empty() && files.values().all(|file| file.is_gone());
            self.context.attachment().set_leaving(leaving);
        }
    }

    fn finish_release(self: &Arc<Self>, file: &Arc<FileShared>, announce: Announce) {
        let _inside = Inside::new(&**self);
        let released = self.call(|device| {
            device.release(file.id);
            Ok(())
        });
        if let Err(error) = released {
            if error.errno() == Errno::BUSY && held::holds_any() {
                let (device, file) = (self.clone(), file.clone());
                return held::defer_release(move || device.finish_release(&file, announce));
            }
            tracing::debug!(device = self.name(), file = file.id.0, %error, "release failed");
        }
        self.count_out(file, announce);
    }

    /// Uncounts a file, and closes the device after the last one.
    fn count_out(self: &Arc<Self>, file: &Arc<FileShared>, announce: Announce) {
        // Again: another thread may have set up an eventfd or mapping before `release`.
        self.drop_resources(file);
        let Some(closing) = self.begin_closing() else {
            let (device, file) = (self.clone(), file.clone());
            return held::defer_release(move || device.count_out(&file, announce));
        };
        let (count, leaving) = {
            let mut guard = closing.lock();
            let Some(member) = guard.find(self) else { return };
            if member.files.remove(&file.id).is_none() {
                return;
            }
            self.set_up();
            let (count, leaving) = (member.count(), member.leaving);
            if announce == Announce::Yes {
                tracing::debug!(device = self.name(), file = file.id.0, count, "released");
                self.emit(|subject| Event::FileReleased { subject, file: file.id, count });
            }
            (count, leaving)
        };
        if count > 0 {
            return self.note_departure();
        }
        self.last_close(&closing);
        // It reaches no memory before the next open.
        self.context.attachment().set_leaving(false);
        // An unregister that began after the count found no file, and does not wait.
        if leaving {
            self.drained.notify_all();
        }
    }

    /// Marks the set for a release, however long that takes. A thread that holds something waits for a
    /// limited time: `None`.
    fn begin_closing(&self) -> Option<Transition<'_>> {
        if held::holds_any() {
            return self.set.try_begin(Phase::Closing).ok();
        }
        Some(self.set.begin(Phase::Closing))
    }

    /// Drops the DMA mappings and eventfds of a file, if it may have any.
    pub(crate) fn drop_resources(&self, file: &FileShared) {
        if !file.has_set_up() {
            return;
        }
        file.drop_doorbells();
        self.context.irqs().drop_file(file.id);
        self.context.attached_space().drop_owner(file.id.into());
        file.drop_left_mappings();
        self.set_up();
    }

    /// Bars opens, asks the users to close the device at growing intervals until the last file is
    /// released, and revokes the files that are left at the deadline.
    pub(crate) fn drain(self: &Arc<Self>, deadline: Option<Duration>) {
        let mut backoff = RequestBackoff::new(deadline);
        let mut guard = self.set.lock();
        guard.member(self).leaving = true;
        tracing::debug!(device = self.name(), "unregistering");
        while !guard.member(self).files.is_empty() {
            let Some(n) = backoff.next_request() else {
                drop(guard);
                return self.revoke_all();
            };
            drop(guard);
            self.request(n, REQUEST_WAIT);
            guard = self.set.lock();
            while !guard.member(self).files.is_empty() {
                let Some(time) = backoff.wait() else { break };
                guard.wait(&self.drained, time);
            }
        }
    }

    /// Asks the users to close the device. Waits, no longer than `wait`, for a callback that is running
    /// and for the end of a stop, both of which a client can prolong. Returns whether the device was
    /// asked.
    pub(crate) fn request(&self, n: u32, wait: Duration) -> bool {
        // Emit `Requested` before asking: another thread may emit `FileReleased` at once.
        self.emit(|subject| Event::Requested { subject, n });
        let request =
            |device: &mut dyn Device| Ok(device.as_request().map(|power| power.request(n)));
        let outcome = self.call_within(&mut Timeout::new(wait), request);
        let sent = matches!(outcome, Some(Ok(Some(true))));
        // The growing intervals limit the rate.
        tracing::debug!(device = self.name(), n, sent, "asked the users to close the device");
        outcome.is_some()
    }

    /// Revokes one file, by its number.
    pub(crate) fn revoke(self: &Arc<Self>, id: FileId) -> Result<()> {
        let gone = || Error::new(Errno::NOENT, format!("{} has no {id}", self.name()));
        let file = {
            let mut guard = self.set.lock();
            let member = guard.find(self).ok_or_else(gone)?;
            member.files.get(&id).cloned().ok_or_else(gone)?
        };
        self.revoke_files(&[file]);
        Ok(())
    }

    /// Revokes files. Returns how many were in use.
    ///
    /// First none of them can use the device any more, and nothing waits for their clients; only then
    /// is the first one released. So a client that answers slowly, or lets the device be reset again
    /// and again, holds up neither its own release nor that of another file.
    fn revoke_files(self: &Arc<Self>, files: &[Arc<FileShared>]) -> usize {
        let taken: Vec<_> = files.iter().filter(|file| file.revoke()).collect();
        for file in &taken {
            file.end_link();
            tracing::debug!(device = self.name(), file = file.id.0, "revoked");
            self.emit(|subject| Event::Revoked { subject, file: file.id });
        }
        for file in &taken {
            self.release_taken(file);
        }
        taken.len()
    }

    /// Revokes every file that there is now. Returns how many were in use.
    pub(crate) fn revoke_present(self: &Arc<Self>) -> usize {
        let files: Vec<_> = match self.set.lock().find(self) {
            Some(member) => member.files.values().cloned().collect(),
            None => return 0,
        };
        self.revoke_files(&files)
    }

    /// Bars opens (`ENODEV`), as the first step of an unregister.
    pub(crate) fn bar_opens(&self) {
        if let Some(member) = self.set.lock().find(self) {
            member.leaving = true;
        }
    }

    /// Bars opens (`ENODEV`) if the device has no files; otherwise `EBUSY`.
    pub(crate) fn bar_opens_if_unused(&self) -> Result<()> {
        let mut guard = self.set.lock();
        let Some(member) = guard.find(self) else { return Ok(()) };
        if let Some(owner) = member.owner() {
            return Err(Error::new(Errno::BUSY, format!("{} is in use by {owner}", self.name())));
        }
        guard.member(self).leaving = true;
        Ok(())
    }

    /// Revokes every file, and waits for those that other threads are releasing.
    fn revoke_all(self: &Arc<Self>) {
        self.revoke_present();
        let mut guard = self.set.lock();
        while !guard.member(self).files.is_empty() {
            guard.wait(&self.drained, Duration::MAX);
        }
    }

    /// Leaves the set and drops the device itself. It must have no files left.
    pub(crate) fn leave(&self) {
        self.set.lock_idle().leave(self);
        self.drop_model();
    }

    /// Drops the device itself: from now on calls of it fail with `ENODEV`.
    pub(crate) fn drop_model(&self) {
        let model = self.model.lock().take();
        // A handle of the device keeps what it reports, and that what the device has, such as an open file.
        let report = crate::sync::lock(&self.report).take();
        if let Err(panic) = crate::contain::contain(|| drop((model, report))) {
            tracing::error!(device = self.name(), error = %panic, "dropping the device failed");
        }
    }

    /// DEVICE_RESET by the holder of a file.
    pub(crate) fn reset_for(self: &Arc<Self>, file: &FileShared) -> Result<()> {
        if !self.description.flags.contains(DeviceFlags::RESET) {
            let what = format!("{} has no reset", self.name());
            return Err(Error::new(Errno::INVAL, what));
        }
        if self.works() {
            return self.stop_and_reset(file);
        }
        self.reset(ResetCause::Client, Some(file))
    }

    #[cold]
    pub(crate) fn set_is(&self, phase: Phase) -> Error {
        let by = if self.set.is_mine() { BY_THIS_THREAD } else { "" };
        Error::new(Errno::BUSY, format!("the set of {} is {phase}{by}", self.name()))
    }

    #[cold]
    pub(crate) fn opens_are_paused(&self) -> Error {
        let what = format!("{} is about to be removed; try again", self.name());
        Error::new(Errno::BUSY, what)
    }

    #[cold]
    fn is_leaving(&self) -> Error {
        Error::new(Errno::NODEV, format!("{} is being unregistered", self.name()))
    }
}
