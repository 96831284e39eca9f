//! Admin commands (5).

pub(crate) mod events;
mod features;
mod firmware;
mod format;
mod identify;
mod logs;
mod queues;
mod shadow;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use vfiod_pci::Task;
use vfiod_sync::atomic::{AtomicUsize, Ordering};
use vfiod_tasks::race;

use self::events::Event;
use crate::bounce::RetryTurn;
use crate::common::Common;
use crate::controller::Nvme;
use crate::counters::{Counters, QueueCounters};
use crate::denied::Denied;
use crate::limits::MAX_TRANSFER;
use crate::prp;
use crate::queues::completion::Reserved;
use crate::queues::execute::{Command, Ended, Execute, Running};
use crate::queues::post::wake;
use crate::queues::{Controller, Queues};
use crate::transfer;
use vfiod_nvme_spec::opcode::{self, Admin};
use vfiod_nvme_spec::{Completion, Outcome, Status, Submission};

/// Outstanding Aborts (ACL, 0's based). Each ends at once.
pub(crate) const ABORT_LIMIT: u8 = 3;

/// The commands of the admin queue.
#[derive(Clone)]
pub(crate) struct AdminQueue {
    task: Task<Nvme>,
    queues: Arc<Queues>,
    common: Arc<Common>,
    counters: Arc<QueueCounters>,
    aborts: Aborts,
}

/// The opcode of Abort.
const ABORT: u8 = 0x08;

/// How many Aborts are under way.
#[derive(Clone, Default)]
struct Aborts(Arc<AtomicUsize>);

/// An Abort that is under way.
struct UnderWay(Aborts);

