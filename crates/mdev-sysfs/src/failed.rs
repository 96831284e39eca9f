//! Errors of the file system, with the path.

use std::io;
use std::path::Path;

use vfiod_core::{Errno, Error};

/// An error about a directory: what was tried, and the error of the file system.
pub(crate) fn failed(directory: &Path, what: &str, error: io::Error) -> Error {
    let what = format!("{} {what}", directory.display());
    match Errno::from_io_error(&error) {
        Some(errno) => Error::new(errno, what),
        None => Error::new(Errno::IO, what).because(error),
    }
}
