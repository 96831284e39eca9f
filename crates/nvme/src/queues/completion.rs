//! A completion queue (3.3.1.2, 3.3.3.2).
//!
//! A place is *reserved* before a command is read, so that a command that was read always has a place for
//! its completion. Whoever posts *takes* places in turn, under the queue's lock, writes the entries, and
//! then raises the interrupt. So no two write one place, and no entry is written over one that the host
//! has not taken.
//!
//! While the host lets the device reach no memory (bus mastering is off), or there is too little of ours to reach it by
//! message, entries are *deferred*: they keep their places, nobody waits for them, and they are written once that is
//! possible. They outlast a pause, a save, and
//! a close that keeps the state.

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::dma::{Attachment, Batch, Reach};
use vfiod_core::{MemoryCharge, Result};
use vfiod_sync::atomic::{AtomicU32, Ordering, fence};
use vfiod_sync::{Mutex, lock, try_lock};

use super::doorbell::{Doorbell, DoorbellPlace};
use super::for_now::is_for_now;
use crate::vectors::{Posted, Raise, Vectors};
use vfiod_nvme_spec::completion::{BEFORE_PHASE, LEN};
use vfiod_nvme_spec::{Completion, Status};

/// What does not change about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) base: u64,
    pub(crate) entries: u32,
    /// The interrupt vector; `None`: no interrupts.
    pub(crate) vector: Option<u16>,
}

/// A completion queue.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    pub(crate) layout: Layout,
    state: Mutex<State>,
    /// What the user is charged for it.
    charge: Arc<MemoryCharge>,
}

/// What a queue reaches its host by.
#[derive(Clone, Copy)]
pub(crate) struct Host<'a> {
    pub(crate) dma: &'a Attachment,
    pub(crate) vectors: &'a Vectors,
    pub(crate) raise: &'a dyn Raise,
    /// Interrupts may wait for others (5.27.1.6): those of I/O queues.
    pub(crate) coalesces: bool,
    /// Counts the entries of all queues that are deferred.
    pub(crate) deferred: &'a AtomicU32,
}

/// How far a queue has come.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Its doorbell: the next entry that the host takes.
    pub(crate) head: Doorbell,
    /// The next place that is written.
    pub(crate) tail: u32,
    /// The phase tag of an entry that is written there.
    pub(crate) phase: bool,
    /// Places from `tail` on that are promised.
    reserved: u32,
    /// Somebody waits for places.
    awaited: bool,
    /// The vector knows that there are entries.
    signalled: bool,
    /// Entries whose places are taken, and which are to be written.
    deferred: Vec<Entry>,
}

/// An entry that has its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) place: u32,
    pub(crate) phase: bool,
    pub(crate) completion: Completion,
}

/// Entries that are being written. What is left when this is dropped is deferred.
struct Writing<'a, E: Iterator<Item = Entry> + Clone> {
    queue: &'a CompletionQueue,
    deferred: &'a AtomicU32,
    entries: E,
    written: usize,
    /// They were deferred before.
    again: bool,
}

impl<E: Iterator<Item = Entry> + Clone> Drop for Writing<'_, E> {
    fn drop(&mut self) {
        let mut left = self.entries.clone().skip(self.written).peekable();
        if left.peek().is_some() {
            let mut state = lock(&self.queue.state);
            let before = state.deferred.len();
            state.deferred.extend(left);
            let count = state.deferred.len() - before;
            if !self.again {
                self.deferred.fetch_add(count as u32, Ordering::SeqCst);
            }
        }
        if self.again {
            self.deferred.fetch_sub(self.written as u32, Ordering::SeqCst);
        }
    }
}

/// What is to be done when completions were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Their interrupt waits for others: the vector is flushed ([`Vectors::flush`]) after this time.
    pub(crate) held: Option<Duration>,
    /// The host has taken entries: others that wait for places are to look.
    pub(crate) wakes: bool,
    /// The host has stored a value that is none of the queue.
    pub(crate) invalid: bool,
}