impl Aborts {
    /// Counts one more, until the result is dropped; `None`: there are as many as ACL allows.
    fn begin(&self) -> Option<UnderWay> {
        let place = UnderWay(self.clone());
        (self.0.fetch_add(1, Ordering::SeqCst) <= usize::from(ABORT_LIMIT)).then_some(place)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Execute for AdminQueue {
    type Quick = Infallible;

    fn begin(&self, commands: &[Submission], begun: &mut dyn FnMut(Running<Infallible>)) -> usize {
        let Some(command) = commands.first().copied() else { return 0 };
        let queue = self.clone();
        let abort = (command.opcode() == ABORT).then(|| self.aborts.begin());
        begun(Running::new(async move {
            let ended = match abort {
                Some(None) => Ended::With(Err(Status::ABORT_LIMIT)),
                Some(Some(_)) | None => queue.perform(&command).await,
            };
            Command::of(&command, ended)
        }));
        1
    }

    fn poll(&self, quick: &mut Infallible, _cx: &mut Context<'_>) -> Poll<Command> {
        match *quick {}
    }

    fn counters(&self) -> (&Counters, &QueueCounters) {
        (&self.common.counters, &self.counters)
    }

    /// Posts the events that the host is to be told of, as long as there are requests and places.
    async fn events(&self) {
        let (register, value) = self.queues.take_doorbell_errors();
        if !self.queues.take_events() && !register && !value {
            return;
        }
        let Some(admin) = self.queues.submission(0) else { return };
        let sync_failed = self.common.sync_failed.swap(false, Ordering::SeqCst);
        self.task
            .step(|nvme, _| {
                nvme.events.doorbell_errors(register, value);
                if nvme.changes.take_new() {
                    nvme.events.raise(Event::NamespaceChanged, nvme.features.events);
                }
                if sync_failed && !std::mem::replace(&mut nvme.told_of_sync, true) {
                    nvme.events.raise(Event::Reliability, nvme.features.events);
                }
            })
            .await;
        loop {
            // A place first: what is taken off the list is posted.
            let host = self.queues.host(self.task.dma());
            let reserved = admin.completions.reserve(host, 1);
            if reserved.as_ref().is_ok_and(|reserved| reserved.wakes) {
                self.queues.ring_all();
            }
            match reserved {
                Ok(Reserved { count: 1, .. }) => {}
                // The task looks again when the host has taken an entry.
                Ok(_) => return self.queues.keep_events(),
                Err(_) => return self.task.step(|nvme, _| nvme.fail(&self.queues)).await,
            }
            let next = self.task.step(|nvme, _| nvme.events.next());
            let Some((id, outcome)) = next.await else {
                admin.completions.release(1);
                return;
            };
            let completion = Completion {
                result: outcome.unwrap_or(0),
                head: admin.head() as u16,
                queue: 0,
                id,
                status: outcome.err().unwrap_or(Status::SUCCESS),
            };
            let posted = self.reach(async {
                let posted = admin.completions.post(host, std::slice::from_ref(&completion));
                posted.await.map_err(|_| Status::INTERNAL)
            });
            match posted.await {
                Ok(written) => wake(&self.queues, written),
                Err(_) => return self.task.step(|nvme, _| nvme.fail(&self.queues)).await,
            }
        }
    }
}

impl AdminQueue {
    pub(crate) fn new(task: Task<Nvme>, queues: Arc<Queues>, common: Arc<Common>) -> Self {
        let counters = common.counters.of_queue(0);
        Self { task, queues, common, counters, aborts: Aborts::default() }
    }

    async fn perform(&self, command: &Submission) -> Ended {
        let admin = opcode::ADMIN.find(command.opcode(), |needs| self.common.has(needs));
        let admin = admin.and_then(|admin| command.check_admin().map(|()| admin.command));
        let outcome = match admin {
            Ok(Admin::AsynchronousEventRequest) => match self.request_event(command.id()).await {
                Ok(()) => return Ended::Silently,
                Err(status) => Err(status),
            },
            Ok(Admin::CreateCompletionQueue) => self.create_completion_queue(command).await,
            Ok(Admin::CreateSubmissionQueue) => self.create_submission_queue(command).await,
            Ok(Admin::DeleteCompletionQueue) => self.delete_completion_queue(command).await,
            Ok(Admin::DeleteSubmissionQueue) => self.delete_submission_queue(command).await,
            Ok(Admin::Identify) => self.identify(command).await,
            Ok(Admin::GetLogPage) => self.get_log_page(command).await,
            Ok(Admin::SetFeatures) => self.set_features(command).await,
            Ok(Admin::GetFeatures) => self.get_features(command).await,
            Ok(Admin::FirmwareImageDownload) => self.download_firmware(command).await,
            Ok(Admin::FirmwareCommit) => self.commit_firmware(command),
            Ok(Admin::FormatNvm) => self.format(command).await,
            Ok(Admin::Abort) => self.abort(command).await,
            Ok(Admin::DoorbellBufferConfig) => self.configure_doorbell_buffers(command),
            Err(status) => Err(status),
        };
        Ended::With(outcome)
    }

    /// Waits for guest memory, unless the controller stops.
    async fn reach<T, E: From<Status>>(
        &self,
        access: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        race(access, async {
            self.queues.stop_requested().await;
            Err(Status::ABORT_REQUESTED.into())
        })
        .await
    }

    /// Gives the host data.
    async fn send(&self, command: &Submission, bytes: &[u8]) -> Result<(), Status> {
        debug_assert!(bytes.len() as u64 <= MAX_TRANSFER, "data beyond MDTS");
        let (dma, page) = (self.task.dma(), self.queues.page);
        let mut turn = None;
        loop {
            let done = self.reach(async {
                let pieces = prp::pieces(dma, page, command.prps(), bytes.len()).await?;
                transfer::scatter(dma, &pieces, bytes).await
            });
            if let Some(()) = self.settled(done.await, &mut turn).await? {
                return Ok(());
            }
        }
    }

    /// Takes data of the host.
    async fn receive(&self, command: &Submission, bytes: &mut [u8]) -> Result<(), Status> {
        let (dma, page) = (self.task.dma(), self.queues.page);
        let mut turn = None;
        loop {
            let done = self.reach(async {
                let pieces = prp::pieces(dma, page, command.prps(), bytes.len()).await?;
                transfer::gather(dma, &pieces, bytes).await
            });
            if let Some(()) = self.settled(done.await, &mut turn).await? {
                return Ok(());
            }
        }
    }

    /// What a command has come to; `None`: it has lacked memory, has waited, and is done anew.
    async fn settled<'a, T>(
        &'a self,
        done: Result<T, Denied>,
        turn: &mut Option<RetryTurn<'a>>,
    ) -> Result<Option<T>, Status> {
        self.common.bounce.settled(&self.task, self.queues.ends(0), done, turn).await
    }

    /// Asynchronous Event Request (5.2): outstanding until there is an event.
    async fn request_event(&self, id: u16) -> Result<(), Status> {
        let requested = self.task.step(|nvme, _| nvme.events.request(id));
        requested.await?;
        self.queues.notice_events();
        Ok(())
    }

    /// Abort (5.1). What the disk does cannot be aborted: bit 0 of the result says so. A request for an
    /// event can.
    async fn abort(&self, command: &Submission) -> Outcome {
        let (queue, id) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
        if queue != 0 {
            return Ok(1);
        }
        let aborted = self.task.step(|nvme, _| nvme.events.abort(id)).await;
        self.queues.notice_events();
        Ok(u32::from(!aborted))
    }
}
