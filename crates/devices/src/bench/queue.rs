//! A queue: commands are fetched in batches from guest memory, performed on the disk, and
//! completed in order.
//!
//! A queue's task may be stopped at any await. What it must not forget is the model's state: the
//! outcomes of commands that were performed, until their completions are in guest memory. So each
//! command is performed and then *recorded* in a step; recorded outcomes are *published*, to the
//! same places however often that is tried, and forgotten in another step.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use vfiod_buffer::zeroed;
use vfiod_core::dma::{Attachment, Hold, Perm, Reach};
use vfiod_io::{Ring, RuntimeRing};
use vfiod_pci::prelude::*;
use vfiod_sync::atomic::Ordering;

use super::Bench;
use super::doorbells::Doorbells;

/// Commands that are fetched and performed together.
const BATCH: u32 = 16;
/// The most entries of a ring.
const MAX_ENTRIES: u64 = 4096;
/// The longest transfer in bytes.
const MAX_LEN: u32 = 1 << 20;
/// The first command in a submission ring.
const FIRST: u64 = 64;
const COMMAND: usize = 32;
const COMPLETION: u64 = 16;
/// Bytes of a completion that are written before its number.
const OUTCOME: usize = 12;
/// The register that enables a queue, and its bits.
pub(super) const CONTROL: u64 = 0x18;
const ENABLED: u64 = 1;
const BUSY: u64 = 2;

registers! {
    /// A queue. When a command is performed or cannot be fetched differs from run to run.
    #[derive(Debug)]
    pub struct Queue, enum Write {
        // Address of the submission ring, a multiple of 8. Kept while the queue is enabled.
        0x00 submissions: u64 => Submissions;
        // Address of the completion ring, a multiple of 8. Kept while the queue is enabled.
        0x08 completions: u64 => Completions;
        // Entries of each ring: a power of two, 2 to 4096. Kept while the queue is enabled.
        0x10 entries: u64 => Entries;
        // Bit 0: enabled; enabling it begins with command 0. Bit 1, read-only: a command may still be
        // under way; a queue that was disabled is enabled again only when it is 0.
        0x18 _: u64 = |queue| queue.control() => Control, volatile BUSY;
        // Commands that have completed, modulo 2^32.
        0x20 _: u64 = |queue| queue.published().into(), volatile u32::MAX;
        // How often a ring could not be reached.
        0x28 faults: u64, volatile u64::MAX;

        state enabled: u8, in 0..=1;
        // How many of `recorded` there are.
        state waiting: u8, in 0..=BATCH as u8;
        // Commands that were performed, modulo 2^32.
        state performed: u32;
        // The outcomes of the last of them, whose completions may not be in guest memory.
        #[serde(with = "hex::serde")]
        state recorded: [u8; OUTCOME * BATCH as usize];

        // A task of the queue is there.
        kept busy: bool;
    }
}

/// What became of a command: a completion without its number.
type Outcome = [u8; OUTCOME];

