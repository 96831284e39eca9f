//! What the operator is shown of a controller. It is read without the device lock, so that also a controller
//! that is busy or stuck is shown; what somebody else uses at that moment is left out.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use vfiod_core::Report;
use vfiod_disk::{About, Channel};
use vfiod_sync::{Mutex, lock};

use crate::common::Common;
use crate::identity::Identity;
use crate::namespace::Namespace;
use crate::queues::{CompletionQueue, Queues, SubmissionQueue};
use crate::spec::registers::{Configuration, FATAL, READY, SHUT_DOWN, SHUTDOWN};

/// What the operator is shown of registers and queues.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<Registers>);

#[derive(Clone, Debug, Default)]
struct Registers {
    is_enabled: bool,
    status: u32,
    queues: Option<Arc<Queues>>,
}

impl Shown {
    /// The registers and the queues are these now.
    pub(crate) fn set(&self, cc: Configuration, status: u32, queues: Option<Arc<Queues>>) {
        let before = std::mem::replace(
            &mut *lock(&self.0),
            Registers { is_enabled: cc.enabled(), status, queues },
        );
        drop(before);
    }

    fn get(&self) -> Registers {
        lock(&self.0).clone()
    }
}

/// Reports what a controller is.
pub(crate) struct NvmeReport {
    pub(crate) identity: Identity,
    pub(crate) common: Arc<Common>,
    pub(crate) shown: Arc<Shown>,
}

/// What an NVMe controller is now.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NvmeStatus {
    /// How far it is.
    pub controller: ControllerState,
    /// Its serial number.
    pub serial: String,
    /// The name of its subsystem (SUBNQN).
    pub subsystem: String,
    /// Its number in the subsystem (CNTLID).
    pub controller_id: u16,
    /// Commands that it has read and that have not completed.
    pub commands: u32,
    /// How many there may be.
    pub max_commands: u32,
    /// Its submission queues; 0 is the admin queue.
    pub submission_queues: Vec<SubmissionQueueStatus>,
    /// Its completion queues.
    pub completion_queues: Vec<CompletionQueueStatus>,
    /// Its active namespaces.
    pub namespaces: Vec<NamespaceStatus>,
}

/// How far a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControllerState {
    /// The host has not enabled it.
    Disabled,
    /// The host has enabled it, and it is not ready yet.
    Enabling,
    /// It carries out commands.
    Enabled,
    /// The host has disabled it, and commands have not ended yet.
    Disabling,
    /// The host shuts it down, and what was written is not durable yet.
    ShuttingDown,
    /// The host has shut it down.
    ShutDown,
    /// It shows fatal status until the host disables it.
    Fatal,
}

/// A submission queue.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SubmissionQueueStatus {
    /// Its number.
    pub number: u16,
    /// How many entries it has.
    pub entries: u32,
    /// The number of its completion queue.
    pub completion_queue: u16,
    /// Commands that the host has submitted and that were not read; `null`: in use, ask again.
    pub waiting: Option<u32>,
    /// Its doorbell is in the host's memory as well; `null`: in use, ask again.
    pub shadow_doorbell: Option<bool>,
}

/// A completion queue.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CompletionQueueStatus {
    /// Its number.
    pub number: u16,
    /// How many entries it has.
    pub entries: u32,
    /// Its interrupt vector; `null`: it has none.
    pub vector: Option<u16>,
    /// Completions that the host has not taken; `null`: in use, ask again.
    pub waiting: Option<u32>,
    /// Its doorbell is in the host's memory as well; `null`: in use, ask again.
    pub shadow_doorbell: Option<bool>,
}

/// An active namespace, and what keeps its bytes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NamespaceStatus {
    /// Its number.
    pub number: u32,
    /// Its UUID.
    pub uuid: String,
    /// What keeps its bytes: `file`, `block device`, `memory`, `null`.
    pub backend: String,
    /// The image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How the image is read and written: `direct`, or `buffered` through the page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<String>,
    /// Who does that: `io_uring`, or `threads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Other programs are kept from using the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of all.
    pub capacity: u64,
    /// It cannot be written.
    pub read_only: bool,
    /// It is being formatted.
    pub formatting: bool,
    /// Requests to its disk that have not ended, of all controllers.
    pub in_flight: usize,
    /// Why it takes no writes any more: a sync has failed. It has to be opened anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_failure: Option<String>,
}

impl Report for NvmeReport {
    type Status = NvmeStatus;

    fn status(&self) -> NvmeStatus {
        let registers = self.shown.get();
        let queues = registers.queues.as_deref();
        let submissions = queues.into_iter().flat_map(Queues::all_submissions);
        let completions = queues.into_iter().flat_map(Queues::all_completions);
        NvmeStatus {
            controller: registers.state(),
            serial: self.identity.serial.clone(),
            subsystem: self.identity.subsystem_name.clone(),
            controller_id: self.identity.controller,
            commands: queues.map_or(0, Queues::under_way),
            max_commands: self.common.max_commands,
            submission_queues: submissions.map(|queue| submission_queue(&queue)).collect(),
            completion_queues: completions
                .map(|(id, queue)| completion_queue(id, &queue))
                .collect(),
            namespaces: self.common.namespaces.iter().map(namespace).collect(),
        }
    }
}

impl Registers {
    fn state(&self) -> ControllerState {
        let shutdown = self.status & SHUTDOWN;
        match (self.is_enabled, self.queues.is_some()) {
            _ if self.status & FATAL != 0 => ControllerState::Fatal,
            _ if shutdown == SHUT_DOWN => ControllerState::ShutDown,
            _ if shutdown != 0 => ControllerState::ShuttingDown,
            (true, _) if self.status & READY != 0 => ControllerState::Enabled,
            (true, _) => ControllerState::Enabling,
            (false, true) => ControllerState::Disabling,
            (false, false) => ControllerState::Disabled,
        }
    }
}

fn submission_queue(queue: &SubmissionQueue) -> SubmissionQueueStatus {
    let now = queue.try_view();
    SubmissionQueueStatus {
        number: queue.id,
        entries: queue.entries,
        completion_queue: queue.completion_queue,
        waiting: now.map(|(waiting, _)| waiting),
        shadow_doorbell: now.map(|(_, has_pages)| has_pages),
    }
}

fn completion_queue(id: usize, queue: &CompletionQueue) -> CompletionQueueStatus {
    let now = queue.try_view();
    CompletionQueueStatus {
        number: id as u16,
        entries: queue.layout.entries,
        vector: queue.layout.vector,
        waiting: now.map(|(waiting, _)| waiting),
        shadow_doorbell: now.map(|(_, has_pages)| has_pages),
    }
}

fn namespace(namespace: &Namespace) -> NamespaceStatus {
    let About { kind, path, direct, locked } = namespace.disk.about();
    let engine = namespace.channel().ok().and_then(|channel| channel.engine());
    let io = direct.map(|direct| if direct { "direct" } else { "buffered" }.to_owned());
    NamespaceStatus {
        number: namespace.id,
        uuid: uuid::Uuid::from_bytes(namespace.identity.uuid).to_string(),
        backend: kind.to_owned(),
        path: path.map(|path| path.to_string_lossy().into_owned()),
        io,
        engine: engine.map(str::to_owned),
        locked,
        block_size: 1 << namespace.block_shift(),
        capacity: namespace.limits.capacity,
        read_only: namespace.limits.read_only,
        formatting: namespace.is_formatting(),
        in_flight: namespace.disk.in_flight(),
        sync_failure: namespace.disk.sync_failure().map(|failure| failure.error.to_string()),
    }
}
