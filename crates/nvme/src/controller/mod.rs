//! The controller: its properties (3.1.3), and what it is made of. How it is enabled, disabled and shut down
//! is in `lifecycle`, what it is as a PCI function in `function`.

mod deferred;
mod digits;
mod function;
mod lifecycle;
mod mapped;
mod saved;

use std::sync::Arc;

use vfiod_core::PolledDoorbells;
use vfiod_core::work::{Close, Rings};
use vfiod_disk::{Backend, Disk};
use vfiod_pci::Interrupts;
use vfiod_pci::prelude::*;

use crate::admin::events::Events;
use crate::changes::Changes;
use crate::common::Common;
use crate::disks::instance::ManagedImage;
use crate::error_recovery::ErrorRecovery;
use crate::features::Features;
use crate::identity::Identity;
use crate::kept::KeptAtEnd;
use crate::namespace::{Namespace, Neighbour};
use crate::options::{DoorbellsOption, NvmeOptions};
use crate::queues::{Controller, Doorbells, Queues};
use crate::rate::RateLimit;
use crate::report::Shown;
use crate::timestamp::Timestamp;
use crate::vectors::Vectors;
use vfiod_nvme_spec::registers::{
    AQA_WRITABLE, BASE_WRITABLE, CAP, CC_WRITABLE, CRTO, Configuration, FATAL, QUEUES, READY,
    SHUTDOWN, VERSION,
};

/// The interrupt vectors: one for each queue pair.
pub(crate) const VECTORS: usize = QUEUES;
/// The vendor identifier 1234 belongs to nobody; virtual devices use it.
pub(crate) const VENDOR: u16 = 0x1234;

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
    options: Option<(NvmeOptions, Option<Arc<ManagedImage>>)>,
    /// The image of an instance, whose size its parent counts.
    pub(crate) managed: Option<Arc<ManagedImage>>,
    /// The options that make what runs.
    pub(crate) running: NvmeOptions,
    pub(crate) identity: Identity,
    properties: Properties,
    /// `None`: not enabled. They are still there while the controller is being disabled.
    queues: Option<Arc<Queues>>,
    doorbells: Arc<Doorbells>,
    /// What the operator is shown of registers and queues.
    shown: Arc<Shown>,
    /// Keeps counters while somebody has the controller open.
    keeper: Option<vfiod_tasks::Task<()>>,
    kept_at_end: Option<KeptAtEnd>,
    pub(crate) common: Arc<Common>,
    /// Told by controllers that have a namespace in common with this one.
    pub(crate) neighbour: Option<Arc<dyn Neighbour>>,
    pub(crate) features: Features,
    /// What features are after a reset: those that the host has saved.
    pub(crate) saved_features: Features,
    /// The feature that namespaces have, and what it is after a reset.
    pub(crate) error_recovery: ErrorRecovery,
    pub(crate) saved_error_recovery: ErrorRecovery,
    pub(crate) events: Events,
    pub(crate) timestamp: Timestamp,
    /// The host was told that a sync has failed: once.
    pub(crate) told_of_sync: bool,
    /// What the host is to be told of namespaces.
    pub(crate) changes: Arc<Changes>,
    /// Counts shutdowns that the host has asked for.
    shutdowns: u32,
    /// Doorbells that the host maps, which are polled while the controller is enabled; `None`: it maps none.
    polled: Option<PolledDoorbells>,
}

impl Nvme {
    /// A controller whose disk is opened when it is registered; `image`: whose image is looked after.
    pub(crate) fn configured_with(options: NvmeOptions, image: Option<Arc<ManagedImage>>) -> Self {
        let mapped_doorbells = options.doorbells == DoorbellsOption::Mapped;
        let rate = Arc::new(RateLimit::new(options.rate_limits()));
        let common = Common { rate, mapped_doorbells, ..Common::new(0, Vec::new()) };
        let unnamed = Self::new(Identity::default(), common);
        let (running, managed) = (options.clone(), image.clone());
        Self { running, managed, options: Some((options, image)), ..unnamed }
    }

