//! Dataset Management (NVM command set 3.2.3).

use vfiod_disk::Request;

use super::IoQueue;
use crate::denied::Denied;
use crate::namespace::Namespace;
use vfiod_nvme_spec::{Status, Submission};

/// Bytes of a range.
const RANGE: usize = 16;
/// DMRL and DMRSL: ranges of a command, and bytes of each, that a host is asked to keep to, so that a command ends
/// long before it is given up. What exceeds them is done all the same: hosts of before 2.0 know of no limits.
pub(crate) const ADVISED_RANGES: u8 = 64;
pub(crate) const ADVISED_BYTES: u64 = 1 << 30;
/// AD: the ranges are to be deallocated.
const DEALLOCATE: u32 = 1 << 2;

impl IoQueue {
    /// Deallocates ranges. Other attributes are hints, which change nothing.
    pub(super) async fn manage_dataset(
        &self,
        namespace: &Namespace,
        command: &Submission,
    ) -> Result<u32, Denied> {
        if namespace.limits.deallocate.is_none() {
            return Err(Status::INVALID_OPCODE.into());
        }
        let deallocates = command.dword(11) & DEALLOCATE != 0;
        if deallocates {
            self.writable(namespace)?;
        }
        let count = (command.dword(10) & 0xff) as usize + 1;
        let bytes = self.receive(namespace, command, count * RANGE).await?;
        let ranges: Vec<(u64, u64)> = bytes.chunks_exact(RANGE).map(decode).collect();
        // All are judged before the first one changes anything.
        for (first, blocks) in &ranges {
            namespace.range(*first, *blocks)?;
        }
        for (first, blocks) in ranges.into_iter().filter(|_| deallocates) {
            if blocks > 0 {
                let (offset, len) = namespace.range(first, blocks)?;
                let request = Request::Deallocate { offset, len };
                self.request(namespace, request, Status::WRITE_FAULT).await?;
            }
        }
        Ok(0)
    }
}

/// The first block and the number of blocks of a range.
fn decode(range: &[u8]) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    (number(&range[8..16]), number(&range[4..8]))
}
