//! Which paths the sandbox of this process allows, for messages.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::system_calls::Calls;

/// What the sandbox allows, by canonical paths; unset: files are not restricted.
static ALLOWED: OnceLock<Vec<PathBuf>> = OnceLock::new();
/// Which system calls it allows beside those that every daemon needs; unset: they are not restricted.
static CALLS: OnceLock<Calls> = OnceLock::new();

pub(crate) fn set<'p>(paths: impl Iterator<Item = &'p PathBuf>) {
    let paths = paths.filter_map(|path| path.canonicalize().ok()).collect();
    // A second sandbox would lie within the first.
    let _ = ALLOWED.set(paths);
}

pub(crate) fn set_system_calls(calls: Calls) {
    let _ = CALLS.set(calls);
}

/// Whether the sandbox of this process allows to give a file this mode.
pub fn allows_mode(mode: u32) -> bool {
    let Some(Calls { modes, .. }) = CALLS.get() else { return true };
    mode & 0o7000 == 0 && modes.as_ref().is_none_or(|modes| modes.contains(&mode))
}

/// Whether the sandbox of this process allows to change the owners of files.
pub fn allows_changing_owners() -> bool {
    CALLS.get().is_none_or(|calls| calls.changes_owners)
}

/// Whether the sandbox of this process allows a system call beyond those that every daemon needs.
pub fn allows_system_call(number: i64) -> bool {
    CALLS.get().is_none_or(|calls| calls.more.contains(&number))
}

/// A path that the sandbox does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside(PathBuf);

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is outside the daemon's sandbox; add its directory to `paths` under [sandbox] and \
             restart the daemon",
            self.0.display()
        )
    }
}

impl std::error::Error for Outside {}

/// Whether this process is in a sandbox that restricts files.
pub fn is_confined() -> bool {
    ALLOWED.get().is_some()
}

/// Checks that the sandbox of this process allows to use a path. Without a sandbox every path is.
///
/// # Errors
/// [`Outside`].
pub fn check(path: &Path) -> Result<(), Outside> {
    let Some(allowed) = ALLOWED.get() else { return Ok(()) };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_allowed = |path: &Path| allowed.iter().any(|allowed| path.starts_with(allowed));
    // What does not exist yet is judged by the nearest directory that does.
    let real = absolute.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
    match real {
        Some(real) if is_allowed(&real) => Ok(()),
        _ => Err(Outside(path.to_owned())),
    }
}

/// What to add to the message of an error that the sandbox may be the reason of; otherwise nothing.
/// `path` is what the error is about, where that is known.
pub fn hint(error: io::ErrorKind, path: Option<&Path>) -> String {
    if error != io::ErrorKind::PermissionDenied || !is_confined() {
        return String::new();
    }
    if let Some(Err(outside)) = path.map(check) {
        return format!("; {outside}");
    }
    "; the daemon's sandbox allows what was there when the daemon started: if it was replaced since, \
     restart the daemon"
        .to_owned()
}
