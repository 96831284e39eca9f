//! I/O commands (NVM command set 3).

mod at_once;
pub(crate) mod copy;
pub(crate) mod dataset;
mod execute;
mod fused;
mod quick;
mod syncing;

use std::sync::Arc;

use vfiod_disk::{Buffer, Done, Failure, FailureKind, Interest, OnlySyncs, Request};
use vfiod_pci::Task;
use vfiod_sync::atomic::Ordering;
use vfiod_tasks::race;

use self::syncing::CountSyncing;
use crate::bounce::{Bounced, ListTurn, RetryTurn};
use crate::common::Common;
use crate::controller::Nvme;
use crate::counters::QueueCounters;
use crate::denied::Denied;
use crate::failures::{self, is_logged};
use crate::limits::{MAX_TRANSFER, MAX_ZEROES};
use crate::namespace::Namespace;
use crate::piece::{Piece, Pieces};
use crate::prp;
use crate::queues::{Queues, SubmissionQueue};
use crate::sgl;
use crate::transfer::{self, Direction};
use vfiod_nvme_spec::{Outcome, Status, Submission};

/// The commands of one I/O queue.
#[derive(Clone)]
pub(crate) struct IoQueue {
    pub(crate) id: u16,
    pub(crate) task: Task<Nvme>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) common: Arc<Common>,
    pub(crate) counters: Arc<QueueCounters>,
    /// Counts the commands that wait for nothing but a sync.
    syncing: Arc<CountSyncing>,
    /// What ends requests when the work ends; and for fused pairs, each of which counts as two commands.
    interest: Interest,
    interest_of_pairs: Interest,
}

/// What a command ends with whose request has failed; `media` where the media did. The host is told of a
/// sync that has failed.
pub(crate) fn judge(
    common: &Common,
    queues: &Queues,
    namespace: &Namespace,
    failure: &Failure,
    media: Status,
) -> Status {
    if failure.kind == FailureKind::Unwanted {
        return if queues.is_stopped() {
            Status::ABORT_REQUESTED
        } else if namespace.is_removed() {
            Status::INVALID_FIELD
        } else {
            Status::FORMAT_IN_PROGRESS
        };
    }
    let error = failure.error.to_string();
    tracing::debug!(namespace = namespace.id, error, "a command fails");
    if failure.kind == FailureKind::SyncFailed {
        common.sync_failed.store(true, Ordering::SeqCst);
        queues.notice_events();
        namespace.sync_failed();
    }
    failures::status_of(failure.kind, media)
}

/// What a command ends with whose namespace is not active (4.1.1, NSID).
pub(crate) fn absent(common: &Common, id: u32) -> Status {
    if common.namespaces.can_have(id) { Status::INVALID_FIELD } else { Status::INVALID_NAMESPACE }
}

impl IoQueue {
    /// What a task of a queue performs its commands by.
    pub(crate) fn new(
        queue: &Arc<SubmissionQueue>,
        (task, queues): (Task<Nvme>, Arc<Queues>),
        common: Arc<Common>,
        counters: Arc<QueueCounters>,
    ) -> Self {
        let syncing = CountSyncing::new(&queues, queue);
        let interest = queues.interest.telling(syncing.clone());
        let interest_of_pairs = queues.interest.telling(syncing.clone().of_pairs());
        let id = queue.id;
        Self { id, task, queues, common, counters, syncing, interest, interest_of_pairs }
    }

    /// Keeps what a command has failed with, if that is to be kept.
    fn log(&self, command: &Submission, outcome: Outcome) {
        if let Err(status) = outcome
            && is_logged(status)
        {
            self.common.log_error(self.id, command, status);
        }
    }

