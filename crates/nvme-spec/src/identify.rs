//! Identify data structures (5.17.2).

use super::registers::TIMEOUT;
use super::{put, put_text};

/// Bytes of each of them.
pub const LEN: usize = 4096;

/// A data structure.
pub type Structure = [u8; LEN];

/// Identify Controller (5.17.2.1). What is not here is 0: not offered or not reported.
#[derive(Clone, Debug)]
pub struct Controller<'a> {
    pub vendor: u16,
    pub subsystem_vendor: u16,
    pub serial: &'a str,
    pub model: &'a str,
    pub firmware: &'a str,
    /// MDTS: as a power of two of pages of 4 KiB.
    pub max_transfer: u8,
    /// CMIC: the subsystem may have several controllers.
    pub shared: bool,
    pub id: u16,
    pub version: u32,
    pub events: u32,
    pub admin_commands: u16,
    pub abort_limit: u8,
    pub event_limit: u8,
    /// LPA.
    pub log_attributes: u8,
    pub error_entries: u8,
    pub warning_temperature: u16,
    pub critical_temperature: u16,
    pub namespaces: u32,
    pub io_commands: u16,
    /// Some namespace has a volatile write cache.
    pub write_cache: bool,
    /// AWUN and AWUPF, 0's based.
    pub atomic_blocks: u16,
    /// FWUG.
    pub firmware_granularity: u8,
    /// OCFS.
    pub copy_formats: u16,
    /// SGLS.
    pub sgl_support: u32,
    pub subsystem_name: &'a str,
}

impl Controller<'_> {
    pub fn encode(&self) -> Structure {
        let mut data = [0; LEN];
        put(&mut data, 0, self.vendor.to_le_bytes());
        put(&mut data, 2, self.subsystem_vendor.to_le_bytes());
        put_text(&mut data, 4, 20, self.serial);
        put_text(&mut data, 24, 40, self.model);
        put_text(&mut data, 64, 8, self.firmware);
        data[76] = u8::from(self.shared) << 1;
        data[77] = self.max_transfer;
        put(&mut data, 78, self.id.to_le_bytes());
        put(&mut data, 80, self.version.to_le_bytes());
        // RTD3R and RTD3E, in microseconds. For a shutdown a host waits as long as RTD3E says: as long as the
        // controller does before it shows fatal status (CAP.TO, in units of 500 ms).
        put(&mut data, 84, 10_000_000_u32.to_le_bytes());
        put(&mut data, 88, (TIMEOUT as u32 * 500_000).to_le_bytes());
        put(&mut data, 92, self.events.to_le_bytes());
        // CNTRLTYPE: I/O controller.
        data[111] = 1;
        put(&mut data, 256, self.admin_commands.to_le_bytes());
        (data[258], data[259]) = (self.abort_limit, self.event_limit);
        // FRMW: one slot, which is read-only.
        data[260] = 1 << 1 | 1;
        data[261] = self.log_attributes;
        data[262] = self.error_entries;
        put(&mut data, 266, self.warning_temperature.to_le_bytes());
        put(&mut data, 268, self.critical_temperature.to_le_bytes());
        // SQES and CQES: 64 and 16 bytes, no others.
        (data[512], data[513]) = (0x66, 0x44);
        put(&mut data, 516, self.namespaces.to_le_bytes());
        put(&mut data, 520, self.io_commands.to_le_bytes());
        // FUSES: Compare and Write.
        data[522] = 1;
        // VWC: present or not; Flush of every namespace is supported.
        data[525] = u8::from(self.write_cache) | 3 << 1;
        put(&mut data, 526, self.atomic_blocks.to_le_bytes());
        put(&mut data, 528, self.atomic_blocks.to_le_bytes());
        // ACWU: as for power failures.
        put(&mut data, 532, self.atomic_blocks.to_le_bytes());
        put(&mut data, 536, self.sgl_support.to_le_bytes());
        data[319] = self.firmware_granularity;
        put(&mut data, 534, self.copy_formats.to_le_bytes());
        let name = self.subsystem_name.as_bytes();
        let len = name.len().min(255);
        data[768..768 + len].copy_from_slice(&name[..len]);
        data
    }
}

/// ONCS: Save and Select fields of features.
pub const ONCS_SELECT: u16 = 1 << 4;
/// OAES: Namespace Attribute Notices.
pub const OAES_NAMESPACE: u32 = 1 << 8;

