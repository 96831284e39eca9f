//! What the operator is shown of a controller. It is read without the device lock, so that also a controller
//! that is busy or stuck is shown; what somebody else uses at that moment is left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use vfiod_core::{Metrics, Report};
use vfiod_disk::{About, Channel};
use vfiod_sync::atomic::Ordering;
use vfiod_sync::{Mutex, lock};

use crate::common::Common;
use crate::counters::{AllTimes, BOUNDS, Counters, QueueCounters, TIMED, bound, label};
use crate::identity::Identity;
use crate::namespace::Namespace;
use crate::queues::{CompletionQueue, Queues, SubmissionQueue};
use crate::rate::{RateLimit, RateLimits, default_burst};
use crate::subsystem::Seat;
use vfiod_nvme_spec::registers::{Configuration, FATAL, READY, SHUT_DOWN, SHUTDOWN};

/// What the operator is shown of registers and queues.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<Registers>);

#[derive(Clone, Debug, Default)]
struct Registers {
    is_enabled: bool,
    status: u32,
    queues: Option<Arc<Queues>>,
}

impl ControllerState {
    const ALL: [Self; 7] = [
        Self::Disabled,
        Self::Enabling,
        Self::Enabled,
        Self::Disabling,
        Self::ShuttingDown,
        Self::ShutDown,
        Self::Fatal,
    ];

    /// Its name, as a label.
    fn label(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Enabling => "enabling",
            Self::Enabled => "enabled",
            Self::Disabling => "disabling",
            Self::ShuttingDown => "shutting_down",
            Self::ShutDown => "shut_down",
            Self::Fatal => "fatal",
        }
    }
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
    /// The devices that are the other controllers of its subsystem, and have its namespaces as well.
    pub shared_with: Vec<String>,
    /// Commands that it has read and that have not completed.
    pub commands: u32,
    /// How many there may be.
    pub max_commands: u32,
    /// Its doorbells are mapped, and a thread of the daemon polls them: it takes a whole processor.
    pub polled: bool,
    /// What limits its I/O commands.
    pub limits: LimitStatus,
    /// What it has done since the device was registered.
    pub counters: CounterStatus,
    /// What SMART counts of its life, restarts of the daemon included where the disk is an image.
    pub life: LifeStatus,
    /// Its submission queues; 0 is the admin queue.
    pub submission_queues: Vec<SubmissionQueueStatus>,
    /// Its completion queues.
    pub completion_queues: Vec<CompletionQueueStatus>,
    /// Its active namespaces.
    pub namespaces: Vec<NamespaceStatus>,
}

/// What limits the I/O commands of a controller, of all queues together.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LimitStatus {
    /// I/O commands per second; `null`: no limit.
    pub iops: Option<u64>,
    /// I/O commands that are carried out at once after a pause.
    pub iops_burst: Option<u64>,
    /// Bytes per second; `null`: no limit.
    pub bandwidth: Option<u64>,
    /// Bytes that are read and written at once after a pause.
    pub bandwidth_burst: Option<u64>,
    /// Queues with commands that wait for that.
    pub waiting_queues: usize,
}

impl LimitStatus {
    pub(crate) fn of(rate: &RateLimit) -> Self {
        let RateLimits { iops, iops_burst, bandwidth, bandwidth_burst } = rate.limits();
        let burst = |rate: Option<u64>, burst: Option<u64>| burst.or(rate.map(default_burst));
        Self {
            iops,
            iops_burst: burst(iops, iops_burst),
            bandwidth,
            bandwidth_burst: burst(bandwidth, bandwidth_burst),
            waiting_queues: rate.waiting(),
        }
    }
}

/// What a controller has done since the device was registered.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CounterStatus {
    /// Bytes that hosts have read.
    pub read_bytes: u64,
    /// Bytes that hosts have written.
    pub written_bytes: u64,
    /// Admin commands that have ended, by opcode.
    pub admin_commands: BTreeMap<String, u64>,
    /// I/O commands that have ended, by opcode.
    pub io_commands: BTreeMap<String, u64>,
    /// Commands that have failed, by status.
    pub errors: BTreeMap<String, u64>,
    /// How long I/O commands took, from when they were read from their queue.
    pub times: BTreeMap<String, TimeStatus>,
}