/// What the host has said by the doorbell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeadMoved {
    /// It has taken entries: those who wait for places are to look.
    pub(crate) wakes: bool,
    /// It has written, or stored, a value that is none of the queue: past the end, or past the last entry.
    pub(crate) invalid: bool,
}

/// Places that were reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) count: u32,
    /// The host has taken entries: others that wait for places are to look.
    pub(crate) wakes: bool,
    /// The host has stored a value that is none of the queue.
    pub(crate) invalid: bool,
}

impl CompletionQueue {
    pub(crate) fn new(layout: Layout) -> Self {
        Self::restored(layout, Doorbell::new(layout.entries, 0), (0, true), Vec::new())
    }

    /// A queue that has come so far, with these entries to be written.
    pub(crate) fn restored(
        layout: Layout,
        head: Doorbell,
        (tail, phase): (u32, bool),
        deferred: Vec<Entry>,
    ) -> Self {
        let signalled = head.value() != tail;
        let state = State { head, tail, phase, reserved: 0, awaited: false, signalled, deferred };
        Self { layout, state: Mutex::new(state), charge: Arc::default() }
    }

    /// The same queue, which the user is charged for.
    pub(crate) fn charged(self, charge: Arc<MemoryCharge>) -> Self {
        Self { charge, ..self }
    }

    pub(crate) fn charge(&self) -> &Arc<MemoryCharge> {
        &self.charge
    }

    /// How far it has come.
    pub(crate) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// For the operator, without waiting for whoever uses the queue: how many entries the host has not taken,
    /// and whether the doorbell is in pages.
    pub(crate) fn try_view(&self) -> Option<(u32, bool)> {
        let state = try_lock(&self.state)?;
        Some((self.used(&state), state.head.is_shadowed()))
    }

    fn used(&self, state: &State) -> u32 {
        (state.tail + self.layout.entries - state.head.value()) % self.layout.entries
    }

    /// Reserves up to `most` places. If there are fewer, the caller is among those who are to look again
    /// when the host has taken entries: this, [`CompletionQueue::post`] and
    /// [`CompletionQueue::set_head`] say when. The host is asked to write the register then.
    ///
    /// # Errors
    /// Those of the memory of shadow doorbells.
    pub(crate) fn reserve(&self, host: Host<'_>, most: u32) -> Result<Reserved> {
        let mut state = lock(&self.state);
        let others = std::mem::take(&mut state.awaited);
        let (mut count, mut moved) = (0, false);
        loop {
            // One entry is left free: a full queue could not be told from an empty one (3.3.1.2).
            let free = self.layout.entries - 1 - self.used(&state) - state.reserved;
            let more = free.min(most - count);
            state.reserved += more;
            count += more;
            if count == most {
                break;
            }
            state.awaited = true;
            if !self.follow(&mut state, host)? {
                break;
            }
            moved = true;
        }
        state.awaited = count < most || (others && !moved);
        let invalid = state.head.take_invalid();
        Ok(Reserved { count, wakes: others && moved, invalid })
    }

    /// Looks how far the host has come, and asks it to tell what there is to know: that it has taken any
    /// entry, if somebody waits for places; that it has taken the last one, if the pin is to fall then.
    /// Returns whether it has taken entries.
    fn follow(&self, state: &mut State, host: Host<'_>) -> Result<bool> {
        let mut moved = false;
        loop {
            let (entries, limit) = (self.layout.entries, self.used(state));
            let follows_pin = limit > 0 && self.layout.vector.is_some() && host.raise.is_pin();
            let event = match () {
                () if state.awaited => Some(state.head.value()),
                () if follows_pin => Some((state.tail + entries - 1) % entries),
                () => None,
            };
            let looked = match event {
                Some(event) => state.head.ask(host.dma, event, limit),
                None => state.head.look(host.dma, limit),
            };
            match looked {
                Ok(true) => {
                    moved = true;
                    self.taken(state, host);
                }
                Ok(false) => return Ok(moved),
                // The host lets the device reach no memory for now.
                Err(error) if is_for_now(&error) => return Ok(moved),
                Err(error) => return Err(error),
            }
        }
    }

