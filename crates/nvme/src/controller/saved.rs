//! The saved state: properties, features, events, counters, how far each queue has come, and the completions that
//! could not be written. A controller is saved when no command is under way.

use std::sync::Arc;

use vfiod_core::MemoryCharge;
use vfiod_pci::prelude::*;
use vfiod_sync::lock;

use super::deferred::{self, Deferred};
use super::{Nvme, Properties, VECTORS, digits, forget_rings};
use crate::admin::events::{Events, PENDING, TYPES};
use crate::changes::{Changed, Set, WORDS};
use crate::common::ERROR_ENTRIES;
use crate::counters::SAVED;
use crate::error_recovery::{self, ErrorRecovery};
use crate::features::Features;
use crate::limits::{COMPLETION_QUEUE_MEMORY, MAX_EVENT_REQUESTS, SUBMISSION_QUEUE_MEMORY};
use crate::queues::completion::Entry;
use crate::queues::doorbell::{FAR, Moved};
use crate::queues::{
    CompletionQueue, Doorbell, DoorbellPlace, Layout, Pages, Queues, SubmissionQueue,
};
use crate::timestamp::Timestamp;
use vfiod_nvme_spec::log::ERROR_LEN;
use vfiod_nvme_spec::registers::{
    CC_WRITABLE, Configuration, FATAL, LARGEST_PAGE, MAX_ENTRIES, QUEUES, READY, SHUT_DOWN,
    SHUTDOWN,
};

/// Queues by number: serde has no arrays of 65.
type Table<T> = [[T; 13]; 5];
const _: () = assert!(13 * 5 == QUEUES);

/// The phase tag of what is written next.
const PHASE: u32 = 1;
/// The completion queue has a vector.
const HAS_VECTOR: u32 = 2;
/// No page: this is the address of none.
const NO_PAGE: u64 = u64::MAX;
/// No request.
const NONE: u32 = u32::MAX;

vfiod_pci::image! {
    /// What is saved.
    pub struct NvmeImage {
        properties: <Properties as Registers>::Image,
        features: Features,
        saved_features: Features,
        #[serde(with = "error_recovery::pairs")]
        error_recovery: [u8; error_recovery::LEN],
        #[serde(with = "error_recovery::pairs")]
        saved_error_recovery: [u8; error_recovery::LEN],
        events: EventsImage,
        submissions: Table<SubmissionImage>,
        completions: Table<CompletionImage>,
        counters: [u64; SAVED],
        /// Namespaces that have changed since the host has read their list, a bit each.
        changed_namespaces: [u64; WORDS],
        /// The namespaces that there are, a bit each, and who they are.
        namespaces: [u64; WORDS],
        identities: u64,
        /// What the host's clock is ahead of that of this machine, in milliseconds.
        timestamp: u64,
        #[serde(with = "digits")]
        errors: [u8; ERROR_LEN * ERROR_ENTRIES],
        /// 1: there are queues.
        has_queues: u32,
        /// 1: the host was told that a sync has failed.
        told_of_sync: u32,
        /// 1: the host has set its clock.
        timestamp_is_set: u32,
        /// 1: namespaces have changed of which no event tells.
        has_new_changes: u32,
        /// 0.
        zero: u32,
        /// Of CC: the size of a memory page when it was enabled.
        page: u32,
        /// The pages of shadow doorbells and of event indices; [`NO_PAGE`]: there are none.
        shadow_doorbells: u64,
        event_indices: u64,
        /// Completions that wait until the host lets the device reach memory.
        #[serde(with = "digits")]
        deferred: Deferred,
    }

    /// A submission queue. No entries: there is none.
    #[derive(Copy)]
    pub struct SubmissionImage {
        base: u64,
        entries: u32,
        head: u32,
        tail: u32,
        completion_queue: u32,
        moved: MovedImage,
    }

    /// A completion queue. No entries: there is none.
    #[derive(Copy)]
    pub struct CompletionImage {
        base: u64,
        entries: u32,
        head: u32,
        tail: u32,
        vector: u32,
        flags: u32,
        /// 0.
        zero: u32,
        moved: MovedImage,
    }

    /// How a doorbell has come to its value: how far it is past what was written to the register, and what
    /// its page of shadow doorbells had.
    #[derive(Copy)]
    pub struct MovedImage {
        lag: u32,
        seen: u32,
    }

    /// Requests for events, and events.
    pub struct EventsImage {
        requests: [u32; MAX_EVENT_REQUESTS],
        aborted: [u32; MAX_EVENT_REQUESTS],
        pending: u32,
        masked: u32,
    }
}

