//! Which data structures Identify gives (5.17.1, figure 273).

use super::status::Status;
use super::table::{Row, Table, refused, row};

/// Data structures, by CNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structures {
    Namespace,
    Controller,
    ActiveNamespaces,
    Descriptors,
    /// Of an I/O command set, which CSI names.
    CommandSetNamespace,
    CommandSetController,
    CommandSetActiveNamespaces,
    IndependentNamespace,
    AttachedControllers,
    Controllers,
    CommandSets,
}

const ROWS: &[Row<Structures>] = &[
    row(0x00, "Namespace", "NVM 4.1.5.1", Structures::Namespace),
    row(0x01, "Controller", "5.17.2.1", Structures::Controller),
    row(0x02, "Active Namespace ID list", "5.17.2.2", Structures::ActiveNamespaces),
    row(0x03, "Namespace Identification Descriptor list", "5.17.2.3", Structures::Descriptors),
    refused(0x04, "NVM Set List", "5.17.2.4"),
    row(0x05, "I/O Command Set specific Namespace", "5.17.2.5", Structures::CommandSetNamespace),
    row(0x06, "I/O Command Set specific Controller", "5.17.2.6", Structures::CommandSetController),
    row(
        0x07,
        "I/O Command Set specific Active Namespace ID list",
        "5.17.2.7",
        Structures::CommandSetActiveNamespaces,
    ),
    row(
        0x08,
        "I/O Command Set Independent Namespace",
        "5.17.2.8",
        Structures::IndependentNamespace,
    ),
    refused(0x10, "Allocated Namespace ID list", "5.17.2"),
    refused(0x11, "Namespace of an Allocated Namespace ID", "5.17.2"),
    row(0x12, "Namespace Attached Controller list", "5.17.2", Structures::AttachedControllers),
    row(0x13, "Controller list", "5.17.2", Structures::Controllers),
    refused(0x14, "Primary Controller Capabilities", "5.17.2"),
    refused(0x15, "Secondary Controller list", "5.17.2"),
    refused(0x16, "Namespace Granularity List", "5.17.2"),
    refused(0x17, "UUID List", "5.17.2"),
    refused(0x18, "Domain List", "5.17.2"),
    refused(0x19, "Endurance Group List", "5.17.2"),
    refused(0x1a, "I/O Command Set specific Allocated Namespace ID list", "5.17.2"),
    refused(0x1b, "I/O Command Set specific Namespace, Allocated", "5.17.2"),
    row(0x1c, "I/O Command Set", "5.17.2", Structures::CommandSets),
];

/// The data structures.
pub const STRUCTURES: Table<Structures> = Table { refusal: Status::INVALID_FIELD, rows: ROWS };
