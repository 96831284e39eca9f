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
    /// It is larger than any configuration.
    #[error("the configuration file {} has more than {} bytes", .0.display(), .1)]
    TooLarge(PathBuf, u64),
    /// It is no text.
    #[error("the configuration file {} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// There are mistakes in it.
    #[error(transparent)]
    Wrong(#[from] Problems),
}