impl Queue {
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled != 0
    }

    /// Says whether a task of the queue is there, for CONTROL.
    pub(super) fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    fn control(&self) -> u64 {
        (u64::from(self.enabled) * ENABLED) | (u64::from(self.busy) * BUSY)
    }

    /// Writes a register. Returns whether that enables or disables the queue.
    pub(super) fn write(&mut self, write: Write) -> bool {
        match write {
            Write::Control(value) if value & ENABLED == 0 => {
                return std::mem::take(&mut self.enabled) != 0;
            }
            Write::Control(_) if self.is_enabled() || self.busy || !self.is_sound() => {}
            Write::Control(_) => {
                let Self { submissions, completions, entries, .. } = *self;
                self.reset_registers();
                (self.submissions, self.completions) = (submissions, completions);
                (self.entries, self.enabled) = (entries, 1);
                return true;
            }
            _ if self.is_enabled() => {}
            Write::Submissions(address) => self.submissions = address,
            Write::Completions(address) => self.completions = address,
            Write::Entries(entries) => self.entries = entries,
        }
        false
    }

    /// Restores a queue. `EINVAL`: it cannot be enabled with these rings.
    pub(super) fn restored(image: <Self as Registers>::Image) -> Result<Self> {
        let mut queue = Self::power_on(false);
        queue.restore_registers(image)?;
        if queue.is_enabled() && !queue.is_sound() {
            return Err(Error::new(Errno::INVAL, "an enabled queue with rings that cannot be"));
        }
        Ok(queue)
    }

    fn is_sound(&self) -> bool {
        let size = FIRST + MAX_ENTRIES * COMMAND as u64;
        let fits = |address: u64| address.is_multiple_of(8) && address.checked_add(size).is_some();
        self.entries.is_power_of_two()
            && (2..=MAX_ENTRIES).contains(&self.entries)
            && fits(self.submissions)
            && fits(self.completions)
    }

    /// Commands whose completions are in guest memory.
    fn published(&self) -> u32 {
        self.performed.wrapping_sub(self.waiting.into())
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let (outcomes, _) = self.recorded.as_chunks();
        outcomes[..self.waiting.into()].to_vec()
    }

    /// Commands were performed; at most [`BATCH`].
    fn record(&mut self, outcomes: &[Outcome]) {
        self.performed = self.performed.wrapping_add(outcomes.len() as u32);
        self.waiting = outcomes.len() as u8;
        self.recorded.fill(0);
        self.recorded[..outcomes.len() * OUTCOME].copy_from_slice(outcomes.as_flattened());
    }

    /// The queue could not do its work.
    pub(super) fn fault(&mut self) {
        self.faults = self.faults.wrapping_add(1);
    }
}

/// The name of a queue's task.
pub(super) fn task_name(index: usize) -> String {
    format!("queue {index}")
}

/// What a task does next, from the model's state.
struct Plan {
    submissions: u64,
    completions: u64,
    entries: u32,
    performed: u32,
    recorded: Vec<Outcome>,
    disk: Disk,
    ring: Arc<RuntimeRing>,
}

/// The file, and how long it is in bytes.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) file: Arc<OwnedFd>,
    pub(super) len: u64,
}

impl Bench {
    /// `None`: the queue is not enabled, and its task ends.
    fn plan(&mut self, cx: &Cx<Self>, index: usize) -> Option<Plan> {
        let queue = self.queues.get(index).filter(|queue| queue.is_enabled())?;
        let Queue { submissions, completions, entries, performed, .. } = *queue;
        let recorded = queue.outcomes();
        let (disk, ring) = match (self.disk(), self.ring(cx)) {
            (Ok(disk), Ok(ring)) => (disk, ring),
            (Err(error), _) | (_, Err(error)) => {
                if let Some(suppressed) = cx.may_log() {
                    let device = cx.name();
                    tracing::warn!(device, queue = index, %error, suppressed, "queue disabled");
                }
                let queue = &mut self.queues[index];
                queue.enabled = 0;
                queue.fault();
                return None;
            }
        };
        let entries = entries as u32;
        Some(Plan { submissions, completions, entries, performed, recorded, disk, ring })
    }

    /// Commands were performed.
    fn record(&mut self, index: usize, outcomes: &[Outcome]) {
        let queue = &mut self.queues[index];
        if queue.is_enabled() {
            queue.record(outcomes);
        }
    }

    /// The completions of what was recorded are in guest memory.
    fn published(&mut self, cx: &Cx<Self>, index: usize) {
        let queue = &mut self.queues[index];
        if queue.is_enabled() && queue.waiting != 0 {
            queue.record(&[]);
            cx.interrupts().trigger(index as u32);
        }
    }
}

/// Serves a queue until it is disabled or the device stops.
pub(super) async fn serve(task: Task<Bench>, index: usize, doorbells: Arc<Doorbells>) {
    let bell = doorbells.of(index);
    loop {
        task.task().pause_point().await;
        // What is submitted from here on rings again.
        bell.take();
        let Some(plan) = task.step(|bench, cx| bench.plan(cx, index)).await else { return };
        match advance(&task, index, plan).await {
            Ok(Progress::Some) => continue,
            Ok(Progress::None) => {}
            Err(error) => {
                tracing::debug!(queue = index, %error, "queue cannot reach its rings");
                task.step(|bench, _| bench.queues[index].fault()).await;
            }
        }
        // Before the wait: whoever stops the device rings first, and closes the gate then.
        task.task().pause_point().await;
        bell.wait().await;
    }
}