    /// The host has taken entries: with the last one its interrupt falls.
    fn taken(&self, state: &mut State, host: Host<'_>) {
        if state.head.value() == state.tail
            && std::mem::take(&mut state.signalled)
            && let Some(vector) = self.layout.vector
        {
            host.vectors.taken(host.raise, vector);
        }
    }

    /// Gives reserved places back. Returns whether somebody waits for them.
    pub(crate) fn release(&self, count: u32) -> bool {
        let mut state = lock(&self.state);
        state.reserved -= count;
        count > 0 && std::mem::take(&mut state.awaited)
    }

    /// Gives reserved places back for which nothing could be read for now, and wakes nobody: whoever waits for them
    /// could not read either, and whoever gives them back comes again.
    pub(crate) fn give_back(&self, count: u32) {
        lock(&self.state).reserved -= count;
    }

    /// Takes reserved places for completions.
    fn take<'a>(
        &self,
        completions: &'a [Completion],
    ) -> impl Iterator<Item = Entry> + Clone + use<'a> {
        let count = completions.len() as u32;
        let mut state = lock(&self.state);
        let (entries, first, phase) = (self.layout.entries, state.tail, state.phase);
        let next = (first + count) % entries;
        state.reserved -= count;
        // There are fewer than entries.
        state.phase ^= next < first;
        state.tail = next;
        drop(state);
        (0..count).zip(completions).map(move |(n, completion)| {
            let (place, round) = ((first + n) % entries, first + n >= entries);
            Entry { place, phase: phase ^ round, completion: *completion }
        })
    }

    /// Writes completions, for each of which a place is reserved, then interrupts. While the
    /// memory cannot be reached for now they are deferred, and so are those that are left where the result is dropped.
    ///
    /// # Errors
    /// Those of the memory: the host waits for an entry that does not come, or is not heard any more.
    pub(crate) async fn post(&self, host: Host<'_>, completions: &[Completion]) -> Result<Written> {
        let is_error = |completion: &Completion| completion.status != Status::SUCCESS;
        let can_wait = host.coalesces && !completions.iter().any(is_error);
        self.write(host, self.take(completions), can_wait, false).await
    }

    /// Defers completions, for each of which a place is reserved.
    pub(crate) fn defer(&self, host: Host<'_>, completions: &[Completion]) {
        drop(self.writing(host, self.take(completions), false));
    }

    /// Writes what was deferred, as far as that is possible now.
    ///
    /// # Errors
    /// As [`CompletionQueue::post`].
    pub(crate) async fn write_deferred(&self, host: Host<'_>) -> Result<Written> {
        let entries = std::mem::take(&mut lock(&self.state).deferred);
        if entries.is_empty() {
            return Ok(Written::default());
        }
        self.write(host, entries.iter().copied(), false, true).await
    }

    fn writing<'a, E: Iterator<Item = Entry> + Clone>(
        &'a self,
        host: Host<'a>,
        entries: E,
        again: bool,
    ) -> Writing<'a, E> {
        Writing { queue: self, deferred: host.deferred, entries, written: 0, again }
    }

    async fn write(
        &self,
        host: Host<'_>,
        entries: impl Iterator<Item = Entry> + Clone,
        can_wait: bool,
        again: bool,
    ) -> Result<Written> {
        let mut writing = self.writing(host, entries, again);
        let Writing { entries, written, .. } = &mut writing;
        match write(host.dma, self.layout.base, entries, written).await {
            Err(error) if !is_for_now(&error) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let count = writing.written as u32;
        drop(writing);
        if count == 0 { Ok(Written::default()) } else { self.signal(host, count, can_wait) }
    }

    /// Interrupts, unless the host has taken all entries already.
    fn signal(&self, host: Host<'_>, count: u32, can_wait: bool) -> Result<Written> {
        let Some(vector) = self.layout.vector else { return Ok(Written::default()) };
        let mut state = lock(&self.state);
        let follows = state.head.is_in_memory() && host.raise.is_pin();
        // Whoever is told of this value later finds nothing new.
        let wakes = follows && self.follow(&mut state, host)? && std::mem::take(&mut state.awaited);
        let invalid = state.head.take_invalid();
        if state.head.value() == state.tail {
            return Ok(Written { held: None, wakes, invalid });
        }
        let first = !std::mem::replace(&mut state.signalled, true);
        let held = host.vectors.entries(host.raise, vector, Posted { count, first, can_wait });
        Ok(Written { held, wakes, invalid })
    }

    /// The host has written the register: it has taken entries up to `head`.
    pub(crate) fn set_head(&self, host: Host<'_>, head: u32) -> HeadMoved {
        let mut state = lock(&self.state);
        let limit = self.used(&state);
        let heard = state.head.write(host.dma, head, limit);
        self.taken(&mut state, host);
        let wakes = heard.moved && std::mem::take(&mut state.awaited);
        // Where its page cannot be reached, a queue's task finds that out.
        let moved = self.follow(&mut state, host).unwrap_or(false);
        let wakes = wakes | (moved && std::mem::take(&mut state.awaited));
        HeadMoved { wakes, invalid: heard.invalid | state.head.take_invalid() }
    }

    /// From now on its doorbell, the one of queue `id`, is there, too.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn set_place(
        &self,
        dma: &Attachment,
        place: &DoorbellPlace,
        id: usize,
    ) -> Result<()> {
        lock(&self.state).head.set_place(dma, place, 2 * id + 1)
    }

    pub(crate) fn end_place(&self) {
        lock(&self.state).head.end_place();
    }

    /// The entries that are deferred.
    pub(crate) fn deferred(&self) -> Vec<Entry> {
        lock(&self.state).deferred.clone()
    }

    /// Whether there are any.
    pub(crate) fn is_behind(&self) -> bool {
        !lock(&self.state).deferred.is_empty()
    }

    /// The queue ends: its vector knows of no entries of it any more.
    pub(crate) fn end(&self, vectors: &Vectors, raise: &dyn Raise) {
        let signalled = std::mem::take(&mut lock(&self.state).signalled);
        if let (true, Some(vector)) = (signalled, self.layout.vector) {
            vectors.taken(raise, vector);
        }
    }
}

