//! Opcodes: of admin commands (5) and of I/O commands (7, and NVM command set 3).

use super::status::Status;
use super::table::{Needs, Row, Table, places, refused, row, row_if};

/// A command that is offered.
#[derive(Clone, Copy, Debug)]
pub struct Command<C: 'static> {
    pub command: C,
    /// The bit of OACS or ONCS (5.17.2.1) that says that it is there; 0: it is mandatory.
    pub optional: u16,
    /// Its entry of the Commands Supported and Effects log.
    pub effects: u32,
}

/// Commands Supported and Effects (figure 210): CSUPP.
const SUPPORTED: u32 = 1;
/// LBCC: it may change what blocks contain.
const CHANGES_BLOCKS: u32 = 1 << 1;
/// NCC: it may change what a namespace can do.
const CHANGES_NAMESPACE: u32 = 1 << 2;
/// CSE: no other command of the namespace is to be outstanding.
const ALONE: u32 = 1 << 16;
/// CSP: its scope is a namespace, or the controller.
const OF_NAMESPACE: u32 = 1 << 20;
const OF_CONTROLLER: u32 = 1 << 21;

/// What Format NVM does.
const FORMATS: u32 = SUPPORTED | CHANGES_BLOCKS | CHANGES_NAMESPACE | ALONE | OF_NAMESPACE;

const fn admin(command: Admin) -> Command<Admin> {
    Command { command, optional: 0, effects: SUPPORTED | OF_CONTROLLER }
}

const fn firmware(command: Admin) -> Command<Admin> {
    Command { optional: OACS_FIRMWARE, ..admin(command) }
}

const fn io(command: Io, optional: u16, effects: u32) -> Command<Io> {
    Command { command, optional, effects: SUPPORTED | OF_NAMESPACE | effects }
}

/// OACS (5.17.2.1).
const OACS_DOORBELL_BUFFER_CONFIG: u16 = 1 << 8;

const DOORBELL_BUFFER_CONFIG: Command<Admin> =
    Command { optional: OACS_DOORBELL_BUFFER_CONFIG, ..admin(Admin::DoorbellBufferConfig) };

/// Admin commands (figure 138).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    DeleteSubmissionQueue,
    CreateSubmissionQueue,
    GetLogPage,
    DeleteCompletionQueue,
    CreateCompletionQueue,
    Identify,
    Abort,
    SetFeatures,
    GetFeatures,
    AsynchronousEventRequest,
    DoorbellBufferConfig,
    FirmwareCommit,
    FirmwareImageDownload,
    FormatNvm,
}

/// OACS (5.17.2.1).
const OACS_FORMAT: u16 = 1 << 1;
const OACS_FIRMWARE: u16 = 1 << 2;

