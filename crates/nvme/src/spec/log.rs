//! Log pages (5.16.1).

use super::put;
use super::status::Status;

/// Log pages by their identifiers (figure 202).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    SupportedLogPages,
    ErrorInformation,
    Smart,
    FirmwareSlot,
    ChangedNamespaces,
    CommandEffects,
    FeatureEffects,
    /// NVMe-MI Commands Supported and Effects: there are none.
    ManagementEffects,
}

/// The log pages that there are, by identifier.
pub(crate) const PAGES: &[(u8, Page)] = &[
    (0x00, Page::SupportedLogPages),
    (0x01, Page::ErrorInformation),
    (0x02, Page::Smart),
    (0x03, Page::FirmwareSlot),
    (0x04, Page::ChangedNamespaces),
    (0x05, Page::CommandEffects),
    (0x12, Page::FeatureEffects),
    (0x13, Page::ManagementEffects),
];

/// The page of an identifier.
pub(crate) fn find(id: u8) -> Option<Page> {
    PAGES.iter().find(|(known, _)| *known == id).map(|(_, page)| *page)
}

/// Bytes of an entry of the Error Information log.
pub(crate) const ERROR_LEN: usize = 64;

/// An entry of the Error Information log (5.16.1.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorEntry {
    pub(crate) count: u64,
    pub(crate) queue: u16,
    pub(crate) command: u16,
    pub(crate) status: Status,
    pub(crate) block: u64,
    pub(crate) namespace: u32,
    pub(crate) opcode: u8,
}

impl ErrorEntry {
    pub(crate) fn encode(&self) -> [u8; ERROR_LEN] {
        let mut entry = [0; ERROR_LEN];
        put(&mut entry, 0, self.count.to_le_bytes());
        put(&mut entry, 8, self.queue.to_le_bytes());
        put(&mut entry, 10, self.command.to_le_bytes());
        put(&mut entry, 12, (self.status.0 << 1).to_le_bytes());
        // Parameter Error Location: no field is named.
        put(&mut entry, 14, u16::MAX.to_le_bytes());
        put(&mut entry, 16, self.block.to_le_bytes());
        put(&mut entry, 24, self.namespace.to_le_bytes());
        // TRTYPE: PCIe has none. Opcode and its version (log page version 1).
        entry[32] = self.opcode;
        entry[63] = 1;
        entry
    }
}

/// What the SMART / Health Information log counts (5.16.1.3).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    pub(crate) critical_warning: u8,
    pub(crate) temperature: u16,
    /// Bytes read and written.
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) power_cycles: u64,
    pub(crate) media_errors: u64,
    pub(crate) errors: u64,
}

/// Bytes of the SMART log.
pub(crate) const HEALTH_LEN: usize = 512;

impl Health {
    pub(crate) fn encode(&self) -> [u8; HEALTH_LEN] {
        let mut page = [0; HEALTH_LEN];
        page[0] = self.critical_warning;
        put(&mut page, 1, self.temperature.to_le_bytes());
        // Available spare and its threshold, percent.
        (page[3], page[4]) = (100, 10);
        // Data Units: thousands of 512 bytes, rounded up.
        put(&mut page, 32, self.read.div_ceil(512_000).to_le_bytes());
        put(&mut page, 48, self.written.div_ceil(512_000).to_le_bytes());
        put(&mut page, 64, self.reads.to_le_bytes());
        put(&mut page, 80, self.writes.to_le_bytes());
        put(&mut page, 112, self.power_cycles.to_le_bytes());
        put(&mut page, 160, self.media_errors.to_le_bytes());
        put(&mut page, 176, self.errors.to_le_bytes());
        page
    }
}

/// SMART critical warning: the temperature passes a threshold.
pub(crate) const WARNING_TEMPERATURE: u8 = 1 << 1;
/// SMART critical warning: the media are read-only.
pub(crate) const WARNING_READ_ONLY: u8 = 1 << 3;
