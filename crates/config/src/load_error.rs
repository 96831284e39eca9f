//! Why a configuration file was not taken.

use std::io;
use std::path::PathBuf;

use crate::problem::Problems;

/// Why a configuration file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// There are mistakes in it.
    #[error(transparent)]
    Wrong(#[from] Problems),
}
