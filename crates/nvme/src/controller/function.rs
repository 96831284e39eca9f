//! What the controller is as a PCI function (PCIe transport 3.1).

use std::sync::Arc;
use std::time::Duration;

use schemars::{Schema, SchemaGenerator};
use vfiod_config::{Claim, ConfiguredModel, Finding, Needs};
use vfiod_core::region::Doorbell;
use vfiod_pci::prelude::*;
use vfiod_sync::atomic::Ordering;

use super::{Nvme, Properties, VECTORS, VENDOR, Write};
use crate::admin::events::Events;
use crate::changes::{Changed, Changes};
use crate::common::Common;
use crate::kept::{KeptAtEnd, keep_periodically};
use crate::limits::MAX_DEFERRED;
use crate::namespace::Neighbour;
use crate::options::NvmeOptions;
use crate::queues::{Doorbells, Queues};
use crate::report::{NvmeReport, NvmeStatus};
use crate::subsystem::Subsystems;
use crate::timestamp::Timestamp;
use vfiod_nvme_spec::registers::{
    AQA_WRITABLE, BASE_WRITABLE, DOORBELLS, FATAL, QUEUES, SHUTDOWN, SHUTTING_DOWN, SIZE,
};

/// The device identifier.
const DEVICE: u16 = 0x7e33;
/// Mass storage, non-volatile memory, NVM Express I/O controller (PCIe transport 3.1.1).
const CLASS: u32 = 0x01_08_02;
/// The BAR of the MSI-X table, and where its pending bits are.
const TABLE_BAR: u8 = 4;
const PENDING_BITS: u32 = 0x800;

/// What a controller is told by others that have a namespace in common with it.
#[derive(Debug)]
struct ToldByOthers {
    common: Arc<Common>,
    doorbells: Arc<Doorbells>,
    changes: Arc<Changes>,
}

impl Neighbour for ToldByOthers {
    fn sync_failed(&self) {
        self.common.sync_failed.store(true, Ordering::SeqCst);
        self.doorbells.notice_events();
    }

    fn namespace_changed(&self, id: u32) {
        self.changes.note(id);
    }
}

impl ConfiguredModel for Nvme {
    type Options = NvmeOptions;

    const SUMMARY: &'static str = "NVMe controller with one disk or several; Linux: nvme";
    const NEEDS: Needs = Needs { system_calls: vfiod_disk::SYSTEM_CALLS, ..Needs::NONE };

    fn status_schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<NvmeStatus>())
    }

    fn claims(options: &NvmeOptions) -> Vec<Claim> {
        options.claims()
    }

    fn examine(options: &NvmeOptions) -> Vec<Finding> {
        options.examine()
    }

    fn configured(options: NvmeOptions) -> Result<Self> {
        options.check()?;
        Ok(Self::configured_with(options, None))
    }
}

impl Model for Nvme {
    type State = Works<HasState>;

