//! Firmware Commit (5.12) and Firmware Image Download (5.13). The firmware is this program, in the one slot
//! that there is, which is read-only: an image is taken apart from nothing, and none is accepted.

use super::AdminQueue;
use crate::limits::MAX_TRANSFER;
use crate::prp;
use crate::transfer;
use vfiod_nvme_spec::{Outcome, Status, Submission};

/// Commit Actions that replace the image of a slot, and those that activate one.
const REPLACE: [u32; 2] = [0, 1];
const ACTIVATE: [u32; 2] = [2, 3];
/// Bytes that are taken at a time.
const PART: usize = 4096;
/// FWUG (5.17.2.1): pieces of an image begin and end anywhere.
pub(crate) const GRANULARITY: u8 = 0xff;

impl AdminQueue {
    /// Takes a piece of an image, and forgets it.
    pub(super) async fn download_firmware(&self, command: &Submission) -> Outcome {
        let len = (u64::from(command.dword(10)) + 1) * 4;
        if len > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let (dma, page) = (self.task.dma(), self.queues.page);
        let mut turn = None;
        loop {
            let done = self.reach(async {
                // As many commands may be under way as a controller may have: none has memory for its piece.
                let mut bytes = [0; PART];
                for piece in prp::pieces(dma, page, command.prps(), len as usize).await? {
                    let mut left = Some(piece);
                    while let Some(now) = left {
                        let (part, rest) = now.split(PART);
                        let len = part.len();
                        transfer::gather(dma, &[part], &mut bytes[..len]).await?;
                        left = rest;
                    }
                }
                Ok(0)
            });
            if let Some(result) = self.settled(done.await, &mut turn).await? {
                return Ok(result);
            }
        }
    }

    pub(super) fn commit_firmware(&self, command: &Submission) -> Outcome {
        let (slot, action) = (command.dword(10) & 7, command.dword(10) >> 3 & 7);
        let replaces = REPLACE.contains(&action);
        if !replaces && !ACTIVATE.contains(&action) {
            return Err(Status::INVALID_FIELD);
        }
        match slot {
            // The controller may choose: there is one.
            0 if replaces => Err(Status::INVALID_FIRMWARE_IMAGE),
            0 => Ok(0),
            1 if !replaces => Ok(0),
            // Read-only, or not there.
            _ => Err(Status::INVALID_FIRMWARE_SLOT),
        }
    }
}
