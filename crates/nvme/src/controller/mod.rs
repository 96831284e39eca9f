//! The controller: properties, how it is enabled, disabled and shut down (3.5, 3.6), and what it is as a
//! PCI function (PCIe transport 3.1).

mod saved;

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::region::Doorbell;
use vfiod_core::work::{Close, Rings, TaskHandle};
use vfiod_disk::{Channel, Request};
use vfiod_pci::Interrupts;
use vfiod_pci::prelude::*;
use vfiod_sync::atomic::Ordering;

use crate::admin::AdminQueue;
use crate::admin::events::Events;
use crate::admin::features::Features;
use crate::common::Common;
use crate::identity::Identity;
use crate::io::IoQueue;
use crate::options::NvmeOptions;
use crate::queues::serve::{serve, task_name};
use crate::queues::{CompletionQueue, Doorbells, Layout, Queues, SubmissionQueue};
use crate::spec::registers::{
    AQA_WRITABLE, BASE_WRITABLE, CAP, CC_WRITABLE, CRTO, Configuration, DOORBELLS, FATAL, QUEUES,
    READY, SHUT_DOWN, SHUTDOWN, SHUTTING_DOWN, SIZE, TIMEOUT, VERSION, admin_entries,
};

/// The interrupt vectors: one for each queue pair.
pub(crate) const VECTORS: usize = QUEUES;
/// NN: the largest number that a namespace can have.
pub(crate) const MAX_NAMESPACES: u32 = 16;
/// MDTS, as a power of two of pages of 4 KiB.
pub(crate) const MAX_TRANSFER_PAGES: u8 = 8;
/// Bytes of data that a command may have.
pub(crate) const MAX_TRANSFER: u64 = 4096 << MAX_TRANSFER_PAGES;
/// The vendor and device identifiers. Vendor 1234 belongs to nobody; virtual devices use it.
pub(crate) const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x7e33;
/// Mass storage, non-volatile memory, NVM Express I/O controller (PCIe transport 3.1.1).
const CLASS: u32 = 0x01_08_02;
/// The BAR of the MSI-X table, and where its pending bits are.
const TABLE_BAR: u8 = 4;
const PENDING_BITS: u32 = 0x800;

registers! {
    /// The properties (3.1.3). When the controller has become ready, or has been shut down, differs from
    /// run to run.
    #[derive(Debug)]
    pub struct Properties, enum Write {
        0x00 _: u64 = |_| CAP, width HALVES;
        0x08 _: u32 = |_| VERSION;
        // INTMS: a 1 masks the vector. A read gives what is masked.
        0x0c mask: u32 => Mask;
        // INTMC: a 1 unmasks the vector.
        0x10 _: u32 = |properties| properties.mask => Unmask;
        0x14 configuration: u32 => Configure, bits CC_WRITABLE;
        0x1c status: u32, bits READY | FATAL | SHUTDOWN, volatile READY | FATAL | SHUTDOWN;
        0x24 entries: u32 => Entries, bits AQA_WRITABLE;
        0x28 submissions: u64 => Submissions, width HALVES, bits BASE_WRITABLE;
        0x30 completions: u64 => Completions, width HALVES, bits BASE_WRITABLE;
        0x68 _: u32 = |_| CRTO;
    }
}

impl Properties {
    fn configuration(&self) -> Configuration {
        Configuration(self.configuration)
    }
}

/// An NVMe controller.
#[derive(Debug)]
pub struct Nvme {
    /// What the disk is opened with when the device is registered; `None`: it is open.
    options: Option<NvmeOptions>,
    pub(crate) identity: Identity,
    properties: Properties,
    /// `None`: not enabled. They are still there while the controller is being disabled.
    queues: Option<Arc<Queues>>,
    doorbells: Arc<Doorbells>,
    pub(crate) common: Arc<Common>,
    pub(crate) features: Features,
    pub(crate) events: Events,
    /// The host was told that a sync has failed: once.
    pub(crate) told_of_sync: bool,
}

