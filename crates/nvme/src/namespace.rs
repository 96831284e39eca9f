//! A namespace: a disk, in blocks.

use std::sync::{Arc, OnceLock};

use vfiod_core::{Errno, Error, Result};
use vfiod_disk::{Disk, DiskChannel, Limits};

use vfiod_tasks::Runtime;

use crate::spec::Status;
use crate::spec::identify;

/// What a namespace is called, by whatever host and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceIdentity {
    pub(crate) nguid: [u8; 16],
    pub(crate) uuid: [u8; 16],
}

/// An active namespace of a controller.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) id: u32,
    pub(crate) identity: NamespaceIdentity,
    pub(crate) limits: Limits,
    /// A block has 2^n bytes.
    pub(crate) block_shift: u32,
    pub(crate) disk: Disk,
    channel: OnceLock<Arc<DiskChannel>>,
}

impl Namespace {
    /// A namespace on a disk.
    ///
    /// # Errors
    /// `EINVAL`: no block size of NVMe, or the disk cannot have such blocks.
    pub(crate) fn new(
        id: u32,
        identity: NamespaceIdentity,
        disk: Disk,
        block_size: u32,
        torn_writes: bool,
    ) -> Result<Self> {
        let limits = disk.limits();
        let bad = |what: String| Err(Error::new(Errno::INVAL, what));
        if !matches!(block_size, 512 | 4096) {
            return bad(format!("block size {block_size}; must be 512 or 4096"));
        }
        if block_size < limits.block {
            let least = limits.block;
            return bad(format!("block size {block_size}: the disk has blocks of {least} bytes"));
        }
        if block_size > limits.atomic_write && !torn_writes {
            let whole = limits.atomic_write;
            return bad(format!(
                "block size {block_size}: the disk writes only {whole} bytes whole when power fails; \
                 with `torn_writes` a block may then be half written"
            ));
        }
        if limits.capacity < block_size.into() {
            return bad(format!("a disk of {} bytes has no block", limits.capacity));
        }
        let (block_shift, channel) = (block_size.ilog2(), OnceLock::new());
        Ok(Self { id, identity, limits, block_shift, disk, channel })
    }

    /// Its blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.limits.capacity >> self.block_shift
    }

    /// Connects it to its disk, once.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn connect(&self, runtime: &Runtime) -> Result<()> {
        if self.channel.get().is_none() {
            // The same device is not registered twice at the same time.
            _ = self.channel.set(self.disk.connect(runtime)?);
        }
        Ok(())
    }

    /// Where requests are started.
    pub(crate) fn channel(&self) -> std::result::Result<&Arc<DiskChannel>, Status> {
        self.channel.get().ok_or(Status::NAMESPACE_NOT_READY)
    }

    /// The bytes of a range of blocks: where it begins, and its length.
    ///
    /// # Errors
    /// LBA Out of Range.
    pub(crate) fn range(&self, first: u64, blocks: u64) -> std::result::Result<(u64, u64), Status> {
        match first.checked_add(blocks) {
            Some(end) if end <= self.blocks() => {
                Ok((first << self.block_shift, blocks << self.block_shift))
            }
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// Bytes as blocks, for a field of 16 bits: at least one.
    fn in_blocks(&self, bytes: u32) -> u16 {
        u16::try_from(bytes >> self.block_shift).unwrap_or(u16::MAX).max(1)
    }

    /// Blocks that are written whole or not at all, 0's based.
    pub(crate) fn atomic_blocks(&self) -> u16 {
        self.in_blocks(self.limits.atomic_write) - 1
    }

    /// What Identify Namespace says of it.
    pub(crate) fn identify(&self) -> identify::Namespace {
        identify::Namespace {
            blocks: self.blocks(),
            block_shift: self.block_shift as u8,
            write_granularity: self.in_blocks(self.limits.preferred_write),
            deallocate_granularity: self.limits.deallocate.map(|bytes| self.in_blocks(bytes)),
            deallocated_reads_zero: self.limits.deallocated_reads_zero,
            write_protected: self.limits.read_only,
            atomic_blocks: self.atomic_blocks(),
            nguid: self.identity.nguid,
        }
    }
}