    fn spec(&self) -> FunctionSpec {
        let doorbells = (0..2 * QUEUES as u64).map(|n| Doorbell::message(DOORBELLS + 4 * n, 4));
        let registers = Bar::memory64(SIZE).shared(self.shared_areas());
        let vectors = VECTORS as u16;
        FunctionSpec::new(VENDOR, DEVICE)
            .class(CLASS)
            .subsystem(VENDOR, DEVICE)
            .revision(1)
            .pin(Pin::A)
            .bar(0, doorbells.fold(registers, Bar::doorbell))
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
        if let Some((options, image)) = &self.options {
            if let Some(image) = image {
                image.prepare()?;
            }
            let seat = match (cx.common::<Subsystems>().enter(options, cx.name()), image) {
                (Err(error), Some(image)) => return Err(image.refused(error)),
                (seat, _) => seat?,
            };
            let (identity, rate) = (seat.identity(), self.common.rate.clone());
            (self.identity, self.common) =
                (identity, Arc::new(Common::seated(options, seat, rate)));
            if let (Some(image), Some(disk)) = (image, self.common.namespaces.get(1)) {
                image.opened(disk.capacity(), &self.identity.serial, disk.identity.uuid);
            }
            self.options = None;
        }
        self.take_poll_seat(cx)?;
        cx.set_data_path(self.doorbells.clone());
        let (common, shown) = (self.common.clone(), self.shown.clone());
        cx.set_report(Arc::new(NvmeReport { identity: self.identity.clone(), common, shown }));
        self.saved_features = self.common.load();
        for namespace in self.common.namespaces.all() {
            self.saved_error_recovery
                .set(namespace.id, self.common.load_error_recovery(&namespace));
        }
        self.kept_at_end = Some(KeptAtEnd(self.common.clone()));
        let neighbour: Arc<dyn Neighbour> = Arc::new(ToldByOthers {
            common: self.common.clone(),
            doorbells: self.doorbells.clone(),
            changes: self.changes.clone(),
        });
        self.common.namespaces.all().try_for_each(|namespace| {
            namespace.tell(&neighbour);
            namespace.connect(cx.runtime(), cx.flights(), cx.payer())
        })?;
        self.neighbour = Some(neighbour);
        Ok(())
    }

    /// The controller has power.
    fn open(&mut self, cx: &Cx<Self>) -> Result<()> {
        self.common.counters.power_on();
        self.keeper = Some(keep_periodically(&self.common, cx.runtime()));
        Ok(())
    }

    fn close(&mut self, _cx: &Cx<Self>) {
        self.keeper = None;
        self.common.counters.power_off();
        self.common.keep();
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
            managed: _,
            running: _,
            identity: _,
            properties,
            queues,
            doorbells,
            shown: _,
            keeper: _,
            kept_at_end: _,
            common,
            neighbour: _,
            features,
            saved_features,
            error_recovery,
            saved_error_recovery,
            events,
            timestamp,
            told_of_sync,
            changes,
            // The task of one has ended.
            shutdowns: _,
            polled: _,
        } = self;
        *timestamp = Timestamp::reset();
        *told_of_sync = false;
        doorbells.set(None);
        *queues = None;
        properties.reset_registers();
        *features = *saved_features;
        error_recovery.clone_from(saved_error_recovery);
        common.apply(features);
        *events = Events::default();
        changes.restore(Changed::default());
        common.forget_errors();
        // The page of doorbells was zeroed.
        self.stop_polling();
        self.show();
    }
}

/// Keeps the controller from being saved, by a task, while there are more completions than a saved state has room for:
/// they wait until the host lets the device reach memory.
fn hold_up_save(cx: &Cx<Nvme>, queues: Arc<Queues>) {
    let exceeds = move || {
        let all = queues.under_way() + queues.deferred();
        all as usize > MAX_DEFERRED && queues.is_paused() && !queues.is_stopped()
    };
    if exceeds() {
        cx.ensure_task("more completions than can be saved", |task| async move {
            while exceeds() {
                task.task().sleep(Duration::from_millis(10)).await;
            }
        });
    }
}

impl Worker for Nvme {
    /// Tasks finish what they have begun: the kernel may still write the guest's memory, and what the
    /// disk was asked for must not be done after what comes next.
    fn quiesce(&mut self, cx: &Cx<Self>, why: Why) -> Quiesce {
        if let Some(shutdown) = cx.find_task("shutdown") {
            // Its flush goes on, and holds up nobody; where the controller goes on, another one begins.
            shutdown.cancel();
        }
        if let Some(queues) = &self.queues {
            if why == Why::Close {
                // The state may be retained.
                queues.stop_and_defer();
                self.stop_polling();
            } else if why.ends() {
                queues.stop();
                self.stop_polling();
            } else if why == Why::HotReset {
                queues.pause_and_park();
            } else {
                queues.pause(true);
                hold_up_save(cx, queues.clone());
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
        if let Err(error) = self.resume_polling() {
            return self.cannot_poll(cx, &error);
        }
        (0..QUEUES).for_each(|id| self.start(cx, id));
    }
}
