//! Copy (NVM command set 3.2.2).

use vfiod_buffer::{list_for, zeroed};
use vfiod_disk::{Buffer, Done, FailureKind, Request};

use super::IoQueue;
use crate::denied::Denied;
use crate::limits::{MAX_COPY_RANGES, MAX_TRANSFER};
use crate::namespace::Namespace;
use vfiod_nvme_spec::{Status, Submission};

/// Bytes of a source range of format 0.
const RANGE: usize = 32;
/// OCFS: format 0.
pub(crate) const FORMATS: u16 = 1;

impl IoQueue {
    /// Copies ranges to one place. All are read before the first block is written: they may overlap it.
    /// Dword 0 of a failure is 0: it may be that no range was copied.
    pub(super) async fn copy(
        &self,
        namespace: &Namespace,
        command: &Submission,
    ) -> Result<u32, Denied> {
        self.writable(namespace)?;
        let dword = command.dword(12);
        if dword >> 8 & 0xf != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        let count = (dword & 0xff) as usize + 1;
        if count > MAX_COPY_RANGES {
            return Err(Status::COMMAND_SIZE_LIMIT.into());
        }
        let bytes = self.receive(namespace, command, count * RANGE).await?;
        let ranges: Vec<(u64, u64)> = bytes.chunks_exact(RANGE).map(decode).collect();
        let most = u64::from(namespace.copy_blocks());
        // No sum of them overflows: there are few, of 16 bits each.
        let blocks = ranges.iter().map(|(_, blocks)| blocks).sum();
        if blocks > most {
            return Err(Status::COMMAND_SIZE_LIMIT.into());
        }
        let (to, len) = namespace.range(command.first_block(), blocks)?;
        for (first, blocks) in &ranges {
            namespace.range(*first, *blocks)?;
        }
        // It is read and written.
        self.common.rate.spend(0, 2 * len);
        let make = || {
            let lens =
                ranges.iter().map(|(_, blocks)| (blocks << namespace.block_shift()) as usize);
            let parts: Option<Vec<_>> = lens.map(|len| zeroed(len).ok()).collect();
            Some((list_for(len as usize).ok()?, parts?))
        };
        let ends = self.queues.ends(self.id);
        let taken = self.common.bounce.take(&self.task, ends, 2 * len as usize, make);
        let (_charged, (mut data, parts)) = self.reach(namespace, taken).await?;
        for ((first, blocks), part) in ranges.iter().zip(parts) {
            let (offset, _) = namespace.range(*first, *blocks)?;
            let buffer = Buffer::Own(part);
            let request = |buffer| Request::Read { offset, buffer };
            let read = self.insist(namespace, buffer, request, Status::READ_ERROR).await?;
            match read {
                Some(Buffer::Own(part)) => data.extend_from_slice(&part),
                _ => return Err(Status::INTERNAL.into()),
            }
        }
        let durable = command.durable() || self.common.write_through();
        let request = |buffer| Request::Write { offset: to, buffer, durable };
        self.insist(namespace, Buffer::Own(data), request, Status::WRITE_FAULT).await?;
        Ok(0)
    }

    /// Performs a request, again and again where the disk lacks memory. The command cannot begin anew: what it has
    /// written may be what it is to read.
    async fn insist(
        &self,
        namespace: &Namespace,
        mut buffer: Buffer,
        request: impl Fn(Buffer) -> Request,
        media: Status,
    ) -> Result<Option<Buffer>, Denied> {
        let interest = self.interest(namespace);
        loop {
            let started = namespace.channel()?.start_within(&interest, request(buffer));
            let done = started.await;
            buffer = match (done.result, done.buffer) {
                (Err(failure), Some(back)) if failure.kind == FailureKind::Short => back,
                (result, buffer) => {
                    let done = Done { result, buffer };
                    return self.judge(namespace, done, media).map(|done| done.buffer);
                }
            };
            let moment = self.common.bounce.moment(&self.task, self.queues.ends(self.id));
            self.reach(namespace, moment).await?;
        }
    }
}

impl Namespace {
    /// MCL and MSSRL: blocks that one command copies, from one range or several.
    pub(crate) fn copy_blocks(&self) -> u16 {
        (MAX_TRANSFER >> self.block_shift()) as u16
    }
}

/// The first block and the number of blocks of a range.
fn decode(range: &[u8]) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    (number(&range[8..16]), number(&range[16..18]) + 1)
}