/// Identify Namespace of the NVM command set (NVM command set 4.1.5.1).
#[derive(Clone, Debug)]
pub struct Namespace {
    pub blocks: u64,
    /// LBADS of each format: a block has 2^n bytes; 0: the disk cannot have it.
    pub formats: [u8; 2],
    /// FLBAS: which of them it has.
    pub format: u8,
    /// MSSRL and MCL: blocks that a command copies.
    pub copy_blocks: u16,
    /// MSRC, as a count: ranges that it copies them from.
    pub copy_ranges: u8,
    /// The preferred write granularity, in blocks.
    pub write_granularity: u16,
    /// The granularity of deallocation, in blocks; `None`: it is not offered.
    pub deallocate_granularity: Option<u16>,
    pub deallocated_reads_zero: bool,
    pub write_protected: bool,
    /// NAWUN and NAWUPF, 0's based.
    pub atomic_blocks: u16,
    pub nguid: [u8; 16],
    /// NMIC: several controllers may have it.
    pub shared: bool,
}

impl Namespace {
    pub fn encode(&self) -> Structure {
        let mut data = [0; LEN];
        for at in [0, 8, 16] {
            put(&mut data, at, self.blocks.to_le_bytes());
        }
        // NSFEAT: NAWUN and NAWUPF are this namespace's, and NPWG to NOWS are there.
        data[24] = 1 << 1 | 1 << 4;
        // DLFEAT: what deallocated blocks read as, and that Write Zeroes may deallocate.
        if self.deallocate_granularity.is_some() {
            data[33] = u8::from(self.deallocated_reads_zero) | 1 << 3;
        }
        put(&mut data, 34, self.atomic_blocks.to_le_bytes());
        put(&mut data, 36, self.atomic_blocks.to_le_bytes());
        put(&mut data, 38, self.atomic_blocks.to_le_bytes());
        // NLBAF, 0's based, and FLBAS.
        data[25] = self.formats.len() as u8 - 1;
        data[26] = self.format;
        let bytes = u128::from(self.blocks) << self.formats[usize::from(self.format)];
        put(&mut data, 48, bytes.to_le_bytes());
        let granularity = self.write_granularity.max(1) - 1;
        let deallocate = self.deallocate_granularity.unwrap_or(1).max(1) - 1;
        // NPWG, NPWA, NPDG, NPDA, NOWS.
        for (at, blocks) in [
            (64, granularity),
            (66, granularity),
            (68, deallocate),
            (70, deallocate),
            (72, granularity),
        ] {
            put(&mut data, at, blocks.to_le_bytes());
        }
        data[30] = u8::from(self.shared);
        data[99] = u8::from(self.write_protected);
        data[104..120].copy_from_slice(&self.nguid);
        put(&mut data, 74, self.copy_blocks.to_le_bytes());
        put(&mut data, 76, u32::from(self.copy_blocks).to_le_bytes());
        data[80] = self.copy_ranges - 1;
        for (n, shift) in self.formats.into_iter().enumerate() {
            data[128 + 4 * n + 2] = shift;
        }
        data
    }

    /// I/O Command Set Independent Identify Namespace (5.17.2.8).
    pub fn encode_independent(&self) -> Structure {
        let mut data = [0; LEN];
        data[1] = u8::from(self.shared);
        data[8] = u8::from(self.write_protected);
        // NSTAT: ready.
        data[14] = 1;
        data
    }
}

/// Identify Controller of the NVM command set (NVM command set 4.1.5.2): WZSL, DMRL, DMRSL.
pub fn nvm_controller(write_zeroes_limit: u8, ranges: u8, range_blocks: u32) -> Structure {
    let mut data = [0; LEN];
    data[1] = write_zeroes_limit;
    data[3] = ranges;
    put(&mut data, 4, range_blocks.to_le_bytes());
    data
}

/// Namespace Identification Descriptor list (5.17.2.3): NGUID, UUID, command set identifier.
pub fn descriptors(nguid: &[u8; 16], uuid: &[u8; 16]) -> Structure {
    let mut data = [0; LEN];
    let mut at = 0;
    for (kind, id) in [(2, nguid.as_slice()), (3, uuid), (4, &[0])] {
        (data[at], data[at + 1]) = (kind, id.len() as u8);
        data[at + 4..at + 4 + id.len()].copy_from_slice(id);
        at += 4 + id.len();
    }
    data
}

/// I/O Command Set data structure (5.17.2): one combination, of the NVM command set alone.
pub fn command_sets() -> Structure {
    let mut data = [0; LEN];
    data[0] = 1;
    data
}

/// A list of controllers (5.17.2): how many, then their numbers, ascending.
pub fn controllers(ids: impl Iterator<Item = u16>) -> Structure {
    let mut data = [0; LEN];
    let mut count = 0_u16;
    for (entry, id) in data[2..].chunks_exact_mut(2).zip(ids) {
        entry.copy_from_slice(&id.to_le_bytes());
        count += 1;
    }
    put(&mut data, 0, count.to_le_bytes());
    data
}

/// A list of namespaces (5.17.2.2): ascending, the rest 0.
pub fn list(namespaces: impl Iterator<Item = u32>) -> Structure {
    let mut data = [0; LEN];
    for (entry, namespace) in data.chunks_exact_mut(4).zip(namespaces) {
        entry.copy_from_slice(&namespace.to_le_bytes());
    }
    data
}
