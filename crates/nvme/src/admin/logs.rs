//! Get Log Page (5.16).

use vfiod_sync::lock;

use super::AdminQueue;
use crate::controller::MAX_TRANSFER;
use crate::features::TEMPERATURE;
use crate::identity::FIRMWARE;
use crate::spec::feature::{FEATURES, Feature};
use crate::spec::log::{self, PAGES, Page, WARNING_READ_ONLY, WARNING_TEMPERATURE};
use crate::spec::opcode::{ADMIN, Command, IO, Io};
use crate::spec::submission::ALL_NAMESPACES;
use crate::spec::{Outcome, Status, Submission, put, put_text};

/// RAE: what the page tells of is still masked.
const RETAIN: u32 = 1 << 15;

impl AdminQueue {
    pub(super) async fn get_log_page(&self, command: &Submission) -> Outcome {
        let dword = command.dword(10);
        let id = dword as u8;
        let page = log::find(id).ok_or(Status::INVALID_LOG)?;
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
        let bytes = self.page(page).await;
        let from = usize::try_from(offset).ok().filter(|from| *from < bytes.len());
        let from = from.ok_or(Status::INVALID_FIELD)?;
        let to = bytes.len().min(from + len as usize);
        self.send(command, &bytes[from..to]).await?;
        if dword & RETAIN == 0 {
            self.task.step(|nvme, _| nvme.events.log_was_read(id.into())).await;
            self.queues.notice_events();
        }
        Ok(0)
    }

    async fn page(&self, page: Page) -> Vec<u8> {
        match page {
            Page::SupportedLogPages => supported_pages(),
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
            // None has changed since the controller was made.
            Page::ChangedNamespaces | Page::ManagementEffects => vec![0; 4096],
            Page::CommandEffects => command_effects(self.common.deallocates()),
            Page::FeatureEffects => feature_effects(self.common.has_write_cache()),
        }
    }
}

/// Supported Log Pages (5.16.1.1).
fn supported_pages() -> Vec<u8> {
    let mut page = vec![0; 1024];
    PAGES.iter().for_each(|(id, _)| page[4 * usize::from(*id)] = 1);
    page
}

/// Commands Supported and Effects (5.16.1.6).
fn command_effects(deallocates: bool) -> Vec<u8> {
    fn add<C>(page: &mut [u8], command: &Command<C>) {
        let effects = 1 | u32::from(command.changes_blocks) << 1;
        put(page, 4 * usize::from(command.opcode), effects.to_le_bytes());
    }
    let mut page = vec![0; 4096];
    let (admin, io) = page.split_at_mut(1024);
    ADMIN.iter().for_each(|command| add(admin, command));
    let is_offered =
        |command: &&Command<Io>| deallocates || command.command != Io::DatasetManagement;
    IO.iter().filter(is_offered).for_each(|command| add(io, command));
    page
}

/// Feature Identifiers Supported and Effects (5.16.1.17): all are the controller's.
fn feature_effects(write_cache: bool) -> Vec<u8> {
    let mut page = vec![0; 1024];
    let is_offered = |feature: Feature| write_cache || feature != Feature::VolatileWriteCache;
    for (id, _) in FEATURES.iter().filter(|(_, feature)| is_offered(*feature)) {
        put(&mut page, 4 * usize::from(*id), (1_u32 | 1 << 21).to_le_bytes());
    }
    page
}
