//! A submission queue (3.3.1.1, 3.3.3.1).

use std::sync::Arc;
use std::time::Instant;

use vfiod_core::dma::{Attachment, Batch, Reach};
use vfiod_core::{MemoryCharge, Result};
use vfiod_sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vfiod_sync::{Mutex, lock, try_lock};
use vfiod_tasks::Bell;

use super::completion::CompletionQueue;
use super::doorbell::{Doorbell, DoorbellPlace};
use vfiod_nvme_spec::Submission;
use vfiod_nvme_spec::submission::{Fused, LEN};

/// Memory that entries are read of.
trait Entries {
    /// Reads an entry, if it is mapped.
    fn read(&mut self, at: u64, entry: &mut [u8; LEN]) -> Result<Reach>;
}

impl Entries for Batch<'_> {
    fn read(&mut self, at: u64, entry: &mut [u8; LEN]) -> Result<Reach> {
        Batch::read(self, at, entry)
    }
}

/// A submission queue. Its task alone reads commands and moves the head.
#[derive(Debug)]
pub(crate) struct SubmissionQueue {
    pub(crate) id: u16,
    pub(crate) base: u64,
    pub(crate) entries: u32,
    /// Where its commands complete, and the number of that.
    pub(crate) completions: Arc<CompletionQueue>,
    pub(crate) completion_queue: u16,
    /// What its task waits for: commands, places, an end.
    pub(crate) bell: Bell,
    /// The next command that is read.
    head: AtomicU32,
    /// Its doorbell: how far the host has submitted commands.
    tail: Mutex<Doorbell>,
    deleted: AtomicBool,
    /// Commands that wait for nothing but a sync, which nobody waits for now, and when they began.
    parked: Mutex<Vec<(Instant, Submission)>>,
    /// What the user is charged for it.
    charge: Arc<MemoryCharge>,
}

impl SubmissionQueue {
    pub(crate) fn new(
        id: u16,
        (base, entries): (u64, u32),
        completion_queue: u16,
        completions: Arc<CompletionQueue>,
    ) -> Self {
        let tail = Doorbell::new(entries, 0);
        Self::restored(id, (base, entries), completion_queue, completions, (0, tail))
    }

    /// A queue that has come so far.
    pub(crate) fn restored(
        id: u16,
        (base, entries): (u64, u32),
        completion_queue: u16,
        completions: Arc<CompletionQueue>,
        (head, tail): (u32, Doorbell),
    ) -> Self {
        Self {
            id,
            base,
            entries,
            completions,
            completion_queue,
            bell: Bell::new(),
            head: AtomicU32::new(head),
            tail: Mutex::new(tail),
            deleted: AtomicBool::new(false),
            parked: Mutex::default(),
            charge: Arc::default(),
        }
    }

    /// The same queue, which the user is charged for.
    pub(crate) fn charged(self, charge: Arc<MemoryCharge>) -> Self {
        Self { charge, ..self }
    }

    pub(crate) fn charge(&self) -> &Arc<MemoryCharge> {
        &self.charge
    }

    pub(crate) fn head(&self) -> u32 {
        self.head.load(Ordering::Acquire)
    }

    /// Its doorbell, as it is now.
    pub(crate) fn tail(&self) -> Doorbell {
        lock(&self.tail).clone()
    }

    /// How far the doorbell can move: all entries but one can be in use (3.3.1.2). Its task moves the head
    /// forwards at the same time, which makes this more.
    fn limit(&self, tail: &Doorbell) -> u32 {
        self.entries - 1 - self.unread(tail)
    }

    fn unread(&self, tail: &Doorbell) -> u32 {
        (tail.value() + self.entries - self.head()) % self.entries
    }

    /// The host has written the register: it has submitted commands up to `tail`. Returns whether that, or what it
    /// has stored, is a value of the queue: not past the end, nor before what was submitted already.
    pub(crate) fn set_tail(&self, dma: &Attachment, tail: u32) -> bool {
        let mut doorbell = lock(&self.tail);
        let limit = self.limit(&doorbell);
        let heard = doorbell.write(dma, tail, limit);
        // Its task may have looked already, where the register is memory.
        let is_new = heard.moved || !(heard.invalid || doorbell.is_mapped());
        drop(doorbell);
        if is_new {
            self.bell.ring(None);
        }
        !heard.invalid
    }