/// What SMART counts of a controller's life.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LifeStatus {
    /// Times that it got power and was used: that somebody opened it and enabled it.
    pub power_cycles: u64,
    /// Hours with power.
    pub power_on_hours: u64,
    /// Times that it lost power without a shutdown.
    pub unsafe_shutdowns: u64,
    /// Seconds in which an I/O queue had commands.
    pub busy_seconds: u64,
    /// Errors of the media.
    pub media_errors: u64,
    /// Entries that were written to the Error Information log.
    pub error_log_entries: u64,
}

/// How long commands took: so many at most so long.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TimeStatus {
    /// How many commands.
    pub count: u64,
    /// Microseconds of the average.
    pub average_us: f64,
    /// Microseconds within which half of them ended, rounded up to a power of two; `null`: more than 16
    /// seconds.
    pub median_us: Option<f64>,
    /// Microseconds within which 99 % of them ended, rounded up to a power of two; `null`: more than 16
    /// seconds.
    pub p99_us: Option<f64>,
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
    /// Commands that were read and have not ended.
    pub depth: u32,
    /// Commands that have ended since the device was registered, of all queues that had the number.
    pub commands: u64,
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
            shared_with: self.common.seat.as_ref().map_or_else(Vec::new, Seat::others),
            commands: queues.map_or(0, Queues::under_way),
            max_commands: self.common.max_commands,
            polled: self.common.is_polled.load(Ordering::Relaxed),
            limits: LimitStatus::of(&self.common.rate),
            counters: counters(&self.common.counters),
            life: life(&self.common.counters),
            submission_queues: submissions
                .map(|queue| submission_queue(&queue, &self.common.counters))
                .collect(),
            completion_queues: completions
                .map(|(id, queue)| completion_queue(id, &queue))
                .collect(),
            namespaces: self.common.namespaces.all().map(|one| namespace(&one)).collect(),
        }
    }

    fn metrics(&self, metrics: &mut Metrics) {
        let registers = self.shown.get();
        let counters = &self.common.counters;
        for state in ControllerState::ALL {
            let labels = vec![("state", state.label().to_owned())];
            let is_it = f64::from(u8::from(state == registers.state()));
            metrics.gauge("nvme_state", "1: the controller is in this state", labels, is_it);
        }
        let queues = registers.queues.as_deref();
        let count = queues.map_or(0, |queues| queues.all_submissions().count());
        metrics.gauge("nvme_queues", "Submission queues", Vec::new(), count as f64);
        let under_way = queues.map_or(0, Queues::under_way);
        let help = "Commands that were read and have not completed";
        metrics.gauge("nvme_commands_under_way", help, Vec::new(), under_way.into());
        let limits = LimitStatus::of(&self.common.rate);
        for (kind, rate) in [("iops", limits.iops), ("bandwidth", limits.bandwidth)] {
            let Some(rate) = rate else { continue };
            let help = "Limit of I/O commands or bytes per second, where there is one";
            metrics.gauge("nvme_limit", help, vec![("limit", kind.to_owned())], rate as f64);
        }
        let help = "Queues with commands that wait for a limit";
        metrics.gauge("nvme_limited_queues", help, Vec::new(), limits.waiting_queues as f64);
        for (admin, kind) in [(true, "admin"), (false, "io")] {
            for (name, count) in counters.commands(admin) {
                let labels = vec![("queue", kind.to_owned()), ("command", label(name))];
                metrics.counter("nvme_commands", "Commands that have ended", labels, count as f64);
            }
        }
        for (name, count) in counters.failed() {
            let labels = vec![("status", label(name))];
            metrics.counter("nvme_errors", "Commands that have failed", labels, count as f64);
        }
        let [read, written, ..] = counters.moved();
        metrics.counter("nvme_read_bytes", "Bytes read by hosts", Vec::new(), read as f64);
        metrics.counter("nvme_written_bytes", "Bytes written by hosts", Vec::new(), written as f64);
        for (name, times) in TIMED.into_iter().zip(counters.times()) {
            let bounds = (0..=BOUNDS).map(|n| if n < BOUNDS { bound(n) } else { f64::INFINITY });
            let buckets = bounds.zip(times.buckets).collect();
            let help = "How long I/O commands took, from when they were read from their queue";
            let (labels, sum) =
                (vec![("command", name.to_owned())], times.nanoseconds as f64 / 1e9);
            metrics.histogram("nvme_command_seconds", help, labels, buckets, sum);
        }
        let LifeStatus { power_cycles, unsafe_shutdowns, busy_seconds, media_errors, .. } =
            life(counters);
        let lives = [
            ("nvme_power_cycles", "Times that the controller got power", power_cycles),
            (
                "nvme_unsafe_shutdowns",
                "Times that it lost power without a shutdown",
                unsafe_shutdowns,
            ),
            ("nvme_busy_seconds", "Time in which an I/O queue had commands", busy_seconds),
            ("nvme_media_errors", "Errors of the media", media_errors),
        ];
        for (name, help, count) in lives {
            metrics.counter(name, help, Vec::new(), count as f64);
        }
        for namespace in self.common.namespaces.all() {
            let labels = || vec![("namespace", namespace.id.to_string())];
            let capacity = namespace.capacity() as f64;
            metrics.gauge("nvme_namespace_bytes", "Size of a namespace", labels(), capacity);
            let requests = namespace.disk.in_flight() as f64;
            let help = "Requests to a disk that have not ended, of all its controllers";
            metrics.gauge("nvme_namespace_requests", help, labels(), requests);
            let failed = f64::from(u8::from(namespace.disk.sync_failure().is_some()));
            let help = "1: a sync has failed, and the namespace takes no writes";
            metrics.gauge("nvme_sync_failed", help, labels(), failed);
        }
    }
}

