//! A completion queue (3.3.1.2, 3.3.3.2).
//!
//! A place is *reserved* before a command is read, so that a command that was read always has a place for
//! its completion. Whoever posts *takes* places in turn, under the queue's lock, writes the entries, and
//! then raises the interrupt. So no two write one place, and no entry is written over one that the host
//! has not taken.

use vfiod_core::Result;
use vfiod_core::dma::{Attachment, Reach};
use vfiod_sync::atomic::Ordering;
use vfiod_sync::{Mutex, lock};

use crate::spec::Completion;
use crate::spec::completion::{BEFORE_PHASE, LEN};
use crate::vectors::{Raise, Vectors};

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
}

/// How far a queue has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// The next entry that the host takes.
    pub(crate) head: u32,
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
}

/// A place that was taken, and its phase tag.
pub(crate) type Place = (u64, bool);

/// A doorbell's value is none of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidValue;

impl CompletionQueue {
    pub(crate) fn new(layout: Layout) -> Self {
        Self::restored(layout, 0, 0, true)
    }

    /// A queue that has come so far.
    pub(crate) fn restored(layout: Layout, head: u32, tail: u32, phase: bool) -> Self {
        let signalled = head != tail;
        let state = State { head, tail, phase, reserved: 0, awaited: false, signalled };
        Self { layout, state: Mutex::new(state) }
    }

    /// How far it has come.
    pub(crate) fn state(&self) -> State {
        *lock(&self.state)
    }

    fn used(&self, state: &State) -> u32 {
        (state.tail + self.layout.entries - state.head) % self.layout.entries
    }

    /// Reserves up to `most` places; returns how many. If there are fewer, the caller is among those
    /// whom [`CompletionQueue::set_head`] says are to look again.
    pub(crate) fn reserve(&self, most: u32) -> u32 {
        let mut state = lock(&self.state);
        // One entry is left free: a full queue could not be told from an empty one (3.3.1.2).
        let free = self.layout.entries - 1 - self.used(&state) - state.reserved;
        let reserved = free.min(most);
        state.reserved += reserved;
        state.awaited |= reserved < most;
        reserved
    }

    /// Gives reserved places back. Returns whether somebody waits for them.
    pub(crate) fn release(&self, count: u32) -> bool {
        let mut state = lock(&self.state);
        state.reserved -= count;
        count > 0 && std::mem::take(&mut state.awaited)
    }

    /// Takes `count` reserved places.
    fn take(&self, count: usize) -> Vec<Place> {
        let mut state = lock(&self.state);
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            places.push(self.next(&mut state));
        }
        places
    }

    fn next(&self, state: &mut State) -> Place {
        let place = (self.layout.base + u64::from(state.tail) * LEN as u64, state.phase);
        state.reserved -= 1;
        state.tail += 1;
        if state.tail == self.layout.entries {
            (state.tail, state.phase) = (0, !state.phase);
        }
        place
    }

    /// Writes completions, for each of which a place is reserved, then interrupts.
    ///
    /// # Errors
    /// Those of the memory: the host waits for an entry that does not come.
    pub(crate) async fn post(
        &self,
        dma: &Attachment,
        completions: &[Completion],
        vectors: &Vectors,
        raise: &dyn Raise,
    ) -> Result<()> {
        for (place, completion) in self.take(completions.len()).iter().zip(completions) {
            let (bytes, last) = completion.encode(place.1);
            if !write_mapped(dma, place.0, &bytes, last)? {
                dma.write(place.0, &bytes).await?;
                dma.write(place.0 + BEFORE_PHASE as u64, &last.to_le_bytes()).await?;
            }
        }
        self.signal(vectors, raise);
        Ok(())
    }

    /// Interrupts, unless the host has taken all entries already.
    fn signal(&self, vectors: &Vectors, raise: &dyn Raise) {
        let Some(vector) = self.layout.vector else { return };
        let mut state = lock(&self.state);
        if state.head == state.tail {
            return;
        }
        let first = !std::mem::replace(&mut state.signalled, true);
        vectors.entries(raise, vector, first);
    }

    /// The host has taken entries up to `head`. Returns whether somebody waits for places.
    ///
    /// # Errors
    /// The value is past the end, or past the last entry.
    pub(crate) fn set_head(
        &self,
        head: u32,
        vectors: &Vectors,
        raise: &dyn Raise,
    ) -> Result<bool, InvalidValue> {
        let mut state = lock(&self.state);
        let entries = self.layout.entries;
        if head >= entries || (head + entries - state.head) % entries > self.used(&state) {
            return Err(InvalidValue);
        }
        let moved = state.head != head;
        state.head = head;
        if head == state.tail
            && std::mem::take(&mut state.signalled)
            && let Some(vector) = self.layout.vector
        {
            vectors.taken(raise, vector);
        }
        Ok(moved && std::mem::take(&mut state.awaited))
    }

    /// The queue ends: its vector knows of no entries of it any more.
    pub(crate) fn end(&self, vectors: &Vectors, raise: &dyn Raise) {
        let signalled = std::mem::take(&mut lock(&self.state).signalled);
        if let (true, Some(vector)) = (signalled, self.layout.vector) {
            vectors.taken(raise, vector);
        }
    }
}

/// Whether the entry was written, its phase tag last; otherwise the memory is reached by message.
fn write_mapped(dma: &Attachment, at: u64, bytes: &[u8; BEFORE_PHASE], last: u32) -> Result<bool> {
    let mut batch = dma.batch()?;
    if batch.write(at, bytes)? == Reach::Message {
        return Ok(false);
    }
    let stored = batch.store(at + BEFORE_PHASE as u64, last.to_le(), Ordering::SeqCst)?;
    Ok(stored == Reach::Mapped)
}