fn bad(what: String) -> Error {
    Error::new(Errno::INVAL, what)
}

impl MovedImage {
    const NOT: Self = Self { lag: 0, seen: 0 };

    fn save(doorbell: &Doorbell) -> Self {
        let Moved { lag, seen } = doorbell.moved();
        Self { lag, seen }
    }

    /// A doorbell that has come so far: the `bell`th.
    fn restored(&self, queues: &Queues, ring: (u32, u32), bell: usize) -> Result<Doorbell> {
        let Self { lag, seen } = *self;
        let place = queues.place();
        if lag >= FAR || (place.is_none() && (lag, seen) != (0, 0)) {
            return Err(bad(format!(
                "doorbell {bell}: {lag} past its register, {seen} in its page"
            )));
        }
        Ok(Doorbell::restored(ring, Moved { lag, seen }, (place.as_ref(), bell)))
    }
}

impl SubmissionImage {
    const ABSENT: Self =
        Self { base: 0, entries: 0, head: 0, tail: 0, completion_queue: 0, moved: MovedImage::NOT };

    fn save(queue: &SubmissionQueue) -> Self {
        let tail = queue.tail();
        Self {
            base: queue.base,
            entries: queue.entries,
            head: queue.head(),
            tail: tail.value(),
            completion_queue: queue.completion_queue.into(),
            moved: MovedImage::save(&tail),
        }
    }

    fn restored(&self, id: usize, queues: &Queues) -> Result<SubmissionQueue> {
        let Self { base, entries, head, tail, completion_queue, moved } = *self;
        check_ring(&format!("submission queue {id}"), queues, base, entries, &[head, tail])?;
        let completions = queues.completion(completion_queue as usize);
        let is_own = (completion_queue == 0) == (id == 0);
        let completions = completions.filter(|_| is_own).ok_or_else(|| {
            bad(format!("submission queue {id}: completion queue {completion_queue} is not there"))
        })?;
        let tail = moved.restored(queues, (entries, tail), 2 * id)?;
        let (id, number) = (id as u16, completion_queue as u16);
        Ok(SubmissionQueue::restored(id, (base, entries), number, completions, (head, tail)))
    }
}

impl CompletionImage {
    const ABSENT: Self = Self {
        base: 0,
        entries: 0,
        head: 0,
        tail: 0,
        vector: 0,
        flags: 0,
        zero: 0,
        moved: MovedImage::NOT,
    };

    fn save(queue: &CompletionQueue) -> Self {
        let state = queue.state();
        let Layout { base, entries, vector } = queue.layout;
        let has_vector = u32::from(vector.is_some()) * HAS_VECTOR;
        Self {
            base,
            entries,
            head: state.head.value(),
            tail: state.tail,
            vector: vector.unwrap_or(0).into(),
            flags: (u32::from(state.phase) * PHASE) | has_vector,
            zero: 0,
            moved: MovedImage::save(&state.head),
        }
    }

    fn restored(
        &self,
        id: usize,
        queues: &Queues,
        entries_left: &mut Vec<(u32, Entry)>,
    ) -> Result<CompletionQueue> {
        let Self { base, entries, head, tail, vector, flags, zero, moved } = *self;
        check_ring(&format!("completion queue {id}"), queues, base, entries, &[head, tail])?;
        if vector as usize >= VECTORS || flags & !(PHASE | HAS_VECTOR) != 0 || zero != 0 {
            return Err(bad(format!("completion queue {id}: vector {vector}, flags {flags:#x}")));
        }
        let vector = (flags & HAS_VECTOR != 0).then_some(vector as u16);
        let layout = Layout { base, entries, vector };
        let head = moved.restored(queues, (entries, head), 2 * id + 1)?;
        let tail = (tail, flags & PHASE != 0);
        let own = deferred::take(entries_left, id, (entries, head.value()), tail)?;
        Ok(CompletionQueue::restored(layout, head, tail, own))
    }
}

/// That a queue can be where it is said to be.
fn check_ring(what: &str, queues: &Queues, base: u64, entries: u32, at: &[u32]) -> Result<()> {
    let sound = (2..=MAX_ENTRIES).contains(&entries)
        && at.iter().all(|at| *at < entries)
        && base.is_multiple_of(queues.page.min(4096));
    if sound { Ok(()) } else { Err(bad(format!("{what}: {entries} entries at {base:#x}, {at:?}"))) }
}

