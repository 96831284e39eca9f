//! What is allowed.

use std::collections::BTreeSet;
use std::path::PathBuf;

/// What stays allowed in the sandbox.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub(crate) changeable: BTreeSet<PathBuf>,
    pub(crate) readable: BTreeSet<PathBuf>,
    pub(crate) system_calls: BTreeSet<i64>,
    pub(crate) changes_owners: bool,
    pub(crate) modes: BTreeSet<u32>,
}

impl Rules {
    /// Allows nothing that a process without files and network does not need.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows reading, writing, making and removing files beneath a directory, or to use this one
    /// file. What is allowed is the file or directory that has this name when the sandbox is entered.
    pub fn allow(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.changeable.insert(path.into());
        self
    }

    /// Allows reading a file or what is beneath a directory.
    pub fn allow_reading(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.readable.insert(path.into());
        self
    }

    /// Allows a system call by its number, such as `libc::SYS_io_uring_setup`.
    pub fn allow_system_call(&mut self, number: i64) -> &mut Self {
        self.system_calls.insert(number);
        self
    }

    /// Allows connecting to sockets for good. Otherwise that is possible only until
    /// [`Report::restrict_finally`](crate::Report::restrict_finally) where landlock does not restrict
    /// which sockets these are (before Linux 7.1).
    pub fn allow_connecting(&mut self) -> &mut Self {
        self.allow_system_call(libc::SYS_connect)
    }

    /// Keeps `CAP_CHOWN`, if the process has it, and the calls that change the owner of a file.
    ///
    /// Landlock does not restrict changes of owner: with that capability the owner of any file that
    /// the process can name can be changed.
    pub fn allow_changing_owners(&mut self) -> &mut Self {
        self.changes_owners = true;
        self
    }

    /// Allows giving files this mode. Where the process does not run as root, every mode without special
    /// bits is allowed.
    pub fn allow_mode(&mut self, mode: u32) -> &mut Self {
        self.modes.insert(mode);
        self
    }
}
