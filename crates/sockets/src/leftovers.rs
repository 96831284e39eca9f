//! What programs that were killed have left behind.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use vfiod_directories::{directory_of, in_directory};

use crate::named::{self, SUFFIX};

/// How old a socket under its first name must be to be a leftover: making one takes less than a
/// millisecond.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// Removes a socket that nobody listens on any more. Returns whether it was one.
pub fn remove_if_stale(path: &Path) -> bool {
    let looked_at = path.to_owned();
    let removed = in_directory(directory_of(path), move || remove_now(&looked_at));
    removed.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot look at a socket");
        false
    })
}

fn remove_now(path: &Path) -> bool {
    match named::stale(path) {
        Ok(Some(_)) => match fs::remove_file(path) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a stale socket");
                false
            }
        },
        _ => false,
    }
}

/// Removes sockets of a directory that never got their name, because the program that made them was
/// killed at that moment.
pub fn remove_leftovers(directory: &Path) {
    // The parent of a path without a directory.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let looked_at = directory.to_owned();
    if let Err(error) = in_directory(directory, move || remove_leftovers_now(&looked_at)) {
        tracing::warn!(directory = %directory.display(), %error, "cannot look for sockets");
    }
}

fn remove_leftovers_now(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours =
            name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(SUFFIX));
        let left = |file: fs::Metadata| {
            let age = file.modified().ok().and_then(|time| time.elapsed().ok());
            file.file_type().is_socket() && age.is_some_and(|age| age > LEFTOVER_AGE)
        };
        if ours && entry.metadata().is_ok_and(left) && remove_now(&entry.path()) {
            tracing::info!(path = %entry.path().display(), "removed a socket that was never used");
        }
    }
}
