//! Log pages (5.16.1).

use super::put;
use super::status::Status;
use super::table::{Row, Table, refused, row};

/// Log pages by their identifiers (figure 202).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
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

impl Page {
    /// The bits of LPA (5.17.2.1) that say that it is there; 0: it is mandatory.
    pub fn attributes(self) -> u8 {
        match self {
            Self::CommandEffects => 1 << 1,
            // One bit for three pages, and for the scopes in the Commands Supported and Effects log.
            Self::SupportedLogPages | Self::FeatureEffects | Self::ManagementEffects => 1 << 5,
            Self::ErrorInformation | Self::Smart | Self::FirmwareSlot | Self::ChangedNamespaces => {
                0
            }
        }
    }
}

/// LPA: Get Log Page takes offsets, and lengths of 32 bits.
pub const EXTENDED_DATA: u8 = 1 << 2;

const ROWS: &[Row<Page>] = &[
    row(0x00, "Supported Log Pages", "5.16.1.1", Page::SupportedLogPages),
    row(0x01, "Error Information", "5.16.1.2", Page::ErrorInformation),
    row(0x02, "SMART / Health Information", "5.16.1.3", Page::Smart),
    row(0x03, "Firmware Slot Information", "5.16.1.4", Page::FirmwareSlot),
    row(0x04, "Changed Namespace List", "5.16.1.5", Page::ChangedNamespaces),
    row(0x05, "Commands Supported and Effects", "5.16.1.6", Page::CommandEffects),
    refused(0x06, "Device Self-test", "5.16.1"),
    refused(0x07, "Telemetry Host-Initiated", "5.16.1"),
    refused(0x08, "Telemetry Controller-Initiated", "5.16.1"),
    refused(0x09, "Endurance Group Information", "5.16.1"),
    refused(0x0a, "Predictable Latency Per NVM Set", "5.16.1"),
    refused(0x0b, "Predictable Latency Event Aggregate", "5.16.1"),
    refused(0x0c, "Asymmetric Namespace Access", "5.16.1"),
    refused(0x0d, "Persistent Event Log", "5.16.1"),
    refused(0x0e, "LBA Status Information", "NVM 4.1.4.5"),
    refused(0x0f, "Endurance Group Event Aggregate", "5.16.1"),
    refused(0x10, "Media Unit Status", "5.16.1"),
    refused(0x11, "Supported Capacity Configuration List", "5.16.1"),
    row(0x12, "Feature Identifiers Supported and Effects", "5.16.1", Page::FeatureEffects),
    row(0x13, "NVMe-MI Commands Supported and Effects", "5.16.1", Page::ManagementEffects),
    refused(0x14, "Command and Feature Lockdown", "5.16.1"),
    refused(0x15, "Boot Partition", "5.16.1"),
    refused(0x16, "Rotational Media Information", "5.16.1"),
    refused(0x70, "Discovery", "5.16.1"),
    refused(0x80, "Reservation Notification", "5.16.1"),
    refused(0x81, "Sanitize Status", "5.16.1"),
];

/// The log pages.
pub const PAGES: Table<Page> = Table { refusal: Status::INVALID_LOG, rows: ROWS };

/// Bytes of an entry of the Error Information log.
pub const ERROR_LEN: usize = 64;

/// An entry of the Error Information log (5.16.1.2).
#[derive(Clone, Copy, Debug)]
pub struct ErrorEntry {
    pub count: u64,
    pub queue: u16,
    pub command: u16,
    pub status: Status,
    pub block: u64,
    pub namespace: u32,
    pub opcode: u8,
}

impl ErrorEntry {
    pub fn encode(&self) -> [u8; ERROR_LEN] {
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
pub struct Health {
    pub critical_warning: u8,
    pub temperature: u16,
    /// Bytes read and written.
    pub read: u64,
    pub written: u64,
    pub reads: u64,
    pub writes: u64,
    /// Minutes in which an I/O queue had commands.
    pub busy_minutes: u64,
    pub power_cycles: u64,
    pub power_on_hours: u64,
    /// Times that the controller lost power without a shutdown.
    pub unsafe_shutdowns: u64,
    pub media_errors: u64,
    pub errors: u64,
}

/// Bytes of the SMART log.
pub const HEALTH_LEN: usize = 512;

impl Health {
    pub fn encode(&self) -> [u8; HEALTH_LEN] {
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
        put(&mut page, 96, self.busy_minutes.to_le_bytes());
        put(&mut page, 112, self.power_cycles.to_le_bytes());
        put(&mut page, 128, self.power_on_hours.to_le_bytes());
        put(&mut page, 144, self.unsafe_shutdowns.to_le_bytes());
        put(&mut page, 160, self.media_errors.to_le_bytes());
        put(&mut page, 176, self.errors.to_le_bytes());
        page
    }
}

/// SMART critical warning: the temperature passes a threshold.
pub const WARNING_TEMPERATURE: u8 = 1 << 1;
/// SMART critical warning: the media are read-only.
pub const WARNING_READ_ONLY: u8 = 1 << 3;