impl EventsImage {
    fn save(events: &Events) -> Self {
        let Events { requests, aborted, pending, masked } = events;
        let list =
            |ids: &[u16]| std::array::from_fn(|n| ids.get(n).map_or(NONE, |id| u32::from(*id)));
        Self {
            requests: list(requests),
            aborted: list(aborted),
            pending: *pending,
            masked: *masked,
        }
    }

    fn restored(&self) -> Result<Events> {
        let Self { requests, aborted, pending, masked } = self;
        let list = |ids: &[u32]| -> Result<Vec<u16>> {
            let there = ids.iter().take_while(|id| **id != NONE);
            let after = ids.iter().skip(there.clone().count());
            let ids: Option<Vec<u16>> = there.map(|id| u16::try_from(*id).ok()).collect();
            match ids {
                Some(ids) if after.clone().all(|id| *id == NONE) => Ok(ids),
                _ => Err(bad("requests for events that cannot be".to_owned())),
            }
        };
        let (requests, aborted) = (list(requests)?, list(aborted)?);
        let too_many = requests.len() + aborted.len() > MAX_EVENT_REQUESTS;
        if too_many || pending & !PENDING != 0 || masked & !TYPES != 0 {
            return Err(bad(format!("events {pending:#x}, of which {masked:#x} are masked")));
        }
        Ok(Events { requests, aborted, pending: *pending, masked: *masked })
    }
}

/// A table of what `get` gives for each number.
fn table<T>(get: impl Fn(usize) -> T) -> Table<T> {
    std::array::from_fn(|row| std::array::from_fn(|n| get(row * 13 + n)))
}

/// The queues of an image.
fn save_queues(queues: Option<&Queues>) -> (Table<SubmissionImage>, Table<CompletionImage>) {
    let submission = |id| queues?.submission(id).map(|queue| SubmissionImage::save(&queue));
    let completion = |id| queues?.completion(id).map(|queue| CompletionImage::save(&queue));
    (
        table(|id| submission(id).unwrap_or(SubmissionImage::ABSENT)),
        table(|id| completion(id).unwrap_or(CompletionImage::ABSENT)),
    )
}

/// What the user is charged for a queue.
type Charged = Arc<MemoryCharge>;

/// Makes the queues of an image, with what was deferred, by completion queue, and what is charged for submission queues
/// and completion queues, by number.
fn restore_queues(
    queues: &Queues,
    (submissions, completions): (&Table<SubmissionImage>, &Table<CompletionImage>),
    mut deferred: Vec<(u32, Entry)>,
    charge: (impl Fn(usize) -> Result<Charged>, impl Fn(usize) -> Result<Charged>),
) -> Result<()> {
    for (id, image) in completions.as_flattened().iter().enumerate() {
        if image.entries != 0 {
            let queue = image.restored(id, queues, &mut deferred)?.charged((charge.1)(id)?);
            if let (true, Some(vector)) = (image.head != image.tail, queue.layout.vector) {
                queues.vectors.restore(vector);
            }
            queues.add_completion(id, Arc::new(queue));
        }
    }
    for (id, image) in submissions.as_flattened().iter().enumerate() {
        if image.entries != 0 {
            let queue = image.restored(id, queues)?.charged((charge.0)(id)?);
            queues.add_submission(Arc::new(queue));
        }
    }
    if let Some((id, _)) = deferred.first() {
        return Err(bad(format!("a completion of completion queue {id}, which is not there")));
    }
    match (queues.submission(0), queues.completion(0)) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(bad("an enabled controller without admin queues".to_owned())),
    }
}

impl Nvme {
    /// Begins with queues that are where they were, after a close that has kept the state.
    pub(super) fn renew_queues(&mut self, cx: &Cx<Self>) {
        let Some(before) = &self.queues else { return };
        if before.had_pages() {
            // The core rings again what was written to registers last. The pages were further on: what is before
            // that are commands that were carried out.
            forget_rings(cx, 0..2 * QUEUES);
        }
        let (submissions, completions) = save_queues(Some(before));
        let deferred = deferred::of(before);
        let queues =
            self.new_queues(Configuration((before.page.ilog2() - 12) << 7), cx.interrupts());
        let restored = self.map_doorbells(cx, &queues);
        // They cost what they did.
        let charge = (
            |id| Ok(before.submission(id).map_or_else(Arc::default, |one| one.charge().clone())),
            |id| Ok(before.completion(id).map_or_else(Arc::default, |one| one.charge().clone())),
        );
        let images = (&submissions, &completions);
        let restored = restored.and_then(|()| restore_queues(&queues, images, deferred, charge));
        if let Err(error) = restored {
            tracing::error!(device = cx.name(), %error, "cannot go on with the queues");
            self.set_status(0, FATAL);
            return;
        }
        queues.vectors.restore_mask(self.properties.mask);
        let queues = Arc::new(queues);
        self.doorbells.set(Some(queues.clone()));
        self.queues = Some(queues);
        self.show();
        self.common.counters.go_on(true);
        self.apply_features();
    }
}