const ADMIN_ROWS: &[Row<Command<Admin>>] = &[
    row(0x00, "Delete I/O Submission Queue", "5.7", admin(Admin::DeleteSubmissionQueue)),
    row(0x01, "Create I/O Submission Queue", "5.5", admin(Admin::CreateSubmissionQueue)),
    row(0x02, "Get Log Page", "5.16", admin(Admin::GetLogPage)),
    row(0x04, "Delete I/O Completion Queue", "5.6", admin(Admin::DeleteCompletionQueue)),
    row(0x05, "Create I/O Completion Queue", "5.4", admin(Admin::CreateCompletionQueue)),
    row(0x06, "Identify", "5.17", admin(Admin::Identify)),
    row(0x08, "Abort", "5.1", admin(Admin::Abort)),
    row(0x09, "Set Features", "5.27", admin(Admin::SetFeatures)),
    row(0x0a, "Get Features", "5.15", admin(Admin::GetFeatures)),
    row(0x0c, "Asynchronous Event Request", "5.2", admin(Admin::AsynchronousEventRequest)),
    refused(0x0d, "Namespace Management", "5.23"),
    row(0x10, "Firmware Commit", "5.12", firmware(Admin::FirmwareCommit)),
    row(0x11, "Firmware Image Download", "5.13", firmware(Admin::FirmwareImageDownload)),
    refused(0x14, "Device Self-test", "5.8"),
    refused(0x15, "Namespace Attachment", "5.22"),
    refused(0x18, "Keep Alive", "5.18"),
    refused(0x19, "Directive Send", "5.10"),
    refused(0x1a, "Directive Receive", "5.9"),
    refused(0x1c, "Virtualization Management", "5.28"),
    refused(0x1d, "NVMe-MI Send", "5.21"),
    refused(0x1e, "NVMe-MI Receive", "5.20"),
    refused(0x20, "Capacity Management", "5.3"),
    refused(0x24, "Lockdown", "5.19"),
    row_if(0x7c, "Doorbell Buffer Config", "5.11", Needs::DoorbellMessages, DOORBELL_BUFFER_CONFIG),
    refused(0x7f, "Fabrics Commands", "6"),
    row(
        0x80,
        "Format NVM",
        "5.14",
        Command { command: Admin::FormatNvm, optional: OACS_FORMAT, effects: FORMATS },
    ),
    refused(0x81, "Security Send", "5.26"),
    refused(0x82, "Security Receive", "5.25"),
    refused(0x84, "Sanitize", "5.24"),
    refused(0x86, "Get LBA Status", "NVM 4.2.1"),
];

/// The admin commands.
pub const ADMIN: Table<Command<Admin>> =
    Table { refusal: Status::INVALID_OPCODE, rows: ADMIN_ROWS };

/// I/O commands (figure 390, and NVM command set, figure 19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Flush,
    Write,
    Read,
    Compare,
    WriteZeroes,
    DatasetManagement,
    Verify,
    Copy,
}

/// ONCS (5.17.2.1).
const ONCS_COMPARE: u16 = 1;
const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
const ONCS_WRITE_ZEROES: u16 = 1 << 3;
const ONCS_VERIFY: u16 = 1 << 7;
const ONCS_COPY: u16 = 1 << 8;

const IO_ROWS: &[Row<Command<Io>>] = &[
    row(FLUSH, "Flush", "7.1", io(Io::Flush, 0, 0)),
    row(WRITE, "Write", "NVM 3.2.6", io(Io::Write, 0, CHANGES_BLOCKS)),
    row(READ, "Read", "NVM 3.2.4", io(Io::Read, 0, 0)),
    refused(0x04, "Write Uncorrectable", "NVM 3.2.7"),
    row(0x05, "Compare", "NVM 3.2.1", io(Io::Compare, ONCS_COMPARE, 0)),
    row(0x08, "Write Zeroes", "NVM 3.2.8", io(Io::WriteZeroes, ONCS_WRITE_ZEROES, CHANGES_BLOCKS)),
    row_if(
        0x09,
        "Dataset Management",
        "NVM 3.2.3",
        Needs::Deallocation,
        io(Io::DatasetManagement, ONCS_DATASET_MANAGEMENT, CHANGES_BLOCKS),
    ),
    row(0x0c, "Verify", "NVM 3.2.5", io(Io::Verify, ONCS_VERIFY, 0)),
    refused(0x0d, "Reservation Register", "7.3"),
    refused(0x0e, "Reservation Report", "7.5"),
    refused(0x11, "Reservation Acquire", "7.2"),
    refused(0x15, "Reservation Release", "7.4"),
    row(0x19, "Copy", "NVM 3.2.2", io(Io::Copy, ONCS_COPY, CHANGES_BLOCKS)),
];

/// Opcodes that are counted by themselves.
pub const FLUSH: u8 = 0x00;
pub const WRITE: u8 = 0x01;
pub const READ: u8 = 0x02;

/// The place of each opcode in its table.
pub static ADMIN_PLACES: [u8; 256] = places(ADMIN_ROWS);
pub static IO_PLACES: [u8; 256] = places(IO_ROWS);

/// The I/O commands.
pub const IO: Table<Command<Io>> = Table { refusal: Status::INVALID_OPCODE, rows: IO_ROWS };
