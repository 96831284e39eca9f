//! Features (5.27.1): which there are, and what of them can be changed.

use super::status::Status;
use super::table::{Needs, Row, Table, refused, row, row_if};

/// Features by their identifiers (figure 317).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    Arbitration,
    PowerManagement,
    TemperatureThreshold,
    ErrorRecovery,
    VolatileWriteCache,
    NumberOfQueues,
    InterruptCoalescing,
    InterruptVectorConfiguration,
    WriteAtomicityNormal,
    AsynchronousEventConfiguration,
    Timestamp,
}

impl Feature {
    /// Whether the host can save it, so that it outlasts resets and power. What a host sets up anew each time
    /// is not: the number of queues, vectors, events, the clock; nor the one power state.
    pub fn is_saveable(self) -> bool {
        match self {
            Self::Arbitration
            | Self::TemperatureThreshold
            | Self::ErrorRecovery
            | Self::VolatileWriteCache
            | Self::InterruptCoalescing
            | Self::WriteAtomicityNormal => true,
            Self::PowerManagement
            | Self::NumberOfQueues
            | Self::InterruptVectorConfiguration
            | Self::AsynchronousEventConfiguration
            | Self::Timestamp => false,
        }
    }

    /// Whether each namespace has a value of its own; otherwise the controller has one.
    pub fn is_of_namespace(self) -> bool {
        self == Self::ErrorRecovery
    }

    /// Its capabilities (5.15): changeable, whether it is of a namespace, and whether it can be saved.
    pub fn capabilities(self) -> u32 {
        1 << 2 | u32::from(self.is_of_namespace()) << 1 | u32::from(self.is_saveable())
    }

    /// Feature Identifiers Supported and Effects (figure 256): it is supported, and whose it is.
    pub fn effects(self) -> u32 {
        1 | if self.is_of_namespace() { 1 << 20 } else { 1 << 21 }
    }

    /// The bit of ONCS (5.17.2.1) that says that it is there; 0: another field does, or it is mandatory.
    pub fn optional(self) -> u16 {
        u16::from(self == Self::Timestamp) << 6
    }
}

const ROWS: &[Row<Feature>] = &[
    row(0x01, "Arbitration", "5.27.1.1", Feature::Arbitration),
    row(0x02, "Power Management", "5.27.1.2", Feature::PowerManagement),
    refused(0x03, "LBA Range Type", "NVM 4.1.3.1"),
    row(0x04, "Temperature Threshold", "5.27.1.3", Feature::TemperatureThreshold),
    row(0x05, "Error Recovery", "NVM 4.1.3.2", Feature::ErrorRecovery),
    row_if(
        0x06,
        "Volatile Write Cache",
        "5.27.1.4",
        Needs::WriteCache,
        Feature::VolatileWriteCache,
    ),
    row(0x07, "Number of Queues", "5.27.1.5", Feature::NumberOfQueues),
    row(0x08, "Interrupt Coalescing", "5.27.1.6", Feature::InterruptCoalescing),
    row(0x09, "Interrupt Vector Configuration", "5.27.1.7", Feature::InterruptVectorConfiguration),
    row(0x0a, "Write Atomicity Normal", "NVM 4.1.3.3", Feature::WriteAtomicityNormal),
    row(
        0x0b,
        "Asynchronous Event Configuration",
        "5.27.1.8",
        Feature::AsynchronousEventConfiguration,
    ),
    refused(0x0c, "Autonomous Power State Transition", "5.27.1.9"),
    refused(0x0d, "Host Memory Buffer", "5.27.1.10"),
    row(0x0e, "Timestamp", "5.27.1.11", Feature::Timestamp),
    refused(0x0f, "Keep Alive Timer", "5.27.1.12"),
    refused(0x10, "Host Controlled Thermal Management", "5.27.1.13"),
    refused(0x11, "Non-Operational Power State Config", "5.27.1.14"),
    refused(0x12, "Read Recovery Level Config", "5.27.1.15"),
    refused(0x13, "Predictable Latency Mode Config", "5.27.1.16"),
    refused(0x14, "Predictable Latency Mode Window", "5.27.1.17"),
    refused(0x15, "LBA Status Information Report Interval", "NVM 4.1.3.4"),
    refused(0x16, "Host Behavior Support", "5.27.1.18"),
    refused(0x17, "Sanitize Config", "5.27.1.19"),
    refused(0x18, "Endurance Group Event Configuration", "5.27.1.20"),
    refused(0x19, "I/O Command Set Profile", "5.27.1.21"),
    refused(0x1a, "Spinup Control", "5.27.1.22"),
    refused(0x7d, "Enhanced Controller Metadata", "5.27.1.23"),
    refused(0x7e, "Controller Metadata", "5.27.1.23"),
    refused(0x7f, "Namespace Metadata", "5.27.1.23"),
    refused(0x80, "Software Progress Marker", "5.27.1.24"),
    refused(0x81, "Host Identifier", "5.27.1.25"),
    refused(0x82, "Reservation Notification Mask", "5.27.1.26"),
    refused(0x83, "Reservation Persistence", "5.27.1.27"),
    refused(0x84, "Namespace Write Protection Config", "5.27.1.28"),
];

/// The features. All that are offered can be changed.
pub const FEATURES: Table<Feature> = Table { refusal: Status::INVALID_FIELD, rows: ROWS };

/// What Get Features asks for (5.15, Select).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    Current,
    Default,
    /// The default, if it was not saved.
    Saved,
    Capabilities,
}

impl Select {
    pub fn from_dword(dword: u32) -> Option<Self> {
        match dword >> 8 & 7 {
            0 => Some(Self::Current),
            1 => Some(Self::Default),
            2 => Some(Self::Saved),
            3 => Some(Self::Capabilities),
            _ => None,
        }
    }
}

/// Asynchronous Event Configuration (figure 324): SMART critical warnings.
pub const EVENT_SMART: u32 = 0xff;
/// Namespace Attribute Notices.
pub const EVENT_NAMESPACE: u32 = 1 << 8;
