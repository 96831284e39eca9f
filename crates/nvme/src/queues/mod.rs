//! The queues of a controller that is enabled (3.3), and the doorbells (PCIe transport 3.1.2).

mod begin;
pub(crate) mod completion;
mod controller;
pub(crate) mod doorbell;
pub(crate) mod execute;
mod fetch;
mod for_now;
mod held;
mod page;
pub(crate) mod post;
pub(crate) mod serve;
mod slots;
pub(crate) mod submission;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::{Arc, OnceLock};

use vfiod_core::dma::Attachment;
use vfiod_core::{DataPath, Result};
use vfiod_disk::Interest;
use vfiod_pci::Interrupts;
use vfiod_sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::Waiters;

pub(crate) use self::completion::{CompletionQueue, Host, Layout};
pub(crate) use self::controller::Controller;
pub(crate) use self::doorbell::{Doorbell, DoorbellPlace, Pages};
pub(crate) use self::page::MappedPage;
pub(crate) use self::submission::SubmissionQueue;
use crate::vectors::Vectors;
use vfiod_nvme_spec::Status;
use vfiod_nvme_spec::registers::QUEUES;

/// How often a queue looks at its doorbell that is polled: for about a microsecond.
const LOOKS_AT_PAGE: u32 = 48;
/// After so many looks it looks at the others, too.
const LOOKS_AT_OTHERS: u32 = 16;

/// The queues of a controller from one enable to the next disable. Tasks that still run when the
/// controller has been disabled keep these, and reach nothing of what is enabled next.
pub(crate) struct Queues {
    /// Bytes of a memory page (CC.MPS).
    pub(crate) page: u64,
    submissions: [Mutex<Option<Arc<SubmissionQueue>>>; QUEUES],
    completions: [Mutex<Option<Arc<CompletionQueue>>>; QUEUES],
    pub(crate) vectors: Vectors,
    pub(crate) interrupts: Interrupts,
    /// What requests to disks belong to.
    pub(crate) interest: Interest,
    /// No command is read and no completion posted any more.
    stopped: AtomicBool,
    /// No command is read for now; those that were read are finished.
    paused: AtomicBool,
    /// Those that wait for nothing but a sync are parked meanwhile.
    parks: AtomicBool,
    /// No command is read until the controller is disabled: it is shut down.
    closed: AtomicBool,
    changed: Waiters,
    /// Where doorbells are, besides in messages: in pages of shadow doorbells, once the host has set them
    /// (5.11), or in memory that the host maps.
    place: Mutex<Option<DoorbellPlace>>,
    /// The page that the host maps, if it does.
    page_of_doorbells: OnceLock<Arc<MappedPage>>,
    /// There were shadow doorbells, which have ended.
    had_pages: AtomicBool,
    /// Commands that were read and have not completed, and how many there may be.
    commands: AtomicU32,
    max_commands: u32,
    /// Completions that wait until the host lets the device reach memory. They count as commands, of which there
    /// may be so many.
    deferred: AtomicU32,
    /// What ends by a stop completes all the same, when the controller goes on with other queues.
    defers: AtomicBool,
    /// Doorbell errors that the host has not been told of.
    invalid_register: AtomicBool,
    invalid_value: AtomicBool,
    /// There may be events that can be posted.
    events: AtomicBool,
}

impl Queues {
    pub(crate) fn new(
        page: u64,
        max_commands: u32,
        vectors: Vectors,
        interrupts: Interrupts,
    ) -> Self {
        Self {
            page,
            submissions: [const { Mutex::new(None) }; QUEUES],
            completions: [const { Mutex::new(None) }; QUEUES],
            vectors,
            interrupts,
            interest: Interest::new(),
            stopped: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            parks: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            changed: Waiters::new(),
            place: Mutex::new(None),
            page_of_doorbells: OnceLock::new(),
            had_pages: AtomicBool::new(false),
            commands: AtomicU32::new(0),
            max_commands,
            deferred: AtomicU32::new(0),
            defers: AtomicBool::new(false),
            invalid_register: AtomicBool::new(false),
            invalid_value: AtomicBool::new(false),
            events: AtomicBool::new(false),
        }
    }

    /// A submission queue, by its number.
    pub(crate) fn submission(&self, id: usize) -> Option<Arc<SubmissionQueue>> {
        lock(self.submissions.get(id)?).clone()
    }