/// Writes entries of a queue that begins at `base`, but for those that were `written`, the phase tag of each last.
async fn write(
    dma: &Attachment,
    base: u64,
    entries: &(impl Iterator<Item = Entry> + Clone),
    written: &mut usize,
) -> Result<()> {
    write_mapped(dma, base, entries.clone(), written)?;
    for entry in entries.clone().skip(*written) {
        let (at, bytes, last) = entry.encode(base);
        dma.write(at, &bytes).await?;
        dma.write(at.saturating_add(BEFORE_PHASE as u64), &last.to_le_bytes()).await?;
        *written += 1;
    }
    Ok(())
}

/// Writes entries as long as their memory is mapped, and counts them. All are visible when this returns: whoever looks then
/// how far the host has come sees whether it has taken them.
fn write_mapped(
    dma: &Attachment,
    base: u64,
    entries: impl Iterator<Item = Entry>,
    written: &mut usize,
) -> Result<()> {
    let mut batch: Batch<'_> = dma.batch()?;
    for entry in entries {
        let (at, bytes, last) = entry.encode(base);
        if batch.write(at, &bytes)? == Reach::Message {
            break;
        }
        let at = at.saturating_add(BEFORE_PHASE as u64);
        if batch.store(at, last.to_le(), Ordering::Release)? == Reach::Message {
            break;
        }
        *written += 1;
    }
    fence(Ordering::SeqCst);
    Ok(())
}

impl Entry {
    /// Where it is in a queue that begins at `base`, its bytes but for the last dword, and that.
    fn encode(&self, base: u64) -> (u64, [u8; BEFORE_PHASE], u32) {
        // Past the end of all memory nothing can be written.
        let at = base.saturating_add(u64::from(self.place) * LEN as u64);
        let (bytes, last) = self.completion.encode(self.phase);
        (at, bytes, last)
    }
}