impl Nvme {
    /// That a state is of the namespaces that there are: the host goes on with them.
    fn check_namespaces(&self, saved: &Set, identities: u64) -> Result<()> {
        let own = self.common.namespaces.ids();
        let words = |set: &Set| -> String {
            set.ids().map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
        };
        if *saved != own {
            let (saved, own) = (words(saved), words(&own));
            return Err(bad(format!(
                "the state is of namespaces {saved}, and the controller has {own}; give it the same images"
            )));
        }
        if identities != self.common.namespaces.digest() {
            let what = "the state is of other images, or of images of other sizes or formats, than the \
                        controller has; give it the same images";
            return Err(bad(what.to_owned()));
        }
        Ok(())
    }
}

impl Save for Nvme {
    const KIND: &'static str = "nvme";
    const VERSION: u32 = 1;
    type Image = NvmeImage;

    fn save(&self) -> NvmeImage {
        let Self {
            options: _,
            managed: _,
            running: _,
            identity: _,
            properties,
            queues,
            doorbells: _,
            shown: _,
            keeper: _,
            kept_at_end: _,
            common,
            neighbour: _,
            features,
            saved_features,
            error_recovery,
            saved_error_recovery,
            events,
            timestamp,
            told_of_sync,
            // A shutdown that is under way begins anew.
            shutdowns: _,
            polled: _,
            changes,
        } = self;
        let (submissions, completions) = save_queues(queues.as_deref());
        let pages = match queues.as_ref().and_then(|queues| queues.place()) {
            Some(DoorbellPlace::Shadow(pages)) => Some(pages),
            // What BAR 0 shares with the host is saved by the core.
            Some(DoorbellPlace::Mapped(_)) | None => None,
        };
        let mut errors = [0; ERROR_LEN * ERROR_ENTRIES];
        errors.copy_from_slice(lock(&common.errors).page().as_flattened());
        let Changed { list, is_new } = changes.save();
        NvmeImage {
            properties: properties.save_registers(),
            changed_namespaces: list.0,
            namespaces: common.namespaces.ids().0,
            identities: common.namespaces.digest(),
            has_new_changes: is_new.into(),
            zero: 0,
            features: *features,
            saved_features: *saved_features,
            error_recovery: error_recovery.encode(),
            saved_error_recovery: saved_error_recovery.encode(),
            events: EventsImage::save(events),
            submissions,
            completions,
            counters: common.counters.save(),
            timestamp: timestamp.ahead,
            errors,
            has_queues: queues.is_some().into(),
            told_of_sync: (*told_of_sync).into(),
            timestamp_is_set: timestamp.is_set.into(),
            page: queues.as_ref().map_or(0, |queues| queues.page.ilog2() - 12),
            shadow_doorbells: pages.map_or(NO_PAGE, |pages| pages.doorbells),
            event_indices: pages.map_or(NO_PAGE, |pages| pages.events),
            deferred: deferred::save(queues.as_deref()),
        }
    }

