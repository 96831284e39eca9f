//! Opcodes: of admin commands (5) and of I/O commands (NVM command set 3).
//!
//! The tables say what there is: Identify, the Commands Supported and Effects log and the dispatch of
//! commands come from them.

/// A command of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command<C: 'static> {
    pub(crate) opcode: u8,
    pub(crate) command: C,
    /// LBCC: it may change what blocks contain (5.16.1.6).
    pub(crate) changes_blocks: bool,
}

const fn row<C>(opcode: u8, command: C, changes_blocks: bool) -> Command<C> {
    Command { opcode, command, changes_blocks }
}

/// Admin commands (figure 138).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admin {
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
}

/// The admin commands that there are.
pub(crate) const ADMIN: &[Command<Admin>] = &[
    row(0x00, Admin::DeleteSubmissionQueue, false),
    row(0x01, Admin::CreateSubmissionQueue, false),
    row(0x02, Admin::GetLogPage, false),
    row(0x04, Admin::DeleteCompletionQueue, false),
    row(0x05, Admin::CreateCompletionQueue, false),
    row(0x06, Admin::Identify, false),
    row(0x08, Admin::Abort, false),
    row(0x09, Admin::SetFeatures, false),
    row(0x0a, Admin::GetFeatures, false),
    row(0x0c, Admin::AsynchronousEventRequest, false),
];

/// I/O commands (NVM command set, figure 19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    Flush,
    Write,
    Read,
    Compare,
    WriteZeroes,
    DatasetManagement,
    Verify,
}

/// The I/O commands that there are; which of them a disk has, ONCS says.
pub(crate) const IO: &[Command<Io>] = &[
    row(0x00, Io::Flush, false),
    row(0x01, Io::Write, true),
    row(0x02, Io::Read, false),
    row(0x05, Io::Compare, false),
    row(0x08, Io::WriteZeroes, true),
    row(0x09, Io::DatasetManagement, true),
    row(0x0c, Io::Verify, false),
];

/// The command of an opcode.
pub(crate) fn find<C: Copy>(table: &[Command<C>], opcode: u8) -> Option<C> {
    table.iter().find(|command| command.opcode == opcode).map(|command| command.command)
}