enum Progress {
    Some,
    None,
}

/// Publishes what is recorded; if nothing is, performs the next commands and records that.
async fn advance(task: &Task<Bench>, index: usize, plan: Plan) -> Result<Progress> {
    if !plan.recorded.is_empty() {
        plan.publish(task.dma()).await?;
        task.step(|bench, cx| bench.published(cx, index)).await;
        return Ok(Progress::Some);
    }
    let commands = plan.fetch(task.dma()).await?;
    if commands.is_empty() {
        return Ok(Progress::None);
    }
    let outcomes = plan.perform(task.dma(), &commands).await;
    task.step(|bench, _| bench.record(index, &outcomes)).await;
    Ok(Progress::Some)
}

impl Plan {
    fn slot(&self, command: u32) -> u64 {
        u64::from(command & (self.entries - 1))
    }

    fn command_at(&self, command: u32) -> u64 {
        self.submissions + FIRST + self.slot(command) * COMMAND as u64
    }

    /// How many commands to fetch, where so many were ever submitted.
    fn count(&self, submitted: u32) -> Result<u32> {
        let waiting = submitted.wrapping_sub(self.performed);
        if waiting > self.entries {
            let what = format!("{waiting} commands in a ring of {}", self.entries);
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(waiting.min(BATCH))
    }

    /// The next commands, all in one batch where the ring is mapped.
    async fn fetch(&self, dma: &Attachment) -> Result<Vec<Command>> {
        if let Some(commands) = self.fetch_mapped(dma)? {
            return Ok(commands);
        }
        let mut submitted = [0; 4];
        dma.read(self.submissions, &mut submitted).await?;
        let count = self.count(u32::from_le_bytes(submitted))?;
        let mut commands = Vec::with_capacity(count as usize);
        for n in 0..count {
            let mut bytes = [0; COMMAND];
            dma.read(self.command_at(self.performed.wrapping_add(n)), &mut bytes).await?;
            commands.push(Command::parse(&bytes));
        }
        Ok(commands)
    }

    /// `None`: some of it is reached by message.
    fn fetch_mapped(&self, dma: &Attachment) -> Result<Option<Vec<Command>>> {
        let mut batch = dma.batch()?;
        let Some(submitted) = batch.load::<u32>(self.submissions)? else { return Ok(None) };
        let count = self.count(u32::from_le(submitted))?;
        let mut commands = Vec::with_capacity(count as usize);
        for n in 0..count {
            let mut bytes = [0; COMMAND];
            let at = self.command_at(self.performed.wrapping_add(n));
            if batch.read(at, &mut bytes)? == Reach::Message {
                return Ok(None);
            }
            commands.push(Command::parse(&bytes));
        }
        Ok(Some(commands))
    }

    /// Writes the completions of what is recorded.
    async fn publish(&self, dma: &Attachment) -> Result<()> {
        let first = self.performed.wrapping_sub(self.recorded.len() as u32);
        for (n, outcome) in (0..).zip(&self.recorded) {
            let command = first.wrapping_add(n);
            let at = self.completions + self.slot(command) * COMPLETION;
            let number = command.wrapping_add(1);
            if !publish_mapped(dma, at, outcome, number)? {
                dma.write(at, outcome).await?;
                dma.write(at + outcome.len() as u64, &number.to_le_bytes()).await?;
            }
        }
        Ok(())
    }

    /// Performs commands at the same time.
    async fn perform(&self, dma: &Attachment, commands: &[Command]) -> Vec<Outcome> {
        let ring = self.ring.ring();
        let started: Vec<Started> = {
            let _gathered = ring.plug();
            commands.iter().map(|command| command.start(dma, ring, &self.disk)).collect()
        };
        let mut outcomes = Vec::with_capacity(commands.len());
        for (command, started) in commands.iter().zip(started) {
            let result = match started {
                Started::Ended(result) => result,
                Started::Held(io) => match io.await.0 {
                    // A hole of the guest's, and all buffers of rings are in use: through one of our own.
                    Err(error) if error.errno() == Errno::NOMEM => {
                        command.by_message(dma, ring, &self.disk).await
                    }
                    result => result,
                },
                Started::ByMessage => command.by_message(dma, ring, &self.disk).await,
            };
            outcomes.push(command.outcome(result));
        }
        outcomes
    }
}

/// Whether the completion was written; otherwise the ring is reached by message.
fn publish_mapped(dma: &Attachment, at: u64, outcome: &Outcome, number: u32) -> Result<bool> {
    let mut batch = dma.batch()?;
    if batch.write(at, outcome)? == Reach::Message {
        return Ok(false);
    }
    let stored = batch.store(at + outcome.len() as u64, number.to_le(), Ordering::SeqCst)?;
    Ok(stored == Reach::Mapped)
}

/// A command, as the guest wrote it.
#[derive(Clone, Copy, Debug)]
struct Command {
    tag: u32,
    operation: u32,
    address: u64,
    offset: u64,
    len: u32,
}

/// Bytes that the kernel has moved, and the guest memory that it gives back.
type Returned = (Result<usize>, Option<Hold>);

enum Started {
    Ended(Result<usize>),
    /// By the kernel, to or from guest memory that is held.
    Held(Pin<Box<dyn Future<Output = Returned> + Send>>),
    /// The guest's memory is reached by message.
    ByMessage,
}

impl Command {
    fn parse(bytes: &[u8; COMMAND]) -> Self {
        let number = |at: usize| {
            let bytes = bytes[at..at + 4].iter().rev();
            bytes.fold(0, |number, byte| number << 8 | u32::from(*byte))
        };
        let long = |at| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        Self {
            tag: number(0),
            operation: number(4),
            address: long(8),
            offset: long(16),
            len: number(24),
        }
    }

