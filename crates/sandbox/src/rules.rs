//! What is allowed, and entering the sandbox.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::report::Report;
use crate::{capabilities, confined, files, system_calls};

/// What stays allowed in the sandbox.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub(crate) changeable: BTreeSet<PathBuf>,
    pub(crate) readable: BTreeSet<PathBuf>,
    pub(crate) system_calls: BTreeSet<i64>,
    pub(crate) changes_owners: bool,
    pub(crate) modes: BTreeSet<u32>,
}

/// Why the sandbox was not entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The process keeps its capabilities.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    /// Files are not restricted.
    #[error("cannot restrict access to files (landlock)")]
    Files(#[from] landlock::RulesetError),
    /// System calls are not restricted.
    #[error("cannot restrict system calls (seccomp)")]
    SystemCalls(#[source] seccompiler::Error),
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

    /// Enters the sandbox, for the rest of the process's life. Paths that do not exist are left out, and
    /// named in the report.
    ///
    /// # Errors
    /// The kernel has a mechanism, and refuses its use. The process may be in a part of the sandbox then
    /// and should end.
    pub fn enter(&self) -> Result<Report, EnterError> {
        // Looked up at its first use, by a call or a file that the sandbox forbids.
        let _ = rustix::param::page_size();
        let other_threads = threads().saturating_sub(1);
        let capabilities =
            capabilities::drop_all(self.changes_owners).map_err(EnterError::Capabilities)?;
        let files = files::restrict(self)?;
        if files.is_enforced() {
            confined::set(self.changeable.iter().chain(&self.readable));
        }
        // Root owns files outside.
        let is_root = rustix::process::geteuid().is_root();
        let calls = system_calls::Calls {
            more: self.system_calls.clone(),
            changes_owners: self.changes_owners,
            modes: is_root.then(|| self.modes.clone()),
        };
        let restricted = match system_calls::restrict(&calls) {
            Ok(()) => true,
            Err(error) if system_calls::is_missing(&error) => false,
            Err(error) => return Err(EnterError::SystemCalls(error)),
        };
        if restricted {
            confined::set_system_calls(calls);
        }
        Ok(Report { capabilities, files, restricted, other_threads })
    }
}

/// How many threads the process has; 1 where that cannot be seen.
fn threads() -> usize {
    fs::read_dir(Path::new("/proc/self/task")).map_or(1, Iterator::count)
}