impl Nvme {
    /// A controller whose disk is opened when it is registered.
    pub(crate) fn configured_with(options: NvmeOptions) -> Self {
        let unnamed = Self::new(Identity::default(), Common::new(Vec::new()));
        Self { options: Some(options), ..unnamed }
    }

    /// A controller with these namespaces.
    pub(crate) fn new(identity: Identity, common: Common) -> Self {
        Self {
            options: None,
            identity,
            properties: Properties::power_on(),
            queues: None,
            doorbells: Arc::default(),
            common: Arc::new(common),
            features: Features::default(),
            events: Events::default(),
            told_of_sync: false,
        }
    }

    /// CC, as the host has written it.
    pub(crate) fn configuration(&self) -> Configuration {
        self.properties.configuration()
    }

    /// The host writes CC.
    fn configure(&mut self, cx: &Cx<Self>, value: u32) {
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
        let queues = new_queues(configuration, cx.interrupts());
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
        self.properties.mask = 0;
        self.properties.status = READY;
        let queues = Arc::new(queues);
        self.doorbells.set(Some(queues.clone()));
        self.queues = Some(queues);
        self.start(cx, 0);
    }

    /// Starts the task of a queue, unless it is there.
    fn start(&self, cx: &Cx<Self>, id: usize) {
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

    /// Whether these are the queues of the controller, and nothing has ended their work.
    pub(crate) fn is_serving(&self, queues: &Arc<Queues>) -> bool {
        self.queues.as_ref().is_some_and(|own| Arc::ptr_eq(own, queues)) && !queues.is_stopped()
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
    fn finish_disabling(&self, cx: &Cx<Self>) {
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

    fn finish_shutdown(&self, cx: &Cx<Self>) {
        let (queues, common) = (self.queues.clone(), self.common.clone());
        cx.ensure_task("shutdown", |task| async move {
            if let Some(queues) = queues {
                queues.idle().await;
            }
            for namespace in &common.namespaces {
                let Ok(channel) = namespace.channel() else { continue };
                if let Err(failure) = channel.start(Request::Flush).await.result {
                    let (namespace, error) = (namespace.id, failure.error.to_string());
                    tracing::warn!(namespace, error, "the flush of a shutdown has failed");
                }
            }
            task.last_step(|nvme, _| {
                let status = &mut nvme.properties.status;
                if *status & SHUTDOWN == SHUTTING_DOWN {
                    *status = *status & !SHUTDOWN | SHUT_DOWN;
                }
            })
            .await;
        });
    }

    /// The controller cannot go on: it shows fatal status until it is disabled (9.5).
    pub(crate) fn fail(&mut self, queues: &Arc<Queues>) {
        if self.queues.as_ref().is_some_and(|own| Arc::ptr_eq(own, queues)) {
            self.properties.status |= FATAL;
        }
        queues.stop();
    }

    /// Which vectors the host has masked.
    fn set_mask(&mut self, mask: u32) {
        self.properties.mask = mask;
        if let Some(queues) = &self.queues {
            queues.vectors.mask(&queues.interrupts, mask);
        }
    }
}

/// The queues of a controller with this configuration.
fn new_queues(configuration: Configuration, interrupts: &Interrupts) -> Queues {
    Queues::new(4096 << configuration.page(), VECTORS, interrupts.clone())
}

/// Forgets what doorbells were rung with: that was meant for other queues.
pub(crate) fn forget_rings(cx: &Cx<Nvme>, bells: impl IntoIterator<Item = usize>) {
    let queue = cx.queue(bells, []);
    queue.quiesce(Close::Finish);
    cx.resume_queue(&queue, Rings::Forget);
}

impl Model for Nvme {
    type State = Works<HasState>;

    fn spec(&self) -> FunctionSpec {
        let doorbells = (0..2 * QUEUES as u64).map(|n| Doorbell::message(DOORBELLS + 4 * n, 4));
        let vectors = VECTORS as u16;
        FunctionSpec::new(VENDOR, DEVICE)
            .class(CLASS)
            .subsystem(VENDOR, DEVICE)
            .revision(1)
            .pin(Pin::A)
            .bar(0, doorbells.fold(Bar::memory64(SIZE), Bar::doorbell))
            .bar(TABLE_BAR, Bar::memory32(4096))
            .capability(Capability::PowerManagement)
            .capability(Capability::Msi { vectors: 32 })
            .capability(Capability::Msix {
                vectors,
                table: (TABLE_BAR, 0),
                pba: (TABLE_BAR, PENDING_BITS),
            })
            .capability(Capability::Express)
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        if let Some(options) = &self.options {
            let (identity, namespace) = options.open()?;
            (self.identity, self.common) = (identity, Arc::new(Common::new(vec![namespace])));
            self.options = None;
        }
        cx.set_data_path(self.doorbells.clone());
        self.common.counters.power_cycles.fetch_add(1, Ordering::Relaxed);
        self.common.namespaces.iter().try_for_each(|namespace| namespace.connect(cx.runtime()))
    }

    fn read(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        let range = offset..offset + data.len() as u64;
        if bar == 0 && Properties::find_register(range).is_some() {
            self.properties.read_register(offset, data);
        } else {
            // What is reserved, and doorbells.
            data.fill(0);
        }
    }

    fn read_traits(&self, bar: u8, offset: u64, len: usize) -> ReadTraits {
        if bar == 0 {
            return Properties::register_traits(offset, len);
        }
        ReadTraits { effect: ReadEffect::None, volatile: 0 }
    }

    fn write(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        if bar != 0 {
            return;
        }
        let Some(write) = self.properties.decode_write(offset, data) else { return };
        let properties = &mut self.properties;
        let is_enabled = properties.configuration().enabled();
        match write {
            Write::Mask(bits) => self.set_mask(self.properties.mask | bits),
            Write::Unmask(bits) => self.set_mask(self.properties.mask & !bits),
            Write::Configure(value) => self.configure(cx, value),
            // While it is enabled they stay what they are.
            Write::Entries(_) | Write::Submissions(_) | Write::Completions(_) if is_enabled => {}
            Write::Entries(entries) => properties.entries = entries & AQA_WRITABLE,
            Write::Submissions(base) => properties.submissions = base & BASE_WRITABLE,
            Write::Completions(base) => properties.completions = base & BASE_WRITABLE,
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self {
            options: _,
            identity: _,
            properties,
            queues,
            doorbells,
            common,
            features,
            events,
            told_of_sync,
        } = self;
        *told_of_sync = false;
        doorbells.set(None);
        *queues = None;
        properties.reset_registers();
        *features = Features::default();
        features.apply(common);
        *events = Events::default();
        common.forget_errors();
    }
}

impl Worker for Nvme {
    /// Tasks finish what they have begun: the kernel may still write the guest's memory, and what the
    /// disk was asked for must not be done after what comes next.
    fn quiesce(&mut self, _cx: &Cx<Self>, why: Why) -> Quiesce {
        if let Some(queues) = &self.queues {
            if why.ends() {
                queues.stop();
            } else {
                queues.pause(true);
            }
        }
        Quiesce::Finish
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        let status = self.properties.status;
        if status & SHUTDOWN == SHUTTING_DOWN {
            self.finish_shutdown(cx);
        }
        let Some(queues) = &self.queues else { return };
        if !self.configuration().enabled() {
            return self.finish_disabling(cx);
        }
        if status & FATAL != 0 {
            return;
        }
        if queues.is_stopped() {
            // Closed, with its state retained.
            self.renew_queues(cx);
        }
        let Some(queues) = &self.queues else { return };
        queues.pause(false);
        (0..QUEUES).for_each(|id| self.start(cx, id));
    }
}