    /// A completion queue, by its number.
    pub(crate) fn completion(&self, id: usize) -> Option<Arc<CompletionQueue>> {
        lock(self.completions.get(id)?).clone()
    }

    pub(crate) fn add_submission(&self, queue: Arc<SubmissionQueue>) {
        let place = &self.submissions[usize::from(queue.id)];
        *lock(place) = Some(queue);
    }

    pub(crate) fn add_completion(&self, id: usize, queue: Arc<CompletionQueue>) {
        self.deferred.fetch_add(queue.deferred().len() as u32, Ordering::SeqCst);
        *lock(&self.completions[id]) = Some(queue);
    }

    pub(crate) fn remove_submission(&self, id: usize) {
        if let Some(queue) = self.submission(id) {
            queue.end_place();
        }
        *lock(&self.submissions[id]) = None;
    }

    pub(crate) fn remove_completion(&self, id: usize) {
        if let Some(queue) = self.completion(id) {
            queue.end_place();
        }
        let queue = lock(&self.completions[id]).take();
        if let Some(queue) = queue {
            queue.end(&self.vectors, &self.interrupts);
            self.deferred.fetch_sub(queue.deferred().len() as u32, Ordering::SeqCst);
        }
    }

    /// The submission queues that there are.
    pub(crate) fn all_submissions(&self) -> impl Iterator<Item = Arc<SubmissionQueue>> {
        self.submissions.iter().filter_map(|queue| lock(queue).clone())
    }

    /// The completion queues that there are, with their numbers.
    pub(crate) fn all_completions(&self) -> impl Iterator<Item = (usize, Arc<CompletionQueue>)> {
        let queue = |(id, queue): (usize, &Mutex<Option<_>>)| Some((id, lock(queue).clone()?));
        self.completions.iter().enumerate().filter_map(queue)
    }

    /// What completion queues reach the host by.
    pub(crate) fn host<'a>(&'a self, dma: &'a Attachment) -> Host<'a> {
        let (vectors, raise, deferred) = (&self.vectors, &self.interrupts, &self.deferred);
        Host { dma, vectors, raise, coalesces: false, deferred }
    }

    /// Where doorbells are, besides in messages.
    pub(crate) fn place(&self) -> Option<DoorbellPlace> {
        lock(&self.place).clone()
    }

