//! Unmapping: out of the table first, then waiting for those who still use the memory.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use vfiod_sync::{Arc, MutexGuard, lock};

use crate::control::{Control, Leaving};
use crate::dirty::Marks;
use crate::error::{Errno, Error, Result};
use crate::listener::{Listener, Listening};
use crate::space::{Gone, Space, last_in};
use crate::table::Removed;

/// How long an unmap may wait for accesses in flight: a client gives up after five seconds, and
/// other things may have to be waited for, too.
pub const UNMAP_WAIT: Duration = Duration::from_secs(2);

/// Whether files stay mapped into this process for later mappings of theirs.
#[derive(Clone, Copy, PartialEq)]
enum Files {
    Keep,
    Forget,
}

/// An unmap that waits for accesses in flight and for listeners: its mappings are out of the
/// table, so no new access to them begins.
///
/// Dropped without [`Unmapping::finish`], it finishes all the same.
#[must_use = "an unmap is finished, or its mappings are put back, by `finish`"]
pub struct Unmapping {
    space: Space,
    id: u64,
    first: u64,
    last: u64,
    files: Files,
    removed: Removed,
    finished: bool,
}

impl Space {
    /// Removes every mapping inside `[iova, iova + size)`; the end may be 2^64 exactly. Returns
    /// how many bytes were mapped there (`u64::MAX` for all 2^64).
    ///
    /// Blocks until no access to them is in flight and every listener has dropped its delay, at
    /// most for `wait` ([`UNMAP_WAIT`]). Requests by message do not count: the client sees to them
    /// itself. Holds no lock meanwhile.
    ///
    /// The file behind the last of its mappings stays mapped into this process while no more than
    /// three others became idle after it, until [`Space::unmap_all`] or the end of an owner.
    ///
    /// # Errors
    /// `EINVAL`: a mapping would be cut in two, `size` is 0 or passes 2^64; `EBUSY`: accesses were
    /// still in flight after `wait`, and the mappings are there again.
    pub fn unmap(&self, iova: u64, size: u64, wait: Duration) -> Result<u64> {
        let last = last_in(iova, size, "a DMA unmap")?;
        self.remove(iova, last, wait, Files::Keep)
    }

    /// As [`Space::unmap`], and reports as [`Unmapping::finish_reporting`].
    ///
    /// # Errors
    /// As these; no mapping has been removed then.
    pub fn unmap_reporting(
        &self,
        iova: u64,
        size: u64,
        wait: Duration,
        page_size: u64,
        bitmap: &mut [u8],
    ) -> Result<u64> {
        if !self.is_dirty_log_on() {
            // Before anything is taken out: a device would miss it for a moment.
            return Err(Error::new(Errno::INVAL, "dirty logging is off"));
        }
        let unmapping = self.start_unmap(iova, size)?;
        unmapping.wait(Instant::now().checked_add(wait));
        unmapping.finish_reporting(page_size, bitmap)
    }

    /// Removes every mapping, and keeps no file mapped; otherwise as [`Space::unmap`].
    ///
    /// # Errors
    /// `EBUSY` as for [`Space::unmap`].
    pub fn unmap_all(&self, wait: Duration) -> Result<u64> {
        self.remove(0, u64::MAX, wait, Files::Forget)
    }

    /// Begins to remove every mapping inside `[iova, iova + size)`, without waiting. For callers
    /// that must not block; [`Space::unmap`] is this, a wait, and [`Unmapping::finish`].
    ///
    /// # Errors
    /// `EINVAL` as for [`Space::unmap`].
    pub fn start_unmap(&self, iova: u64, size: u64) -> Result<Unmapping> {
        let last = last_in(iova, size, "a DMA unmap")?;
        let (control, removed) = self.take_out(iova, last, Files::Keep)?;
        Ok(self.leave(control, removed, iova, last, Files::Keep))
    }

    /// Begins to remove every mapping; otherwise as [`Space::start_unmap`].
    pub fn start_unmap_all(&self) -> Result<Unmapping> {
        let (control, removed) = self.take_out(0, u64::MAX, Files::Forget)?;
        Ok(self.leave(control, removed, 0, u64::MAX, Files::Forget))
    }

    /// Calls `listener` at every unmap, until the result is dropped.
    pub fn listen(&self, listener: Arc<dyn Listener>) -> Listening {
        self.inner.listeners.add(listener)
    }

    fn remove(&self, first: u64, last: u64, wait: Duration, files: Files) -> Result<u64> {
        let (control, removed) = self.take_out(first, last, files)?;
        // From here on no access begins. Those that copied under the lock have ended.
        let quiet = !self.inner.ranges.any(|a, b| a <= last && b >= first);
        if quiet && (removed.is_empty() || self.inner.listeners.is_empty()) {
            return Ok(self.complete(control, &removed, first, last, files));
        }
        let unmapping = self.leave(control, removed, first, last, files);
        unmapping.wait(Instant::now().checked_add(wait));
        unmapping.finish()
    }