    /// Whether the command reads the file.
    fn reads(&self) -> Result<bool> {
        match self.operation {
            1 => Ok(true),
            2 => Ok(false),
            other => Err(Error::new(Errno::INVAL, format!("operation {other}"))),
        }
    }

    fn start(&self, dma: &Attachment, ring: &Ring, disk: &Disk) -> Started {
        if self.operation == 0 {
            return Started::Ended(Ok(0));
        }
        self.try_start(dma, ring, disk).unwrap_or_else(|error| match error.errno() {
            Errno::OPNOTSUPP => Started::ByMessage,
            _ => Started::Ended(Err(error)),
        })
    }

    fn try_start(&self, dma: &Attachment, ring: &Ring, disk: &Disk) -> Result<Started> {
        let reads = self.reads()?;
        let end = self.offset.checked_add(self.len.into());
        if self.len == 0 || self.len > MAX_LEN || end.is_none_or(|end| end > disk.len) {
            let what = format!("{} bytes at {:#x} of the file", self.len, self.offset);
            return Err(Error::new(Errno::INVAL, what));
        }
        let perm = if reads { Perm::WRITE } else { Perm::READ };
        let hold = dma.hold(self.address, self.len as usize, perm)?;
        Ok(Started::Held(if reads {
            Box::pin(ring.read_to_guest(&disk.file, self.offset, hold))
        } else {
            Box::pin(ring.write_from_guest(&disk.file, self.offset, hold))
        }))
    }

    async fn by_message(&self, dma: &Attachment, ring: &Ring, disk: &Disk) -> Result<usize> {
        let mut buffer = zeroed(self.len as usize)?;
        if self.reads()? {
            let (read, buffer) = ring.read(&disk.file, self.offset, buffer).await;
            let read = read?;
            dma.write(self.address, &buffer[..read]).await?;
            Ok(read)
        } else {
            dma.read(self.address, &mut buffer).await?;
            ring.write(&disk.file, self.offset, buffer).await.0
        }
    }

    fn outcome(&self, result: Result<usize>) -> Outcome {
        let (status, bytes) = match result {
            Ok(bytes) => (0, bytes as u32),
            Err(error) => (error.errno().raw_os_error() as u32, 0),
        };
        let mut outcome = [0; OUTCOME];
        for (part, number) in outcome.chunks_exact_mut(4).zip([self.tag, status, bytes]) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        outcome
    }
}
