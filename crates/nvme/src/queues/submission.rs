//! A submission queue (3.3.1.1, 3.3.3.1).

use std::sync::Arc;

use vfiod_core::Result;
use vfiod_core::dma::{Attachment, Reach};
use vfiod_sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vfiod_tasks::Bell;

use super::completion::{CompletionQueue, InvalidValue};
use crate::spec::Submission;
use crate::spec::submission::LEN;

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
    /// The value of its doorbell.
    tail: AtomicU32,
    deleted: AtomicBool,
}

impl SubmissionQueue {
    pub(crate) fn new(
        id: u16,
        (base, entries): (u64, u32),
        completion_queue: u16,
        completions: Arc<CompletionQueue>,
    ) -> Self {
        Self::restored(id, (base, entries), completion_queue, completions, (0, 0))
    }

    /// A queue that has come so far.
    pub(crate) fn restored(
        id: u16,
        (base, entries): (u64, u32),
        completion_queue: u16,
        completions: Arc<CompletionQueue>,
        (head, tail): (u32, u32),
    ) -> Self {
        Self {
            id,
            base,
            entries,
            completions,
            completion_queue,
            bell: Bell::new(),
            head: AtomicU32::new(head),
            tail: AtomicU32::new(tail),
            deleted: AtomicBool::new(false),
        }
    }

    pub(crate) fn head(&self) -> u32 {
        self.head.load(Ordering::Acquire)
    }

    pub(crate) fn tail(&self) -> u32 {
        self.tail.load(Ordering::Acquire)
    }

    /// The host has submitted commands up to `tail`.
    ///
    /// # Errors
    /// The value is past the end, or before what was submitted already.
    pub(crate) fn set_tail(&self, tail: u32) -> Result<(), InvalidValue> {
        // Its task moves the head forwards at the same time, which makes what was submitted less.
        let head = self.head();
        let distance = |to: u32| (to + self.entries - head) % self.entries;
        if tail >= self.entries || distance(tail) < distance(self.tail()) {
            return Err(InvalidValue);
        }
        self.tail.store(tail, Ordering::Release);
        self.bell.ring(None);
        Ok(())
    }

    /// How many commands were submitted and not read.
    pub(crate) fn waiting(&self) -> u32 {
        (self.tail() + self.entries - self.head()) % self.entries
    }

    /// Reads the next `count` commands, each once, and moves the head past them.
    ///
    /// # Errors
    /// Those of the memory; nothing is read then.
    pub(crate) async fn read(&self, dma: &Attachment, count: u32) -> Result<Vec<Submission>> {
        let head = self.head();
        let mut commands = Vec::with_capacity(count as usize);
        if !self.read_mapped(dma, head, count, &mut commands)? {
            commands.clear();
            for n in 0..count {
                let mut bytes = [0; LEN];
                dma.read(self.at(head, n), &mut bytes).await?;
                commands.push(Submission::new(bytes));
            }
        }
        self.head.store((head + count) % self.entries, Ordering::Release);
        Ok(commands)
    }

    fn at(&self, head: u32, n: u32) -> u64 {
        self.base + u64::from((head + n) % self.entries) * LEN as u64
    }

    /// Whether they were read; otherwise some are reached by message.
    fn read_mapped(
        &self,
        dma: &Attachment,
        head: u32,
        count: u32,
        commands: &mut Vec<Submission>,
    ) -> Result<bool> {
        let mut batch = dma.batch()?;
        for n in 0..count {
            let mut bytes = [0; LEN];
            if batch.read(self.at(head, n), &mut bytes)? == Reach::Message {
                return Ok(false);
            }
            commands.push(Submission::new(bytes));
        }
        Ok(true)
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