    /// Waits until a command that lacks memory may begin anew, if it still may.
    async fn again<'a>(&'a self, turn: &mut Option<RetryTurn<'a>>) -> Result<(), Status> {
        self.common.bounce.again(&self.task, self.queues.ends(self.id), turn).await
    }

    /// The namespace of a command.
    fn namespace(&self, id: u32) -> Result<Arc<Namespace>, Status> {
        self.common.namespaces.get(id).ok_or_else(|| absent(&self.common, id))
    }

    /// Waits for guest memory, unless the controller stops, as then nobody waits for what comes of it, or the
    /// namespace is to be formatted, or removed.
    async fn reach<T, E: From<Status>>(
        &self,
        namespace: &Namespace,
        access: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let stopped = async {
            self.queues.stop_requested().await;
            Status::ABORT_REQUESTED
        };
        race(access, async { Err(race(stopped, namespace.unavailable()).await.into()) }).await
    }

    /// Performs a request. It ends when the back end has ended it, whatever happens meanwhile: until then
    /// its memory is in use.
    async fn request(
        &self,
        namespace: &Namespace,
        request: Request,
        media: Status,
    ) -> Result<Done, Denied> {
        let interest = self.interest(namespace);
        let done = namespace.channel()?.start_within(&interest, request).await;
        self.judge(namespace, done, media)
    }

    /// What ends a request that takes long: the end of the work, a Format, by whichever controller, or the removal of
    /// the namespace.
    fn interest(&self, namespace: &Namespace) -> Interest {
        self.interest.and(&namespace.interest())
    }

    /// What a request has come to.
    fn judge(&self, namespace: &Namespace, done: Done, media: Status) -> Result<Done, Denied> {
        match done.result {
            Ok(()) => Ok(done),
            Err(failure) if failure.kind == FailureKind::Short => Err(Denied::Short),
            Err(failure) => {
                Err(judge(&self.common, &self.queues, namespace, &failure, media).into())
            }
        }
    }

    /// Flush (NVM command set 3.2.1, base 7.1).
    async fn flush(&self, namespace: &Namespace) -> Result<u32, Denied> {
        self.sync(namespace, Status::WRITE_FAULT).await?;
        Ok(0)
    }

    /// Makes durable what was written; nobody waits for that when the controller stops. It has no memory, and
    /// changes no data: the disk ends it by itself.
    async fn sync(&self, namespace: &Namespace, media: Status) -> Result<(), Denied> {
        let _only_syncs = OnlySyncs::begin(self.syncing.clone());
        let synced = async { self.request(namespace, Request::Flush, media).await.map(drop) };
        race(synced, async {
            self.queues.stop_requested().await;
            Err(Status::ABORT_REQUESTED.into())
        })
        .await
    }

    /// The range and the pieces of data of a read or write. A turn is taken where the list may be long; it is kept
    /// until the list is charged.
    async fn locate<'a>(
        &'a self,
        namespace: &Namespace,
        command: &Submission,
        direction: Direction,
        turn: &mut Option<ListTurn<'a>>,
    ) -> Result<(u64, Pieces), Denied> {
        let blocks = command.blocks();
        if blocks << namespace.block_shift() > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD.into());
        }
        let (offset, len) = namespace.range(command.first_block(), blocks)?;
        if turn.is_none() && command.has_sgl() && sgl::is_long(&command.sgl()) {
            let taken = async { Ok(self.common.bounce.list_turn().await) };
            *turn = Some(self.reach::<_, Status>(namespace, taken).await?);
        }
        Ok((offset, self.pieces(namespace, command, len as usize, direction).await?))
    }

    /// The pieces of so many bytes of data.
    async fn pieces(
        &self,
        namespace: &Namespace,
        command: &Submission,
        len: usize,
        direction: Direction,
    ) -> Result<Pieces, Denied> {
        let (dma, page) = (self.task.dma(), self.queues.page);
        if command.has_sgl() {
            let pieces = sgl::pieces(dma, command.sgl(), len, direction);
            return self.reach(namespace, pieces).await;
        }
        self.reach(namespace, prp::pieces(dma, page, command.prps(), len)).await
    }

    /// The data of a command, and what it is charged for.
    async fn data(
        &self,
        namespace: &Namespace,
        pieces: &[Piece],
        direction: Direction,
    ) -> Result<(Buffer, Option<Bounced<'_>>), Denied> {
        let (memory, ends) = (&self.common.bounce, self.queues.ends(self.id));
        let begun = transfer::begin(&self.task, memory, ends, [pieces], direction);
        let data = async { begun.await.map_err(|(_, denied)| denied) };
        let ([buffer], charged) = self.reach(namespace, data).await?;
        Ok((buffer, charged))
    }

    /// Data that says what is to be done.
    async fn receive(
        &self,
        namespace: &Namespace,
        command: &Submission,
        len: usize,
    ) -> Result<Vec<u8>, Denied> {
        let mut bytes = vec![0; len];
        let pieces = self.pieces(namespace, command, len, Direction::FromHost).await?;
        self.reach(namespace, transfer::gather(self.task.dma(), &pieces, &mut bytes)).await?;
        Ok(bytes)
    }

    /// Read (NVM command set 3.2.4).
    async fn read(&self, namespace: &Namespace, command: &Submission) -> Result<u32, Denied> {
        let mut turn = None;
        let located = self.locate(namespace, command, Direction::ToHost, &mut turn);
        let (offset, pieces) = located.await?;
        let (buffer, _charged) = self.data(namespace, &pieces, Direction::ToHost).await?;
        drop(turn);
        let (len, is_own) = (buffer.len() as u64, matches!(buffer, Buffer::Own(_)));
        let request = Request::Read { offset, buffer };
        let done = self.request(namespace, request, Status::READ_ERROR).await?;
        if is_own {
            let finished = transfer::finish(self.task.dma(), &pieces, done.buffer);
            self.reach(namespace, finished).await?;
        }
        self.commit(namespace, command).await?;
        self.count(Direction::ToHost, len);
        Ok(0)
    }

    /// Write (NVM command set 3.2.6).
    async fn write(&self, namespace: &Namespace, command: &Submission) -> Result<u32, Denied> {
        let writable = self.writable(namespace);
        let mut turn = None;
        let located = self.locate(namespace, command, Direction::FromHost, &mut turn);
        let (offset, pieces) = located.await?;
        writable?;
        let (buffer, _charged) = self.data(namespace, &pieces, Direction::FromHost).await?;
        drop(turn);
        let len = buffer.len() as u64;
        let request = self.write_request(command, offset, buffer);
        self.request(namespace, request, Status::WRITE_FAULT).await?;
        self.count(Direction::FromHost, len);
        Ok(0)
    }

    fn write_request(&self, command: &Submission, offset: u64, buffer: Buffer) -> Request {
        let durable = command.durable() || self.common.write_through();
        Request::Write { offset, buffer, durable }
    }

    /// Counts a command that has moved so many bytes.
    fn count(&self, direction: Direction, bytes: u64) {
        let counters = &self.counters;
        let (commands, moved) = match direction {
            Direction::ToHost => (&counters.reads, &counters.read),
            Direction::FromHost => (&counters.writes, &counters.written),
        };
        commands.add(1);
        moved.add(bytes);
    }

    /// Compare (NVM command set 3.2.1).
    async fn compare(&self, namespace: &Namespace, command: &Submission) -> Result<u32, Denied> {
        let mut turn = None;
        let located = self.locate(namespace, command, Direction::FromHost, &mut turn);
        let (offset, pieces) = located.await?;
        let (buffer, _charged) = self.data(namespace, &pieces, Direction::FromHost).await?;
        drop(turn);
        let len = buffer.len() as u64;
        let interest = self.interest(namespace);
        let done = namespace.channel()?.compare(&interest, offset, buffer).await;
        let judged = self.judge(namespace, done, Status::READ_ERROR).map(drop);
        // Blocks that differ were read as well.
        if matches!(judged, Ok(()) | Err(Denied::With(Status::COMPARE_FAILURE))) {
            self.count(Direction::ToHost, len);
        }
        judged?;
        self.commit(namespace, command).await?;
        Ok(0)
    }

    /// Force Unit Access of what was read: it is durable before the command completes (NVM command set 3.2.4).
    /// The sync begins after the read, so that it covers what another command has written meanwhile.
    async fn commit(&self, namespace: &Namespace, command: &Submission) -> Result<(), Denied> {
        if command.durable() && namespace.limits.volatile {
            self.sync(namespace, Status::READ_ERROR).await?;
        }
        Ok(())
    }

    /// Verify (NVM command set 3.2.5): reads blocks, and gives the host none.
    async fn verify(&self, namespace: &Namespace, command: &Submission) -> Result<u32, Denied> {
        let (offset, len) = namespace.range(command.first_block(), command.blocks())?;
        let interest = self.interest(namespace);
        let done = namespace.channel()?.verify(&interest, offset, len).await;
        self.judge(namespace, done, Status::READ_ERROR)?;
        self.commit(namespace, command).await?;
        self.counters.read.add(len);
        Ok(0)
    }

    /// Write Zeroes (NVM command set 3.2.8).
    async fn write_zeroes(
        &self,
        namespace: &Namespace,
        command: &Submission,
    ) -> Result<u32, Denied> {
        self.writable(namespace)?;
        if command.blocks() << namespace.block_shift() > MAX_ZEROES {
            return Err(Status::INVALID_FIELD.into());
        }
        let (offset, len) = namespace.range(command.first_block(), command.blocks())?;
        let deallocate = namespace.deallocates(command);
        let durable = command.durable() || self.common.write_through();
        let request = Request::Zero { offset, len, deallocate, durable };
        self.request(namespace, request, Status::WRITE_FAULT).await?;
        Ok(0)
    }

    /// Whether a namespace can be written.
    fn writable(&self, namespace: &Namespace) -> Result<(), Status> {
        if namespace.limits.read_only { Err(Status::WRITE_PROTECTED) } else { Ok(()) }
    }
}
