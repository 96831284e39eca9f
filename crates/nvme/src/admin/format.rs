//! Format NVM (5.14).

use std::sync::Arc;

use vfiod_disk::{Channel, Done, FailureKind, Request};
use vfiod_pci::Cx;

use super::AdminQueue;
use crate::controller::Nvme;
use crate::denied::Denied;
use crate::io::{absent, judge};
use crate::kept::change_metadata;
use crate::namespace::{BLOCK_SIZES, Namespace};
use vfiod_nvme_spec::submission::ALL_NAMESPACES;
use vfiod_nvme_spec::{Outcome, Status, Submission};

/// Bytes that are erased before the command looks whether the controller stops.
const PART: u64 = 64 << 20;

impl AdminQueue {
    /// Erases a namespace, or all, and gives it another block size. Its commands that come meanwhile end
    /// with Format In Progress. Secure Erase (user data) does no more than what is done anyway.
    pub(super) async fn format(&self, command: &Submission) -> Outcome {
        let dword = command.dword(10);
        let (format, protection, erase) = (dword & 0xf, dword >> 5 & 7, dword >> 9 & 7);
        let upper = dword >> 12 & 3;
        if erase > 1 {
            return Err(Status::INVALID_FIELD);
        }
        let block_size = BLOCK_SIZES.get(format as usize).filter(|_| upper == 0 && protection == 0);
        let block_size = *block_size.ok_or(Status::INVALID_FORMAT)?;
        let id = command.namespace();
        let is_meant = |namespace: &Arc<Namespace>| id == ALL_NAMESPACES || namespace.id == id;
        let meant: Vec<_> = self.common.namespaces.all().filter(is_meant).collect();
        if meant.is_empty() {
            return Err(absent(&self.common, id));
        }
        // All are judged before the first one is erased.
        for namespace in &meant {
            if namespace.limits.read_only {
                return Err(Status::WRITE_PROTECTED);
            }
            if !namespace.can_have(block_size) {
                return Err(Status::INVALID_FORMAT);
            }
        }
        for namespace in &meant {
            self.format_one(namespace, block_size).await?;
        }
        Ok(0)
    }

    async fn format_one(&self, namespace: &Namespace, block_size: u32) -> Result<(), Status> {
        let formatting = namespace.begin_format()?;
        // What was begun counts in blocks of the old size.
        self.reach(async {
            formatting.alone().await;
            Ok(())
        })
        .await?;
        let channel = namespace.channel()?;
        let (mut offset, capacity, mut turn) = (0, namespace.capacity(), None);
        let deallocate = namespace.limits.deallocate.is_some();
        while offset < capacity {
            if self.queues.is_stopped() {
                return Err(Status::ABORT_REQUESTED);
            }
            if namespace.is_removed() {
                return Err(Status::INVALID_FIELD);
            }
            let len = PART.min(capacity - offset);
            let request = Request::Zero { offset, len, deallocate, durable: false };
            let done = channel.start_within(&self.queues.interest, request).await;
            let done = self.judge(namespace, done);
            if let Some(()) = self.settled(done, &mut turn).await? {
                offset += len;
            }
        }
        loop {
            let flushed = self.judge(namespace, channel.start(Request::Flush).await);
            if let Some(()) = self.settled(flushed, &mut turn).await? {
                break;
            }
        }
        drop(turn);
        if let Err(error) = store(namespace, block_size).await {
            let (namespace, error) = (namespace.id, error.to_string());
            let log = move |_: &mut Nvme, cx: &Cx<Nvme>| {
                if let Some(suppressed) = cx.may_log() {
                    tracing::warn!(
                        device = cx.name(),
                        namespace,
                        error,
                        suppressed,
                        "formatted, but the block size cannot be kept"
                    );
                }
            };
            self.task.step(log).await;
            return Err(Status::INTERNAL);
        }
        namespace.set_block_size(block_size);
        let own = self.task.step(|nvme, _| nvme.neighbour.clone()).await;
        namespace.has_changed(own.as_ref());
        Ok(())
    }

    fn judge(&self, namespace: &Namespace, done: Done) -> Result<(), Denied> {
        let media = Status::WRITE_FAULT;
        done.result.map_err(|failure| match failure.kind {
            FailureKind::Short => Denied::Short,
            _ => judge(&self.common, &self.queues, namespace, &failure, media).into(),
        })
    }
}

/// Keeps the block size beside the image.
async fn store(namespace: &Namespace, block_size: u32) -> vfiod_core::Result<()> {
    let Some(metadata) = namespace.metadata.clone() else { return Ok(()) };
    change_metadata(metadata, move |stored| stored.block = block_size).await
}
