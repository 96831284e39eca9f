//! A mistake of the person who called the program.

/// A mistake on the command line or in what was passed to the program: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);
