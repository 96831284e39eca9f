//! Create and Delete I/O Submission and Completion Queue (5.4 to 5.7).

use std::sync::Arc;

use vfiod_core::MemoryCharge;
use vfiod_pci::Cx;

use super::AdminQueue;
use crate::controller::{Nvme, VECTORS, forget_rings};
use crate::limits::{COMPLETION_QUEUE_MEMORY, SUBMISSION_QUEUE_MEMORY};
use crate::queues::serve::task_name;
use crate::queues::{CompletionQueue, DoorbellPlace, Layout, SubmissionQueue};
use vfiod_nvme_spec::registers::{IO_QUEUES, MAX_ENTRIES};
use vfiod_nvme_spec::{Outcome, Status, Submission};

/// PC: the queue's memory is contiguous. CAP.CQR asks for that.
const CONTIGUOUS: u32 = 1;
/// IEN: the completion queue interrupts.
const INTERRUPTS: u32 = 1 << 1;
/// CC.IOSQES and CC.IOCQES.
const ENTRY_SIZES: (u32, u32) = (6, 4);

/// The identifier of an I/O queue, as an index.
fn identifier(id: u32) -> Result<usize, Status> {
    let id = (id & 0xffff) as usize;
    if (1..=IO_QUEUES).contains(&id) { Ok(id) } else { Err(Status::INVALID_QUEUE_IDENTIFIER) }
}

/// What the user is charged for a queue that is created.
///
/// # Errors
/// Internal Error: it may have no more memory. The specification has no status of its own for that.
fn charge(cx: &Cx<Nvme>, bytes: u64) -> Result<Arc<MemoryCharge>, Status> {
    let charged = cx.charge_memory(bytes).map(Arc::new);
    charged.map_err(|error| {
        if let Some(suppressed) = cx.may_log() {
            let device = cx.name();
            tracing::warn!(device, %error, suppressed, "a queue is refused");
        }
        Status::INTERNAL
    })
}

impl AdminQueue {
    /// The identifier of a queue that is to be created, its entries, and where its memory is.
    fn new_queue(&self, command: &Submission) -> Result<(usize, u32, u64), Status> {
        let id = identifier(command.dword(10))?;
        let entries = (command.dword(10) >> 16) + 1;
        if !(2..=MAX_ENTRIES).contains(&entries) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if command.dword(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let (base, _) = command.prps();
        if base % self.queues.page != 0 {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        Ok((id, entries, base))
    }

    /// CC.IOSQES and CC.IOCQES.
    async fn entry_sizes(&self) -> (u32, u32) {
        self.task.step(|nvme, _| nvme.configuration().entry_sizes()).await
    }

    pub(super) async fn create_completion_queue(&self, command: &Submission) -> Outcome {
        let (id, entries, base) = self.new_queue(command)?;
        if self.entry_sizes().await.1 != ENTRY_SIZES.1 {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let vector = (command.dword(11) >> 16) as u16;
        let interrupts = command.dword(11) & INTERRUPTS != 0;
        if interrupts && usize::from(vector) >= VECTORS {
            return Err(Status::INVALID_VECTOR);
        }
        let layout = Layout { base, entries, vector: interrupts.then_some(vector) };
        self.task
            .step(|_, cx| {
                if self.queues.completion(id).is_some() {
                    return Err(Status::INVALID_QUEUE_IDENTIFIER);
                }
                let charge = charge(cx, COMPLETION_QUEUE_MEMORY)?;
                let queue = Arc::new(CompletionQueue::new(layout).charged(charge));
                let set = |place: &DoorbellPlace| queue.set_place(self.task.dma(), place, id);
                self.queues.with_place(set).map_err(|_| Status::DATA_TRANSFER)?;
                // What was rung before means another queue.
                forget_rings(cx, [2 * id + 1]);
                self.queues.add_completion(id, queue);
                Ok(0)
            })
            .await
    }

    pub(super) async fn create_submission_queue(&self, command: &Submission) -> Outcome {
        let (id, entries, base) = self.new_queue(command)?;
        if self.entry_sizes().await.0 != ENTRY_SIZES.0 {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let completion_queue = identifier(command.dword(11) >> 16)?;
        self.task
            .step(|nvme, cx| {
                if self.queues.submission(id).is_some() {
                    return Err(Status::INVALID_QUEUE_IDENTIFIER);
                }
                let completions = self.queues.completion(completion_queue);
                let completions = completions.ok_or(Status::INVALID_COMPLETION_QUEUE)?;
                let (id, number) = (id as u16, completion_queue as u16);
                let charge = charge(cx, SUBMISSION_QUEUE_MEMORY)?;
                let queue = SubmissionQueue::new(id, (base, entries), number, completions);
                let queue = queue.charged(charge);
                let set = |place: &DoorbellPlace| queue.set_place(self.task.dma(), place);
                self.queues.with_place(set).map_err(|_| Status::DATA_TRANSFER)?;
                nvme.start_queue(cx, &self.queues, Arc::new(queue));
                Ok(0)
            })
            .await
    }

    /// Completes when every command of the queue that was read has completed; one that lacks memory ends unbegun. What
    /// was not read is forgotten.
    pub(super) async fn delete_submission_queue(&self, command: &Submission) -> Outcome {
        let id = identifier(command.dword(10))?;
        let queue = self.queues.submission(id).filter(|queue| !queue.is_deleted());
        let queue = queue.ok_or(Status::INVALID_QUEUE_IDENTIFIER)?;
        self.queues.delete(&queue);
        let task = self.task.step(|_, cx| cx.find_task(&task_name(queue.id))).await;
        if let Some(task) = task {
            task.gone().await;
        }
        self.queues.remove_submission(id);
        Ok(0)
    }

    pub(super) async fn delete_completion_queue(&self, command: &Submission) -> Outcome {
        let id = identifier(command.dword(10))?;
        if self.queues.completion(id).is_none() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        if self.queues.all_submissions().any(|queue| usize::from(queue.completion_queue) == id) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.queues.remove_completion(id);
        Ok(0)
    }
}
