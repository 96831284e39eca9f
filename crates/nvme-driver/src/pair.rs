//! The rings of a queue pair (base 2.0, 3.3), and what is in flight.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::command::{COMPLETION, Command, Completion, SUBMISSION};
use crate::error::{Error, Result};
use crate::link::{Link, Wait, store_shadow};
use crate::memory::{Buffer, Data, Memory, PAGE};
use rustix::fd::BorrowedFd;

/// Bytes of an entry of a PRP list.
const ENTRY: usize = 8;
/// Bytes of data that one list of a page leads to, behind the first page.
const LISTED: u64 = PAGE / ENTRY as u64 * PAGE;

/// A submission queue with its completion queue.
#[derive(Debug)]
pub(crate) struct Pair {
    link: Arc<Link>,
    memory: Memory,
    pub(crate) id: u16,
    generation: u64,
    /// Shadow doorbells; the admin queue has none.
    shadow: Option<Arc<Buffer>>,
    entries: u32,
    pub(crate) submissions: Arc<Buffer>,
    pub(crate) completions: Arc<Buffer>,
    /// Where the next command is put, and what the doorbell was rung with.
    tail: u32,
    rung: u32,
    /// Where the next completion comes, and what the doorbell was rung with.
    head: u32,
    released: u32,
    phase: bool,
    /// By command identifier.
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Completions that nobody has taken.
    finished: VecDeque<Completion>,
    /// The controller has no queue any more.
    deleted: bool,
}

#[derive(Debug, Default)]
struct Slot {
    in_flight: bool,
    data: Option<Data>,
    /// Made when it is needed first.
    list: Option<Arc<Buffer>>,
}

impl Pair {
    pub(crate) fn new(link: &Arc<Link>, memory: &Memory, id: u16, entries: u32) -> Result<Self> {
        let count = entries as usize;
        let submissions = memory.allocate(SUBMISSION * count)?;
        let completions = memory.allocate(COMPLETION * count)?;
        completions.zero();
        // One entry of a ring stays empty.
        let ids = 0..(entries - 1) as u16;
        Ok(Self {
            link: link.clone(),
            memory: memory.clone(),
            id,
            generation: link.generation(),
            shadow: if id == 0 { None } else { link.shadow() },
            entries,
            submissions,
            completions,
            tail: 0,
            rung: 0,
            head: 0,
            released: 0,
            phase: true,
            slots: ids.clone().map(|_| Slot::default()).collect(),
            free: ids.rev().collect(),
            finished: VecDeque::new(),
            deleted: false,
        })
    }

