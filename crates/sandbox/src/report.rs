//! What of the sandbox is in force.

use std::path::PathBuf;

use crate::error::EnterError;
use crate::system_calls;

/// What of the sandbox is in force.
#[derive(Clone, Debug)]
#[must_use]
pub struct Report {
    /// Capabilities that were kept, by the kernel's names.
    pub(crate) capabilities: String,
    pub(crate) files: Files,
    /// Whether system calls are restricted.
    pub(crate) restricted: bool,
    /// Whether sockets can be connected once everything is served.
    pub(crate) connects: bool,
    pub(crate) other_threads: usize,
}

/// What landlock does.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// The version of landlock that is in force; `None`: this kernel has none, or it is off.
    pub(crate) version: Option<i32>,
    /// Allowed paths that did not exist.
    pub(crate) missing: Vec<PathBuf>,
}

impl Files {
    /// Whether it restricts which sockets with a path can be connected to.
    pub(crate) fn restricts_connecting(&self) -> bool {
        /// Of landlock: Linux 7.1.
        const FIRST: i32 = 9;
        self.version.is_some_and(|version| version >= FIRST)
    }

    pub(crate) fn is_enforced(&self) -> bool {
        self.version.is_some()
    }
}

impl Report {
    /// Gives up what only the start of the process needs: taking over descriptors by number, and, where
    /// landlock does not restrict it, connecting to sockets.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub fn restrict_finally(&self) -> Result<(), EnterError> {
        if !self.restricted {
            return Ok(());
        }
        system_calls::restrict_finally(self.connects).map_err(EnterError::SystemCalls)
    }

    /// Logs what is in force, and warns of what is not.
    pub fn log(&self) {
        let landlock = self.files.version;
        let seccomp = self.restricted;
        tracing::info!(landlock, seccomp, capabilities = self.capabilities, "sandbox entered");
        if self.files.version.is_none() {
            tracing::warn!("this kernel has no landlock: the sandbox does not restrict files");
        }
        if !seccomp {
            tracing::warn!(
                "this kernel has no seccomp: the sandbox does not restrict system calls"
            );
        }
        for path in &self.files.missing {
            tracing::warn!(
                path = %path.display(),
                "not allowed in the sandbox: it did not exist when the daemon started"
            );
        }
        if self.other_threads > 0 {
            tracing::warn!(
                count = self.other_threads,
                "threads that ran before the sandbox was entered have their files unrestricted"
            );
        }
    }
}