    /// Takes mappings out of the table.
    fn take_out(
        &self,
        first: u64,
        last: u64,
        files: Files,
    ) -> Result<(MutexGuard<'_, Control>, Removed)> {
        let control = lock(&self.inner.control);
        let removed = match files {
            Files::Forget => self.inner.map.change(|map| map.table.take()),
            Files::Keep => {
                self.inner.map.change(|map| map.table.remove(first, last)).map_err(|cut| {
                    let (a, b) = (cut.first, cut.last);
                    let what = format!(
                        "DMA unmap of {first:#x}-{last:#x} would cut the mapping {a:#x}-{b:#x}"
                    );
                    Error::new(Errno::INVAL, what)
                })?
            }
        };
        Ok((control, removed))
    }

    /// Keeps the place of mappings that were taken out, and calls the listeners.
    fn leave(
        &self,
        mut control: MutexGuard<'_, Control>,
        removed: Removed,
        first: u64,
        last: u64,
        files: Files,
    ) -> Unmapping {
        let id = control.unmaps;
        control.unmaps += 1;
        control.leaving.push(Leaving { id, first, last, ended: Vec::new() });
        drop(control);
        if !removed.is_empty() {
            self.inner.listeners.unmapping(first, last, &self.inner.ranges);
        }
        Unmapping { space: self.clone(), id, first, last, files, removed, finished: false }
    }

    /// The mappings that were taken out are gone for good. Returns how many bytes they had.
    fn complete(
        &self,
        mut control: MutexGuard<'_, Control>,
        removed: &Removed,
        first: u64,
        last: u64,
        files: Files,
    ) -> u64 {
        self.inner.dirty.forget(first, last);
        let mut dead = control.discount(removed);
        if files == Files::Forget {
            control.forget_idle(&mut dead);
        }
        let garbage = self.inner.reap(&mut control, &dead);
        drop(control);
        drop(garbage);
        removed.iter().fold(0u64, |sum, (first, mapping)| {
            sum.saturating_add(mapping.last - first).saturating_add(1)
        })
    }
}

impl Unmapping {
    fn hits(&self) -> impl Fn(u64, u64) -> bool + use<> {
        let (first, last) = (self.first, self.last);
        move |a, b| a <= last && b >= first
    }

    /// Whether nobody uses the memory any more, so that [`Unmapping::finish`] will succeed.
    pub fn is_clear(&self) -> bool {
        !self.space.inner.ranges.any(self.hits())
    }

    /// Ready when [`Unmapping::is_clear`]; else the waker is woken when that may have changed.
    pub fn poll_clear(&self, cx: &Context<'_>) -> Poll<()> {
        self.space.inner.ranges.poll(self.hits(), cx.waker())
    }

    /// Blocks until [`Unmapping::is_clear`] (`true`), or until `deadline`; `None` waits without
    /// limit.
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        self.space.inner.ranges.wait(self.hits(), deadline)
    }

    /// Ends the unmap, without waiting. Returns how many bytes were mapped.
    ///
    /// # Errors
    /// `EBUSY`: the memory is still in use. The mappings are there again, but for those of owners
    /// that have ended meanwhile.
    pub fn finish(mut self) -> Result<u64> {
        self.end(None)
    }

    /// As [`Unmapping::finish`], and reports which of the pages devices had written: the marks go
    /// with the mappings. The bitmap is as for [`Space::report_dirty`], for the range of the unmap.
    ///
    /// # Errors
    /// As [`Unmapping::finish`] and [`Space::report_dirty`]. After the latter's the mappings are
    /// there again, too.
    pub fn finish_reporting(mut self, page_size: u64, bitmap: &mut [u8]) -> Result<u64> {
        self.end(Some((page_size, bitmap)))
    }

    fn end(&mut self, report: Option<(u64, &mut [u8])>) -> Result<u64> {
        self.finished = true;
        let (space, first, last) = (self.space.clone(), self.first, self.last);
        let inner = &*space.inner;
        let mut control = lock(&inner.control);
        let at = control.leaving.iter().position(|leaving| leaving.id == self.id);
        let ended = at.map(|at| control.leaving.swap_remove(at).ended).unwrap_or_default();
        let mut result = match self.is_clear() {
            true => Ok(()),
            false => Err(Error::new(
                Errno::BUSY,
                format!("memory at {first:#x}-{last:#x} is in use and stays mapped"),
            )),
        };
        if let (Ok(()), Some((page_size, bitmap))) = (&result, report) {
            result = inner.dirty.report(first, last, page_size, Marks::Keep, bitmap);
        }
        if let Err(error) = result {
            inner.map.change(|map| map.table.restore(&self.removed));
            let mut garbage = Vec::new();
            for owner in ended {
                garbage.extend(inner.take_owned(&mut control, owner, &mut Gone::default()));
            }
            drop(control);
            drop(garbage);
            if !self.removed.is_empty() {
                inner.listeners.restored(first, last);
            }
            return Err(error);
        }
        Ok(space.complete(control, &self.removed, first, last, self.files))
    }
}

impl Drop for Unmapping {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.end(None)
        {
            tracing::debug!(%error, "DMA unmap given up");
        }
    }
}