    /// Commands in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn check(&self) -> Result<()> {
        let current = self.generation == self.link.generation();
        if current { Ok(()) } else { Err(Error::QueueEnded) }
    }

    /// Puts a command into the queue; the controller is told by [`Pair::ring`].
    pub(crate) fn submit(&mut self, command: Command, data: Option<Data>) -> Result<u16> {
        self.check()?;
        let id = *self.free.last().ok_or(Error::QueueFull)?;
        let prps = match &data {
            Some(data) => self.prps(id, data)?,
            None => (0, 0),
        };
        self.free.pop();
        let slot = &mut self.slots[usize::from(id)];
        (slot.in_flight, slot.data) = (true, data);
        self.submissions.write(SUBMISSION * self.tail as usize, &command.encode(id, prps));
        self.tail = (self.tail + 1) % self.entries;
        Ok(id)
    }

    /// PRP1 and PRP2 (4.1.1).
    fn prps(&mut self, id: u16, data: &Data) -> Result<(u64, u64)> {
        let (first, Range { start, end }) = data.pages();
        if end - start <= PAGE {
            return Ok((first, if start == end { 0 } else { start }));
        }
        if end - start > LISTED {
            let what = format!("{} bytes of data; one list leads to {LISTED}", data.range.len());
            return Err(Error::Unsupported(what));
        }
        let slot = &mut self.slots[usize::from(id)];
        let list = match &slot.list {
            Some(list) => list,
            None => slot.list.insert(self.memory.allocate(PAGE as usize)?),
        };
        let pages = (start..end).step_by(PAGE as usize);
        let bytes: Vec<u8> = pages.flat_map(u64::to_le_bytes).collect();
        list.write(0, &bytes);
        Ok((first, list.address()))
    }

    /// Tells the controller what was submitted.
    pub(crate) fn ring(&mut self) -> Result<()> {
        if self.rung != self.tail {
            self.check()?;
            self.write_doorbell(false, self.rung, self.tail)?;
            self.rung = self.tail;
        }
        Ok(())
    }

    /// Takes the entries that are there. Tells the controller so, when half the queue was taken, or `now`.
    fn take(&mut self, now: bool) -> Result<()> {
        self.check()?;
        loop {
            let at = COMPLETION * self.head as usize;
            let last = self.completions.load32(at + COMPLETION - 4);
            if (last >> 16 & 1 != 0) != self.phase {
                break;
            }
            let mut bytes = [0; COMPLETION];
            self.completions.read(at, &mut bytes);
            let (completion, _) = Completion::decode(&bytes);
            self.head += 1;
            if self.head == self.entries {
                (self.head, self.phase) = (0, !self.phase);
            }
            let slot = self.slots.get_mut(usize::from(completion.id));
            let Some(slot) = slot.filter(|slot| slot.in_flight) else {
                let id = completion.id;
                let what = format!("a completion of command {id}, which is not in flight");
                return Err(Error::Unsupported(what));
            };
            (slot.in_flight, slot.data) = (false, None);
            self.free.push(completion.id);
            self.finished.push_back(completion);
        }
        let taken = (self.head + self.entries - self.released) % self.entries;
        if taken > 0 && (now || taken >= self.entries / 2) {
            self.write_doorbell(true, self.released, self.head)?;
            self.released = self.head;
        }
        Ok(())
    }

    fn write_doorbell(&self, completions: bool, old: u32, new: u32) -> Result<()> {
        let by_register = match &self.shadow {
            Some(pages) => store_shadow(pages, (self.id, completions), old, new),
            None => true,
        };
        if by_register { self.link.ring(self.id, completions, new) } else { Ok(()) }
    }

    /// A completion, if one is there.
    pub(crate) fn poll(&mut self) -> Result<Option<Completion>> {
        if self.finished.is_empty() {
            self.ring()?;
            self.take(false)?;
        }
        Ok(self.finished.pop_front())
    }

    /// Waits for a completion that `wanted` accepts; others are kept.
    pub(crate) fn wait(
        &mut self,
        event: Option<BorrowedFd<'_>>,
        wanted: impl Fn(&Completion) -> bool,
    ) -> Result<Completion> {
        self.ring()?;
        let link = self.link.clone();
        let mut wait = Wait::new(&link, event);
        loop {
            if let Some(at) = self.finished.iter().position(&wanted) {
                return Ok(self.finished.remove(at).expect("it was found there"));
            }
            let before = self.finished.len();
            self.take(false)?;
            if self.finished.len() == before {
                self.take(event.is_some())?;
                wait.pause()?;
            }
        }
    }

    /// The controller has deleted the queues: nothing of their memory is reached any more.
    pub(crate) fn set_deleted(&mut self) {
        self.deleted = true;
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.deleted || self.check().is_err() {
            return;
        }
        // The controller still has the queues, and may reach what is in flight.
        let Self { link, submissions, completions, slots, .. } = self;
        let slots = slots.iter_mut().filter(|slot| slot.in_flight).flat_map(|slot| {
            [slot.list.take(), slot.data.take().map(|data| data.buffer)].into_iter().flatten()
        });
        link.keep(slots.chain([submissions.clone(), completions.clone()]));
    }
}