    /// A controller whose only namespace is kept by a back end of the caller's. Its names are new with each
    /// call, unless the options give them.
    ///
    /// # Errors
    /// `EINVAL`: the options contradict each other, name a disk, or their block size is none of the back end.
    pub fn with_backend(options: &NvmeOptions, backend: Arc<dyn Backend>) -> Result<Self> {
        let (identity, volume) = options.name_disk(Disk::new(backend))?;
        let namespace = Namespace::new(1, Arc::new(volume));
        let common = Common::configured(options, vec![namespace]);
        common.rate.set(options.rate_limits());
        Ok(Self::new(identity, common))
    }

    /// A controller with these namespaces.
    pub(crate) fn new(identity: Identity, common: Common) -> Self {
        let doorbells = Arc::<Doorbells>::default();
        Self {
            options: None,
            managed: None,
            running: NvmeOptions::default(),
            identity,
            properties: Properties::power_on(),
            queues: None,
            shown: Arc::default(),
            keeper: None,
            kept_at_end: None,
            changes: Arc::new(Changes::new(doorbells.clone())),
            doorbells,
            common: Arc::new(common),
            neighbour: None,
            features: Features::default(),
            saved_features: Features::default(),
            error_recovery: ErrorRecovery::default(),
            saved_error_recovery: ErrorRecovery::default(),
            events: Events::default(),
            timestamp: Timestamp::reset(),
            told_of_sync: false,
            shutdowns: 0,
            polled: None,
        }
    }

    /// CC, as the host has written it.
    pub(crate) fn configuration(&self) -> Configuration {
        self.properties.configuration()
    }

    /// Whether these are the queues of the controller, and nothing has ended their work.
    pub(crate) fn is_serving(&self, queues: &Arc<Queues>) -> bool {
        self.queues.as_ref().is_some_and(|own| Arc::ptr_eq(own, queues)) && !queues.is_stopped()
    }

    /// Clears bits of CSTS, then sets others.
    fn set_status(&mut self, clear: u32, set: u32) {
        self.properties.status = self.properties.status & !clear | set;
        self.show();
    }

    /// Shows the operator what CC, CSTS and the queues are now. To be called whenever one has changed.
    fn show(&self) {
        let Properties { configuration, status, .. } = self.properties;
        self.shown.set(Configuration(configuration), status, self.queues.clone());
    }

    /// Makes those features act that act in tasks.
    pub(crate) fn apply_features(&self) {
        self.common.apply(&self.features);
        if let Some(queues) = &self.queues {
            let Features { coalescing, uncoalesced, .. } = self.features;
            queues.vectors.coalesce(&queues.interrupts, coalescing, uncoalesced);
        }
    }

    /// Which vectors the host has masked.
    fn set_mask(&mut self, mask: u32) {
        self.properties.mask = mask;
        if let Some(queues) = &self.queues {
            queues.vectors.mask(&queues.interrupts, mask);
        }
    }
}

impl Controller for Nvme {
    fn fail(&mut self, queues: &Arc<Queues>) {
        if self.is_serving(queues) {
            self.set_status(0, FATAL);
            self.stop_polling();
        }
        queues.stop();
    }
}

impl Nvme {
    /// Queues for a controller with this configuration.
    fn new_queues(&self, configuration: Configuration, interrupts: &Interrupts) -> Queues {
        let (page, vectors) = (4096 << configuration.page(), Vectors::new(VECTORS));
        Queues::new(page, self.common.max_commands, vectors, interrupts.clone())
    }
}

/// Forgets what doorbells were rung with: that was meant for other queues.
pub(crate) fn forget_rings(cx: &Cx<Nvme>, bells: impl IntoIterator<Item = usize>) {
    let queue = cx.queue(bells, []);
    queue.quiesce(Close::Finish);
    cx.resume_queue(&queue, Rings::Forget);
}