fn life(counters: &Counters) -> LifeStatus {
    let [_, _, _, _, power_cycles, media_errors, error_log_entries, unsafe_shutdowns, on, busy] =
        counters.all();
    LifeStatus {
        power_cycles,
        power_on_hours: on / 3600,
        unsafe_shutdowns,
        busy_seconds: busy / 1000,
        media_errors,
        error_log_entries,
    }
}

/// Bounds are in seconds.
impl AllTimes {
    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The bound within which this part of all ended; `None`: there is none.
    fn within(&self, part: f64) -> Option<f64> {
        let mut sum = 0;
        let wanted = (self.count() as f64 * part).ceil() as u64;
        let bucket = self.buckets.iter().position(|count| {
            sum += count;
            sum >= wanted
        })?;
        (bucket < BOUNDS).then(|| bound(bucket))
    }
}

fn counters(counters: &Counters) -> CounterStatus {
    let [read_bytes, written_bytes, ..] = counters.moved();
    let named = |counts: Vec<(&str, u64)>| -> BTreeMap<String, u64> {
        counts.into_iter().map(|(name, count)| (label(name), count)).collect()
    };
    let times = TIMED.into_iter().zip(counters.times()).filter(|(_, times)| times.count() > 0);
    let time = |(name, times): (&str, AllTimes)| {
        let (count, us) = (times.count(), 1e6);
        let time = TimeStatus {
            count,
            average_us: (times.nanoseconds / count) as f64 / 1e3,
            median_us: times.within(0.5).map(|seconds| seconds * us),
            p99_us: times.within(0.99).map(|seconds| seconds * us),
        };
        (name.to_owned(), time)
    };
    CounterStatus {
        read_bytes,
        written_bytes,
        admin_commands: named(counters.commands(true)),
        io_commands: named(counters.commands(false)),
        errors: named(counters.failed().collect()),
        times: times.map(time).collect(),
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

fn submission_queue(queue: &SubmissionQueue, counters: &Counters) -> SubmissionQueueStatus {
    let now = queue.try_view();
    let counters = counters.find_queue(queue.id);
    SubmissionQueueStatus {
        number: queue.id,
        entries: queue.entries,
        completion_queue: queue.completion_queue,
        waiting: now.map(|(waiting, _)| waiting),
        shadow_doorbell: now.map(|(_, is_shadowed)| is_shadowed),
        depth: counters.map_or(0, QueueCounters::depth),
        commands: counters.map_or(0, QueueCounters::ended),
    }
}

fn completion_queue(id: usize, queue: &CompletionQueue) -> CompletionQueueStatus {
    let now = queue.try_view();
    CompletionQueueStatus {
        number: id as u16,
        entries: queue.layout.entries,
        vector: queue.layout.vector,
        waiting: now.map(|(waiting, _)| waiting),
        shadow_doorbell: now.map(|(_, is_shadowed)| is_shadowed),
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
        capacity: namespace.capacity(),
        read_only: namespace.limits.read_only,
        formatting: namespace.is_formatting(),
        in_flight: namespace.disk.in_flight(),
        sync_failure: namespace.disk.sync_failure().map(|failure| failure.error.to_string()),
    }
}
