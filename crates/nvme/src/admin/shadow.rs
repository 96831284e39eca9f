//! Doorbell Buffer Config (5.11).

use super::AdminQueue;
use crate::queues::{DoorbellPlace, Pages};
use vfiod_core::Result;
use vfiod_core::dma::{Attachment, Perm};
use vfiod_nvme_spec::{Outcome, Status, Submission};

impl AdminQueue {
    /// Sets the pages of shadow doorbells, until the controller is reset. Pages that are reached by message
    /// are refused: a look at a doorbell would cost more than the doorbell.
    pub(super) fn configure_doorbell_buffers(&self, command: &Submission) -> Outcome {
        let (doorbells, events) = command.prps();
        let page = self.queues.page;
        if doorbells % page != 0 || events % page != 0 || doorbells == events {
            return Err(Status::INVALID_FIELD);
        }
        let dma = self.task.dma();
        for at in [doorbells, events] {
            match is_mapped(dma, at, page) {
                Ok(true) => {}
                Ok(false) => return Err(Status::INVALID_FIELD),
                Err(_) => return Err(Status::DATA_TRANSFER),
            }
        }
        let set = self.queues.set_place(dma, DoorbellPlace::Shadow(Pages { doorbells, events }));
        set.map(|()| 0).map_err(|_| Status::DATA_TRANSFER)
    }
}

/// Whether a page can be read and written without a message.
fn is_mapped(dma: &Attachment, at: u64, page: u64) -> Result<bool> {
    let mut batch = dma.batch()?;
    let mut offset = 0;
    while offset < page {
        let (at, len) = (at.saturating_add(offset), (page - offset) as usize);
        let span = batch.translate(at, len, Perm::READ | Perm::WRITE)?;
        if !span.is_mapped() {
            return Ok(false);
        }
        offset += span.len() as u64;
    }
    Ok(true)
}
