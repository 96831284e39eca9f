//! Entering the sandbox.

use std::fs;
use std::path::Path;

use crate::error::EnterError;
use crate::report::Report;
use crate::rules::Rules;
use crate::{capabilities, confined, files, system_calls};

impl Rules {
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
        let connects = files.restricts_connecting() || calls.more.contains(&libc::SYS_connect);
        if restricted {
            confined::set_system_calls(calls);
        }
        Ok(Report { capabilities, files, restricted, connects, other_threads })
    }
}

/// How many threads the process has; 1 where that cannot be seen.
fn threads() -> usize {
    fs::read_dir(Path::new("/proc/self/task")).map_or(1, Iterator::count)
}
