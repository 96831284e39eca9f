//! How the controller is enabled, disabled and shut down (3.5, 3.6).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use vfiod_core::work::TaskHandle;
use vfiod_disk::{Channel, FailureKind, Request};
use vfiod_pci::prelude::*;

use super::{Nvme, forget_rings};
use crate::admin::AdminQueue;
use crate::admin::events::Events;
use crate::common::Common;
use crate::io::IoQueue;
use crate::queues::doorbell::Moved;
use crate::queues::serve::{serve, task_name};
use crate::queues::{CompletionQueue, Doorbell, Layout, Queues, SubmissionQueue};
use crate::timestamp::Timestamp;
use vfiod_nvme_spec::registers::{
    CC_WRITABLE, FATAL, QUEUES, READY, SHUT_DOWN, SHUTDOWN, SHUTTING_DOWN, TIMEOUT, admin_entries,
};

/// How long the host waits for the end of work: CAP.TO.
const WAIT: Duration = Duration::from_millis(500 * TIMEOUT);

impl Nvme {
    /// The host writes CC.
    pub(super) fn configure(&mut self, cx: &Cx<Self>, value: u32) {
        let old = self.configuration();
        self.properties.configuration = value & CC_WRITABLE;
        let new = self.configuration();
        match (old.enabled(), new.enabled()) {
            // What is being disabled is enabled again when that is done.
            (false, true) if self.queues.is_none() => self.enable(cx),
            (true, false) => self.disable(cx),
            _ => {}
        }
        self.show();
        let is_running = self.properties.status & SHUTDOWN == 0;
        if new.shutdown() != 0 && old.shutdown() == 0 && is_running {
            self.shut_down(cx);
        }
    }

    /// CC.EN becomes 1 (3.5.1).
    fn enable(&mut self, cx: &Cx<Self>) {
        let configuration = self.configuration();
        let entries = admin_entries(self.properties.entries);
        let (true, Some((submissions, completions))) = (configuration.is_supported(), entries)
        else {
            tracing::debug!(
                device = cx.name(),
                cc = self.properties.configuration,
                aqa = self.properties.entries,
                "cannot be enabled so; the controller shows fatal status"
            );
            self.set_status(0, FATAL);
            return;
        };
        let queues = self.new_queues(configuration, cx.interrupts());
        let layout =
            Layout { base: self.properties.completions, entries: completions, vector: Some(0) };
        if let Err(error) = self.clear_doorbells(cx).and_then(|()| self.map_doorbells(cx, &queues))
        {
            return self.cannot_poll(cx, &error);
        }
        let place = queues.place();
        let doorbell = |entries, bell| {
            Doorbell::restored((entries, 0), Moved::default(), (place.as_ref(), bell))
        };
        let (tail, head) = (doorbell(submissions, 0), doorbell(completions, 1));
        let completion_queue =
            Arc::new(CompletionQueue::restored(layout, head, (0, true), Vec::new()));
        queues.add_completion(0, completion_queue.clone());
        let memory = (self.properties.submissions, submissions);
        let submission_queue = SubmissionQueue::restored(0, memory, 0, completion_queue, (0, tail));
        queues.add_submission(Arc::new(submission_queue));
        // What was rung before means other queues.
        forget_rings(cx, 0..2 * QUEUES);
        self.features = self.saved_features;
        self.error_recovery.clone_from(&self.saved_error_recovery);
        self.common.apply(&self.features);
        self.events = Events::default();
        // A host that enables the controller looks at all that there is.
        self.changes.take_new();
        self.timestamp = Timestamp::reset();
        self.properties.mask = 0;
        let queues = Arc::new(queues);
        self.doorbells.set(Some(queues.clone()));
        self.queues = Some(queues);
        self.set_status(!READY, READY);
        if let Err(error) = self.start_polling() {
            return self.cannot_poll(cx, &error);
        }
        if self.common.counters.enabled() {
            self.common.keep();
        }
        self.start(cx, 0);
    }

    /// Starts the task of a queue, unless it is there.
    pub(super) fn start(&self, cx: &Cx<Self>, id: usize) {
        let Some(queues) = &self.queues else { return };
        let Some(queue) = queues.submission(id) else { return };
        let (queues, common, id) = (queues.clone(), self.common.clone(), queue.id);
        cx.ensure_task(&task_name(id), |task| async move {
            if id == 0 {
                let admin = AdminQueue::new(task.clone(), queues.clone(), common);
                serve(task, queues, queue, admin).await;
            } else {
                let counters = common.counters.of_queue(id);
                let io = IoQueue::new(&queue, (task.clone(), queues.clone()), common, counters);
                serve(task, queues, queue, io).await;
            }
        });
    }

    /// Adds an I/O submission queue and starts its task.
    pub(crate) fn start_queue(
        &self,
        cx: &Cx<Self>,
        queues: &Arc<Queues>,
        queue: Arc<SubmissionQueue>,
    ) {
        if self.is_serving(queues) {
            let id = usize::from(queue.id);
            forget_rings(cx, [2 * id]);
            queues.add_submission(queue);
            self.start(cx, id);
        }
    }