    /// From now on the doorbells of all queues are there, too; not if the work is to end.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn set_place(&self, dma: &Attachment, place: DoorbellPlace) -> Result<()> {
        let mut own = lock(&self.place);
        if self.is_stopped() {
            return Ok(());
        }
        let place = own.insert(place);
        self.all_submissions().try_for_each(|queue| queue.set_place(dma, place))?;
        self.all_completions().try_for_each(|(id, queue)| queue.set_place(dma, place, id))
    }

    /// Lets `set` tell a queue that is being created where its doorbell is, if it is anywhere.
    ///
    /// # Errors
    /// Those of `set`.
    pub(crate) fn with_place(&self, set: impl FnOnce(&DoorbellPlace) -> Result<()>) -> Result<()> {
        let own = lock(&self.place);
        own.as_ref().filter(|_| !self.is_stopped()).map_or(Ok(()), set)
    }

    /// Where the doorbells are of queues that are added from now on.
    pub(crate) fn begin_place(&self, place: DoorbellPlace) {
        if let DoorbellPlace::Mapped(page) = &place {
            _ = self.page_of_doorbells.set(page.clone());
        }
        *lock(&self.place) = Some(place);
    }

    /// The memory of doorbells is the host's again. When this returns nobody reads or writes it.
    fn end_place(&self) {
        if let Some(DoorbellPlace::Shadow(_)) = lock(&self.place).take() {
            self.had_pages.store(true, Ordering::SeqCst);
        }
        self.all_submissions().for_each(|queue| queue.end_place());
        self.all_completions().for_each(|(_, queue)| queue.end_place());
    }

    /// Whether there were shadow doorbells when the work ended.
    pub(crate) fn had_pages(&self) -> bool {
        self.had_pages.load(Ordering::SeqCst)
    }

    /// Whether there are I/O queues.
    pub(crate) fn has_io_queues(&self) -> bool {
        (1..QUEUES).any(|id| self.submission(id).is_some() || self.completion(id).is_some())
    }

    /// Lets the task of every queue look again.
    pub(crate) fn ring_all(&self) {
        self.all_submissions().for_each(|queue| queue.bell.ring(None));
    }

    /// Lets the tasks of all queues but one look again.
    pub(crate) fn ring_others(&self, than: &SubmissionQueue) {
        let others = self.all_submissions().filter(|other| other.id != than.id);
        others.for_each(|other| other.bell.ring(None));
    }

    /// Ends the work: tasks finish what they have begun, and post nothing more. Shadow doorbells end. Of
    /// commands that take long only what the disk does now is finished.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.interest.end();
        self.end_place();
        self.changed.wake_all();
        self.ring_all();
    }

    /// Ends the work as [`Queues::stop`] does, but what had begun completes: its completions are deferred.
    pub(crate) fn stop_and_defer(&self) {
        self.defers.store(true, Ordering::SeqCst);
        self.stop();
    }

    /// Whether completions are deferred although the work is to end.
    pub(crate) fn defers(&self) -> bool {
        self.defers.load(Ordering::SeqCst)
    }

    /// How many completions are deferred.
    pub(crate) fn deferred(&self) -> u32 {
        self.deferred.load(Ordering::SeqCst)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Waits until the work is to end.
    pub(crate) async fn stop_requested(&self) {
        self.changed.wait_for(|| self.is_stopped().then_some(())).await;
    }

    /// Lets tasks read no commands, or read them again.
    pub(crate) fn pause(&self, paused: bool) {
        self.parks.store(false, Ordering::SeqCst);
        self.paused.store(paused, Ordering::SeqCst);
        self.ring_all();
    }

    /// Lets tasks read no commands, and wait for no sync: what the disk has yet to make durable is parked, and is gone
    /// on with if the work does not end.
    pub(crate) fn pause_and_park(&self) {
        self.parks.store(true, Ordering::SeqCst);
        self.paused.store(true, Ordering::SeqCst);
        self.ring_all();
    }

    /// Whether commands that wait for nothing but a sync are parked.
    pub(crate) fn parks(&self) -> bool {
        self.parks.load(Ordering::SeqCst)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Lets tasks read no commands any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Lets the task of a queue read no commands any more, and end.
    pub(crate) fn delete(&self, queue: &SubmissionQueue) {
        queue.delete();
        self.changed.wake_all();
    }

    /// Waits until a command of a queue that was read and cannot begin is not to begin any more, and says what it
    /// ends with.
    pub(crate) async fn ends(&self, id: u16) -> Status {
        let has_ended = || match self.submission(id.into()) {
            _ if self.is_stopped() || self.closed.load(Ordering::SeqCst) => {
                Some(Status::ABORT_REQUESTED)
            }
            Some(queue) if !queue.is_deleted() => None,
            _ => Some(Status::ABORTED_BY_DELETION),
        };
        self.changed.wait_for(has_ended).await
    }

    /// Whether commands may be read.
    pub(crate) fn is_reading(&self) -> bool {
        !self.is_paused() && !self.closed.load(Ordering::SeqCst)
    }

    /// Counts up to `most` commands that are to be read; returns how many may be.
    pub(crate) fn begin(&self, most: u32) -> u32 {
        let mut begun = 0;
        _ = self.commands.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |commands| {
            // Looked at after the commands: what is deferred does not count as one any more afterwards.
            let all = commands.saturating_add(self.deferred());
            begun = most.min(self.max_commands.saturating_sub(all));
            Some(commands + begun)
        });
        begun
    }

    /// Commands that were read and have not completed.
    pub(crate) fn under_way(&self) -> u32 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Counts commands that have ended, and lets those look again who wait for a place among
    /// those that there may be, or for the end of all.
    pub(crate) fn end(&self, count: u32) {
        if count == 0 {
            return;
        }
        if self.count_ended(count) {
            self.ring_all();
        }
    }

    /// Counts commands that have ended, at least one. Returns whether somebody may wait for their places.
    fn count_ended(&self, count: u32) -> bool {
        let before = self.commands.fetch_sub(count, Ordering::SeqCst);
        if before == count {
            self.changed.wake_all();
        }
        before >= self.max_commands
    }

    /// Waits until no command is under way.
    pub(crate) async fn idle(&self) {
        let is_idle = || (self.commands.load(Ordering::SeqCst) == 0).then_some(());
        self.changed.wait_for(is_idle).await;
    }

    /// A doorbell was written.
    fn doorbell(&self, dma: &Attachment, bell: usize, value: u32) {
        if !self.hear(dma, bell, value) {
            self.notice_invalid_register();
        }
    }

    /// A doorbell was written: those of submission queues have even numbers. Returns whether it is one of a queue.
    fn hear(&self, dma: &Attachment, bell: usize, value: u32) -> bool {
        let is_valid = if bell.is_multiple_of(2) {
            self.submission(bell / 2).map(|queue| queue.set_tail(dma, value))
        } else {
            self.completion(bell / 2).map(|queue| {
                let heard = queue.set_head(self.host(dma), value);
                if heard.wakes {
                    self.ring_all();
                }
                !heard.invalid
            })
        };
        if is_valid == Some(false) {
            self.notice_invalid_value();
        }
        is_valid.is_some()
    }

    fn notice_invalid_register(&self) {
        self.invalid_register.store(true, Ordering::SeqCst);
        self.ring_admin();
    }

    /// Looks at the page of doorbells that the host maps. Returns whether any of a queue has moved.
    fn look(&self, dma: &Attachment) -> bool {
        let page = self.page_of_doorbells.get().filter(|_| !self.is_stopped());
        page.is_some_and(|page| {
            let hear = |bell, value| self.hear(dma, bell, value);
            page.hear_moved(hear, |_| self.notice_invalid_register())
        })
    }

    /// Looks again and again, for a moment, whether the host moves the doorbell of a queue that it maps, or another one.
    /// So a host that works on what has just completed is heard sooner than if this was left to whoever polls.
    pub(crate) fn linger(&self, dma: &Attachment, queue: &SubmissionQueue) -> bool {
        let Some(page) = self.page_of_doorbells.get() else { return false };
        for look in 1..=LOOKS_AT_PAGE {
            if page.has_moved(2 * usize::from(queue.id)) || queue.bell.is_rung() {
                return true;
            }
            if look % LOOKS_AT_OTHERS == 0 && self.look(dma) {
                return false;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn ring_admin(&self) {
        if let Some(admin) = self.submission(0) {
            admin.bell.ring(None);
        }
    }

    /// A doorbell had a value that is none of its queue.
    pub(crate) fn notice_invalid_value(&self) {
        self.invalid_value.store(true, Ordering::SeqCst);
        self.ring_admin();
    }

    /// Lets the admin queue look whether events can be posted.
    pub(crate) fn notice_events(&self) {
        self.keep_events();
        self.ring_admin();
    }

    /// The admin queue is to look for events when it is rung next.
    pub(crate) fn keep_events(&self) {
        self.events.store(true, Ordering::SeqCst);
    }

    /// Whether there may be events that can be posted.
    pub(crate) fn take_events(&self) -> bool {
        self.events.swap(false, Ordering::SeqCst)
    }

    /// Takes what was wrong about doorbells: written to none, and an invalid value.
    pub(crate) fn take_doorbell_errors(&self) -> (bool, bool) {
        let take = |event: &AtomicBool| event.swap(false, Ordering::SeqCst);
        (take(&self.invalid_register), take(&self.invalid_value))
    }
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queues").field("commands", &self.commands).finish_non_exhaustive()
    }
}

/// Where doorbells arrive, without the device's lock.
#[derive(Debug, Default)]
pub(crate) struct Doorbells {
    /// `None`: the controller is not enabled.
    queues: Mutex<Option<Arc<Queues>>>,
}

impl Doorbells {
    /// From now on doorbells are those of these queues.
    pub(crate) fn set(&self, queues: Option<Arc<Queues>>) {
        *lock(&self.queues) = queues;
    }
}

impl Doorbells {
    /// Lets the admin queue look whether events can be posted, if the controller is enabled.
    pub(crate) fn notice_events(&self) {
        let queues = lock(&self.queues).clone();
        if let Some(queues) = queues {
            queues.notice_events();
        }
    }
}

impl Doorbells {
    /// Looks at doorbells that the host maps.
    pub(crate) fn look(&self, dma: &Attachment) {
        let queues = lock(&self.queues).clone();
        if let Some(queues) = queues {
            queues.look(dma);
        }
    }
}

impl DataPath for Doorbells {
    fn doorbell(&self, bell: usize, value: Option<u64>, dma: &Attachment) {
        let queues = lock(&self.queues).clone();
        if let Some(queues) = queues {
            // A doorbell that was stored to through a mapping rings without a value, and is looked at.
            queues.doorbell(dma, bell, value.unwrap_or(0) as u32);
        }
    }
}
