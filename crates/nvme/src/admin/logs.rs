//! Get Log Page (5.16).

use vfiod_pci::Cx;
use vfiod_sync::lock;

use super::AdminQueue;
use super::events::Event;
use crate::changes::Changed;
use crate::common::Common;
use crate::controller::Nvme;
use crate::features::TEMPERATURE;
use crate::identity::FIRMWARE;
use crate::limits::MAX_TRANSFER;
use vfiod_nvme_spec::feature::FEATURES;
use vfiod_nvme_spec::identify;
use vfiod_nvme_spec::log::{PAGES, Page, WARNING_READ_ONLY, WARNING_TEMPERATURE};
use vfiod_nvme_spec::opcode::{ADMIN, IO};
use vfiod_nvme_spec::submission::ALL_NAMESPACES;
use vfiod_nvme_spec::{Outcome, Status, Submission, put, put_text};

/// RAE: what the page tells of is still masked.
const RETAIN: u32 = 1 << 15;

impl AdminQueue {
    pub(super) async fn get_log_page(&self, command: &Submission) -> Outcome {
        let dword = command.dword(10);
        let id = dword as u8;
        let page = PAGES.find(id, |needs| self.common.has(needs))?;
        let dwords = u64::from(dword >> 16) | u64::from(command.dword(11) & 0xffff) << 16;
        let len = (dwords + 1) * 4;
        let offset = u64::from(command.dword(12)) | u64::from(command.dword(13)) << 32;
        // Offsets are in bytes: an index of entries is not offered (OT).
        if len > MAX_TRANSFER || offset % 4 != 0 || command.dword(14) & 1 << 23 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let is_of_controller = matches!(command.namespace(), 0 | ALL_NAMESPACES);
        if page == Page::Smart && !is_of_controller {
            return Err(Status::INVALID_FIELD);
        }
        let is_read = dword & RETAIN == 0;
        let taken = match page {
            Page::ChangedNamespaces if is_read => Some(self.take_changes().await),
            _ => None,
        };
        let bytes = match &taken {
            Some(changed) => identify::list(changed.list.ids()).to_vec(),
            None => self.page(page).await,
        };
        let sent = self.send_part(command, &bytes, (offset, len)).await;
        if let (Err(_), Some(changed)) = (&sent, taken) {
            // The host did not get it.
            self.task.step(|nvme, _| nvme.changes.put_back(&changed)).await;
            self.queues.notice_events();
        }
        sent?;
        if is_read {
            self.task.step(|nvme, _| nvme.events.log_was_read(id.into())).await;
            self.queues.notice_events();
        }
        Ok(0)
    }

    async fn send_part(
        &self,
        command: &Submission,
        bytes: &[u8],
        (offset, len): (u64, u64),
    ) -> Result<(), Status> {
        let from = usize::try_from(offset).ok().filter(|from| *from < bytes.len());
        let from = from.ok_or(Status::INVALID_FIELD)?;
        let to = bytes.len().min(from + len as usize);
        self.send(command, &bytes[from..to]).await
    }

    /// What has changed of namespaces, which the host is about to read: no event tells of that any more.
    async fn take_changes(&self) -> Changed {
        let take = |nvme: &mut Nvme, _: &Cx<Nvme>| {
            let Changed { list, is_new } = nvme.changes.take();
            let was_pending = nvme.events.forget(Event::NamespaceChanged);
            Changed { list, is_new: is_new || was_pending }
        };
        self.task.step(take).await
    }

    async fn page(&self, page: Page) -> Vec<u8> {
        match page {
            Page::ErrorInformation => lock(&self.common.errors).page().as_flattened().to_vec(),
            Page::Smart => {
                let warns = self.task.step(|nvme, _| nvme.features.temperature_warns()).await;
                let mut health = self.common.health();
                health.temperature = TEMPERATURE;
                let read_only = self.common.is_read_only();
                health.critical_warning = (u8::from(warns) * WARNING_TEMPERATURE)
                    | (u8::from(read_only) * WARNING_READ_ONLY);
                health.encode().to_vec()
            }
            Page::FirmwareSlot => {
                let mut page = vec![0; 512];
                // AFI: slot 1 is active.
                page[0] = 1;
                put_text(&mut page, 8, 8, FIRMWARE);
                page
            }
            Page::ChangedNamespaces => {
                let changed = self.task.step(|nvme, _| nvme.changes.save()).await;
                identify::list(changed.list.ids()).to_vec()
            }
            Page::ManagementEffects => vec![0; 4096],
            Page::CommandEffects => self.common.command_effects(),
            Page::FeatureEffects => self.common.feature_effects(),
            Page::SupportedLogPages => self.common.supported_pages(),
        }
    }
}

impl Common {
    /// Supported Log Pages (5.16.1.1).
    fn supported_pages(&self) -> Vec<u8> {
        entries(1024, PAGES.offered(|needs| self.has(needs)).map(|(id, _)| (id, 1)))
    }

    /// Commands Supported and Effects (5.16.1.6): of admin commands, then of I/O commands.
    fn command_effects(&self) -> Vec<u8> {
        let admin = ADMIN.offered(|needs| self.has(needs));
        let io = IO.offered(|needs| self.has(needs));
        let mut page = entries(1024, admin.map(|(opcode, command)| (opcode, command.effects)));
        page.extend(entries(3072, io.map(|(opcode, command)| (opcode, command.effects))));
        page
    }

    /// Feature Identifiers Supported and Effects (5.16.1).
    fn feature_effects(&self) -> Vec<u8> {
        let offered = FEATURES.offered(|needs| self.has(needs));
        entries(1024, offered.map(|(id, feature)| (id, feature.effects())))
    }
}

/// A page of so many bytes with a dword for each identifier.
fn entries(len: usize, values: impl Iterator<Item = (u8, u32)>) -> Vec<u8> {
    let mut page = vec![0; len];
    values.for_each(|(id, value)| put(&mut page, 4 * usize::from(id), value.to_le_bytes()));
    page
}