    /// CC.EN becomes 0 (3.7.2, Controller Reset): CSTS.RDY falls when all work has ended.
    fn disable(&mut self, cx: &Cx<Self>) {
        self.doorbells.set(None);
        self.stop_polling();
        match &self.queues {
            Some(queues) => {
                queues.stop();
                self.finish_disabling(cx);
            }
            None => self.set_status(READY | FATAL | SHUTDOWN, 0),
        }
    }

    /// Waits for the end of all work, in a task.
    pub(super) fn finish_disabling(&self, cx: &Cx<Self>) {
        let Some(queues) = &self.queues else { return };
        let name = |queue: Arc<SubmissionQueue>| cx.find_task(&task_name(queue.id));
        let tasks: Vec<TaskHandle> = queues.all_submissions().filter_map(name).collect();
        let queues = queues.clone();
        cx.ensure_task("disable", |task| async move {
            let mut gone = pin!(async {
                for task in &tasks {
                    task.gone().await;
                }
                queues.idle().await;
            });
            if task.task().timeout(WAIT, gone.as_mut()).await.is_err() {
                // The host has waited as long as CAP.TO says. Memory may still be written.
                task.step(|nvme, _| nvme.set_status(0, FATAL)).await;
                gone.await;
            }
            task.last_step(|nvme, cx| nvme.disabled(cx)).await;
        });
    }

    /// All work has ended.
    fn disabled(&mut self, cx: &Cx<Self>) {
        if let Some(queues) = self.queues.take() {
            // Their interrupts fall.
            (0..QUEUES).for_each(|id| queues.remove_completion(id));
        }
        self.set_status(!0, 0);
        // It fails where the device is not open, and its memory gone.
        _ = self.clear_doorbells(cx);
        if self.configuration().enabled() {
            self.enable(cx);
        }
    }

    /// CC.SHN asks for a shutdown (3.6): what was read is finished, and what was written is made durable.
    fn shut_down(&mut self, cx: &Cx<Self>) {
        self.set_status(0, SHUTTING_DOWN);
        self.shutdowns = self.shutdowns.wrapping_add(1);
        if let Some(queues) = &self.queues {
            queues.close();
        }
        self.finish_shutdown(cx);
    }

    /// Finishes a shutdown, in a task. The one of an earlier shutdown, which a reset has cut off, may still
    /// wait for its flush, which covers nothing of what was written since: then it begins anew.
    pub(super) fn finish_shutdown(&self, cx: &Cx<Self>) {
        let common = self.common.clone();
        cx.ensure_task("shutdown", |task| async move {
            loop {
                let asked = task.step(|nvme, _| (nvme.shutdowns, nvme.queues.clone())).await;
                let (number, queues) = asked;
                let mut finished = pin!(flush_all(queues, &common));
                let flushed = task.task().timeout(WAIT, finished.as_mut()).await;
                let failed = match flushed {
                    Ok(failed) => failed,
                    Err(_) => {
                        // The host has waited as long as CAP.TO says.
                        let fail = |nvme: &mut Self, _: &Cx<Self>| {
                            if nvme.is_in_shutdown(number) {
                                nvme.set_status(0, FATAL);
                            }
                        };
                        task.step(fail).await;
                        finished.await
                    }
                };
                task.step(|nvme, cx| nvme.end_shutdown(cx, &task, number, failed)).await;
            }
        });
    }

    /// Whether this shutdown is under way.
    fn is_in_shutdown(&self, number: u32) -> bool {
        self.shutdowns == number && self.properties.status & SHUTDOWN == SHUTTING_DOWN
    }

    /// All is durable, or has failed. Ends the task if no other shutdown was asked for meanwhile.
    fn end_shutdown(&mut self, cx: &Cx<Self>, task: &Task<Self>, number: u32, failed: Failed) {
        for (namespace, error) in failed {
            if let Some(suppressed) = cx.may_log() {
                tracing::warn!(
                    device = cx.name(),
                    namespace,
                    error,
                    suppressed,
                    "the flush of a shutdown has failed"
                );
            }
        }
        if self.is_in_shutdown(number) {
            self.set_status(SHUTDOWN, SHUT_DOWN);
            // No command is read any more.
            self.stop_polling();
            if self.common.counters.shut_down() {
                self.common.keep();
            }
        }
        if self.shutdowns == number {
            task.task().cancel();
        }
    }
}

/// Namespaces whose flush has failed, and how.
type Failed = Vec<(u32, String)>;

/// Waits until no command is under way, then makes durable what was written.
async fn flush_all(queues: Option<Arc<Queues>>, common: &Common) -> Failed {
    if let Some(queues) = queues {
        queues.idle().await;
    }
    let mut failed = Vec::new();
    for namespace in common.namespaces.all() {
        let Ok(channel) = namespace.channel() else { continue };
        if let Err(failure) = channel.start(Request::Flush).await.result {
            if failure.kind == FailureKind::SyncFailed {
                namespace.sync_failed();
            }
            failed.push((namespace.id, failure.error.to_string()));
        }
    }
    failed
}
