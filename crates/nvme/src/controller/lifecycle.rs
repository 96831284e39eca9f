//! How the controller is enabled, disabled and shut down (3.5, 3.6).

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::work::TaskHandle;
use vfiod_disk::{Channel, Request};
use vfiod_pci::prelude::*;

use super::{Nvme, forget_rings};
use crate::admin::AdminQueue;
use crate::admin::events::Events;
use crate::features::Features;
use crate::io::IoQueue;
use crate::queues::serve::{serve, task_name};
use crate::queues::{CompletionQueue, Layout, Queues, SubmissionQueue};
use crate::spec::registers::{
    CC_WRITABLE, FATAL, QUEUES, READY, SHUT_DOWN, SHUTDOWN, SHUTTING_DOWN, TIMEOUT, admin_entries,
};
use crate::timestamp::Timestamp;

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
            self.properties.status |= FATAL;
            return;
        };
        let queues = self.new_queues(configuration, cx.interrupts());
        let layout =
            Layout { base: self.properties.completions, entries: completions, vector: Some(0) };
        let completion_queue = Arc::new(CompletionQueue::new(layout));
        queues.add_completion(0, completion_queue.clone());
        let memory = (self.properties.submissions, submissions);
        queues.add_submission(Arc::new(SubmissionQueue::new(0, memory, 0, completion_queue)));
        // What was rung before means other queues.
        forget_rings(cx, 0..2 * QUEUES);
        self.features = Features::default();
        self.features.apply(&self.common);
        self.events = Events::default();
        self.timestamp = Timestamp::reset();
        self.properties.mask = 0;
        self.properties.status = READY;
        let queues = Arc::new(queues);
        self.doorbells.set(Some(queues.clone()));
        self.queues = Some(queues);
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
                let io = IoQueue { id, task: task.clone(), queues: queues.clone(), common };
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
        match &self.queues {
            Some(queues) => {
                queues.stop();
                self.finish_disabling(cx);
            }
            None => self.properties.status &= !(READY | FATAL | SHUTDOWN),
        }
    }

    /// Waits for the end of all work, in a task.
    pub(super) fn finish_disabling(&self, cx: &Cx<Self>) {
        let Some(queues) = &self.queues else { return };
        let name = |queue: Arc<SubmissionQueue>| cx.find_task(&task_name(queue.id));
        let tasks: Vec<TaskHandle> = queues.all_submissions().filter_map(name).collect();
        let queues = queues.clone();
        cx.ensure_task("disable", |task| async move {
            let limit = Duration::from_millis(500) * TIMEOUT as u32;
            let gone = async {
                for task in &tasks {
                    task.gone().await;
                }
                queues.idle().await;
            };
            if task.task().timeout(limit, gone).await.is_err() {
                // The host has waited as long as CAP.TO says. Memory may still be written.
                task.step(|nvme, _| nvme.properties.status |= FATAL).await;
                for task in &tasks {
                    task.gone().await;
                }
                queues.idle().await;
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
        self.properties.status = 0;
        if self.configuration().enabled() {
            self.enable(cx);
        }
    }

    /// CC.SHN asks for a shutdown (3.6): what was read is finished, and what was written is made durable.
    fn shut_down(&mut self, cx: &Cx<Self>) {
        self.properties.status |= SHUTTING_DOWN;
        if let Some(queues) = &self.queues {
            queues.close();
        }
        self.finish_shutdown(cx);
    }

    pub(super) fn finish_shutdown(&self, cx: &Cx<Self>) {
        let (queues, common) = (self.queues.clone(), self.common.clone());
        cx.ensure_task("shutdown", |task| async move {
            if let Some(queues) = queues {
                queues.idle().await;
            }
            let mut failed = None;
            for namespace in &common.namespaces {
                let Ok(channel) = namespace.channel() else { continue };
                if let Err(failure) = channel.start(Request::Flush).await.result {
                    failed = Some((namespace.id, failure.error.to_string()));
                }
            }
            task.last_step(|nvme, cx| {
                if let Some((namespace, error)) = &failed
                    && let Some(suppressed) = cx.may_log()
                {
                    tracing::warn!(
                        device = cx.name(),
                        namespace,
                        error,
                        suppressed,
                        "the flush of a shutdown has failed"
                    );
                }
                let status = &mut nvme.properties.status;
                if *status & SHUTDOWN == SHUTTING_DOWN {
                    *status = *status & !SHUTDOWN | SHUT_DOWN;
                }
            })
            .await;
        });
    }
}