    fn restore(&mut self, cx: &Cx<Self>, image: NvmeImage) -> Result<()> {
        let NvmeImage {
            properties: properties_image,
            features,
            saved_features,
            error_recovery,
            saved_error_recovery,
            events,
            submissions,
            completions,
            counters,
            errors,
            has_queues,
            told_of_sync,
            timestamp,
            timestamp_is_set,
            page,
            shadow_doorbells,
            event_indices,
            changed_namespaces,
            namespaces,
            identities,
            has_new_changes,
            zero,
            deferred,
        } = image;
        let deferred = deferred::restore(&deferred)?;
        self.check_namespaces(&Set(namespaces), identities)?;
        let mut properties = Properties::power_on();
        properties.restore_registers(properties_image)?;
        let events = events.restored()?;
        if !features.is_sound() || !saved_features.is_sound() {
            return Err(bad("features that cannot be set".to_owned()));
        }
        let of_namespaces = [error_recovery, saved_error_recovery].map(|values| {
            let is_there = |id| self.common.namespaces.get(id).is_some();
            let values = ErrorRecovery::decode(&values, is_there);
            values.ok_or_else(|| bad("a feature of a namespace that is not there".to_owned()))
        });
        let [error_recovery, saved_error_recovery] = of_namespaces;
        let (error_recovery, saved_error_recovery) = (error_recovery?, saved_error_recovery?);
        let (status, enabled) = (properties.status, properties.configuration().enabled());
        let ready = status & READY != 0;
        let sound = match has_queues {
            // Not enabled, or it could not be.
            0 => !ready && (!enabled || status & FATAL != 0) && page == 0,
            1 => ready && page <= LARGEST_PAGE,
            _ => false,
        };
        if told_of_sync > 1 || timestamp_is_set > 1 {
            let what = format!("told_of_sync {told_of_sync}, timestamp_is_set {timestamp_is_set}");
            return Err(bad(what));
        }
        let changed = Changed { list: Set(changed_namespaces), is_new: has_new_changes == 1 };
        let can_change = |id| self.common.namespaces.can_have(id);
        if has_new_changes > 1 || zero != 0 || !changed.list.ids().all(can_change) {
            return Err(bad("changes of namespaces that cannot be".to_owned()));
        }
        let pages = Pages { doorbells: shadow_doorbells, events: event_indices };
        let no_pages = (shadow_doorbells, event_indices) == (NO_PAGE, NO_PAGE);
        let is_aligned = |at: u64| at.is_multiple_of(4096 << page.min(LARGEST_PAGE));
        let aligned = is_aligned(shadow_doorbells) && is_aligned(event_indices);
        let has_shadow = !no_pages;
        if has_shadow && self.polled.is_some() {
            return Err(bad(
                "shadow doorbells of a controller whose doorbells are mapped".to_owned()
            ));
        }
        if has_shadow && (has_queues != 1 || !aligned || shadow_doorbells == event_indices) {
            return Err(bad(format!("shadow doorbells that cannot be: {pages:x?}")));
        }
        if !sound || status & SHUTDOWN == SHUTDOWN {
            let cc = properties.configuration & CC_WRITABLE;
            return Err(bad(format!("CC {cc:#x} with CSTS {status:#x} and queues: {has_queues}")));
        }
        let queues = if has_queues == 1 {
            let queues = self.new_queues(Configuration(page << 7), cx.interrupts());
            if has_shadow {
                queues.begin_place(DoorbellPlace::Shadow(pages));
            }
            self.map_doorbells(cx, &queues)?;
            let charge = |bytes| {
                move |id| match id {
                    0 => Ok(Arc::default()),
                    _ => cx.charge_memory(bytes).map(Arc::new),
                }
            };
            let charge = (charge(SUBMISSION_QUEUE_MEMORY), charge(COMPLETION_QUEUE_MEMORY));
            restore_queues(&queues, (&submissions, &completions), deferred, charge)?;
            queues.vectors.restore_mask(properties.mask);
            if status & SHUTDOWN != 0 {
                queues.close();
            }
            if status & FATAL != 0 || !enabled {
                queues.stop();
            }
            Some(Arc::new(queues))
        } else if deferred.is_empty() {
            None
        } else {
            return Err(bad("completions without queues".to_owned()));
        };
        let heard = queues.clone().filter(|queues| !queues.is_stopped());
        self.doorbells.set(heard);
        self.properties = properties;
        self.queues = queues;
        self.show();
        (self.features, self.saved_features) = (features, saved_features);
        (self.error_recovery, self.saved_error_recovery) = (error_recovery, saved_error_recovery);
        self.apply_features();
        self.events = events;
        self.changes.restore(changed);
        self.told_of_sync = told_of_sync == 1;
        self.timestamp = Timestamp { ahead: timestamp, is_set: timestamp_is_set == 1 };
        self.common.counters.restore(counters);
        let is_used = has_queues == 1 && status & SHUTDOWN != SHUT_DOWN;
        self.common.counters.go_on(is_used);
        let (entries, _) = errors.as_chunks::<ERROR_LEN>();
        let mut page = [[0; ERROR_LEN]; ERROR_ENTRIES];
        page.copy_from_slice(entries);
        lock(&self.common.errors).restore(page);
        Ok(())
    }
}