    /// Looks for commands where the host stores its doorbell. Returns whether there are new ones.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn look(&self, dma: &Attachment) -> Result<bool> {
        let mut doorbell = lock(&self.tail);
        let limit = self.limit(&doorbell);
        doorbell.look(dma, limit)
    }

    /// Looks for commands, and says how many were submitted and not read, and whether the host has stored a value that
    /// is none of the queue.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn news(&self, dma: &Attachment) -> Result<(u32, bool)> {
        let mut doorbell = lock(&self.tail);
        let limit = self.limit(&doorbell);
        doorbell.look(dma, limit)?;
        // What a shadow doorbell has is told of before the task sleeps.
        let is_invalid = doorbell.is_mapped() && doorbell.take_invalid();
        Ok((self.unread(&doorbell), is_invalid))
    }

    pub(crate) fn is_mapped(&self) -> bool {
        lock(&self.tail).is_mapped()
    }

    /// Asks the host to write the register with the next command, and looks for commands once more. Returns
    /// whether there are new ones; if not, the task can sleep.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn ask(&self, dma: &Attachment) -> Result<bool> {
        let mut doorbell = lock(&self.tail);
        let (event, limit) = (doorbell.value(), self.limit(&doorbell));
        doorbell.ask(dma, event, limit)
    }

    /// Whether the host has stored a value that is none of the queue, since this was asked last.
    pub(crate) fn take_invalid(&self) -> bool {
        lock(&self.tail).take_invalid()
    }

    /// From now on its doorbell is there, too.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn set_place(&self, dma: &Attachment, place: &DoorbellPlace) -> Result<()> {
        lock(&self.tail).set_place(dma, place, 2 * usize::from(self.id))
    }

    pub(crate) fn end_place(&self) {
        lock(&self.tail).end_place();
    }

    pub(crate) fn is_shadowed(&self) -> bool {
        lock(&self.tail).is_shadowed()
    }

    /// For the operator, without waiting for whoever uses the doorbell: how many commands were submitted and
    /// not read, and whether the doorbell is in pages.
    pub(crate) fn try_view(&self) -> Option<(u32, bool)> {
        let tail = try_lock(&self.tail)?;
        Some((self.unread(&tail), tail.is_shadowed()))
    }

    /// How many commands were submitted and not read.
    pub(crate) fn waiting(&self) -> u32 {
        self.unread(&lock(&self.tail))
    }

    /// Reads the next `count` commands into an empty list, each once, and moves the head past them. The first one of a fused
    /// operation is left for the next time if it is the last of them and there are more, so that the second
    /// one is read with it; unless `pairs` is `false`.
    ///
    /// # Errors
    /// Those of the memory; nothing is read then.
    pub(crate) async fn read(
        &self,
        dma: &Attachment,
        count: u32,
        pairs: bool,
        commands: &mut Vec<Submission>,
    ) -> Result<()> {
        let head = self.head();
        let is_mapped = self.read_mapped(&mut dma.batch()?, head, count, commands)?;
        if !is_mapped {
            commands.clear();
            for n in 0..count {
                let mut bytes = [0; LEN];
                dma.read(self.at(head, n), &mut bytes).await?;
                commands.push(Submission::new(bytes));
            }
        }
        let is_half = commands.last().is_some_and(|last| last.fused() == Fused::First);
        if pairs && is_half && count < self.waiting() {
            commands.pop();
        }
        let count = commands.len() as u32;
        self.head.store((head + count) % self.entries, Ordering::Release);
        Ok(())
    }

    fn at(&self, head: u32, n: u32) -> u64 {
        // Past the end of all memory nothing can be read.
        self.base.saturating_add(u64::from((head + n) % self.entries) * LEN as u64)
    }

    /// Whether they were read; otherwise some are reached by message.
    fn read_mapped(
        &self,
        memory: &mut impl Entries,
        head: u32,
        count: u32,
        commands: &mut Vec<Submission>,
    ) -> Result<bool> {
        for n in 0..count {
            let mut bytes = [0; LEN];
            if memory.read(self.at(head, n), &mut bytes)? == Reach::Message {
                return Ok(false);
            }
            commands.push(Submission::new(bytes));
        }
        Ok(true)
    }

    /// Keeps commands that wait for nothing but a sync for the task that goes on.
    pub(crate) fn park(&self, commands: Vec<(Instant, Submission)>) {
        lock(&self.parked).extend(commands);
    }

    pub(crate) fn take_parked(&self) -> Vec<(Instant, Submission)> {
        std::mem::take(&mut lock(&self.parked))
    }

    /// The queue is being deleted: no more commands are read.
    pub(crate) fn delete(&self) {
        self.deleted.store(true, Ordering::SeqCst);
        self.bell.ring(None);
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use vfiod_core::dma::Space;
    use vfiod_core::memory::SharedMemory;
    use vfiod_nvme_spec::registers::DOORBELLS;

    use super::super::{Layout, MappedPage};
    use super::*;

    /// Memory of a host that writes over each entry when it was read.
    struct Changes {
        entries: Vec<[u8; LEN]>,
        reads: Vec<u64>,
    }

    impl Entries for Changes {
        fn read(&mut self, at: u64, entry: &mut [u8; LEN]) -> Result<Reach> {
            self.reads.push(at);
            let place = &mut self.entries[at as usize / LEN];
            *entry = std::mem::replace(place, [0xff; LEN]);
            Ok(Reach::Mapped)
        }
    }

    /// Each entry of memory that is mapped is read once: what the host makes of it afterwards changes nothing.
    #[test]
    fn mapped_entries_are_read_once() {
        let layout = Layout { base: 0, entries: 8, vector: None };
        let completions = Arc::new(CompletionQueue::new(layout));
        let queue = SubmissionQueue::new(1, (0, 8), 1, completions);
        let mut memory = Changes { entries: (0..8).map(|n| [n; LEN]).collect(), reads: Vec::new() };
        let mut commands = Vec::new();
        assert!(queue.read_mapped(&mut memory, 6, 5, &mut commands).unwrap());
        assert_eq!(memory.reads, [6, 7, 0, 1, 2].map(|n| n * LEN as u64));
        let opcodes: Vec<u8> = commands.iter().map(Submission::opcode).collect();
        assert_eq!(opcodes, [6, 7, 0, 1, 2]);
    }

    /// Whoever polls hears a host that stores the value of the last poll, after another one that the task has taken.
    #[test]
    fn value_before_the_one_that_the_task_has_taken_is_heard() {
        let dma = Attachment::new(&Space::default());
        let memory = SharedMemory::new("bar", 0x2000).unwrap();
        let page = MappedPage::new(memory.clone());
        let layout = Layout { base: 0, entries: 2, vector: None };
        let queue = SubmissionQueue::new(1, (0, 2), 1, Arc::new(CompletionQueue::new(layout)));
        queue.set_place(&dma, &DoorbellPlace::Mapped(page.clone())).unwrap();
        let store = |value: u32| memory.store(DOORBELLS + 8, value, Ordering::SeqCst).unwrap();
        let hear = |bell, value| bell == 2 && queue.set_tail(&dma, value);
        let poll = || page.hear_moved(hear, |bell| panic!("doorbell {bell}"));
        assert!(!poll(), "nothing has moved");
        for round in 0..3 {
            store(1);
            assert_eq!(queue.news(&dma).unwrap(), (1, false), "{round}");
            assert!(!poll(), "{round}: the task has it");
            queue.head.store(1, Ordering::Release);
            store(0);
            assert!(poll() && queue.bell.take().is_some(), "{round}: the value before");
            assert_eq!(queue.waiting(), 1, "{round}");
            queue.head.store(0, Ordering::Release);
        }
        store(2);
        assert_eq!(queue.news(&dma).unwrap(), (0, true), "a value of no queue");
        assert!(!poll());
    }

    /// What a host has stored before it deleted a queue is no doorbell of no queue.
    #[test]
    fn store_that_nobody_has_taken_ends_with_its_queue() {
        let dma = Attachment::new(&Space::default());
        let memory = SharedMemory::new("bar", 0x2000).unwrap();
        let page = MappedPage::new(memory.clone());
        let layout = Layout { base: 0, entries: 8, vector: None };
        let queue = SubmissionQueue::new(1, (0, 8), 1, Arc::new(CompletionQueue::new(layout)));
        queue.set_place(&dma, &DoorbellPlace::Mapped(page.clone())).unwrap();
        let heard = |bells: &[usize]| {
            let mut heard = Vec::new();
            page.hear_moved(|_, _| false, |bell| heard.push(bell));
            assert_eq!(heard, bells);
        };
        memory.store(DOORBELLS + 8, 3_u32, Ordering::SeqCst).unwrap();
        queue.end_place();
        heard(&[]);
        memory.store(DOORBELLS + 8, 4_u32, Ordering::SeqCst).unwrap();
        heard(&[2]);
    }

    /// A doorbell of no queue is heard once for each value.
    #[test]
    fn doorbell_of_no_queue_is_heard_once() {
        let memory = SharedMemory::new("bar", 0x2000).unwrap();
        let page = MappedPage::new(memory.clone());
        for value in [7_u32, 8] {
            memory.store(DOORBELLS + 4 * 129, value, Ordering::SeqCst).unwrap();
            let mut heard = Vec::new();
            for _ in 0..3 {
                assert!(!page.hear_moved(|_, _| false, |bell| heard.push(bell)));
            }
            assert_eq!(heard, [129], "{value}");
        }
    }
}
