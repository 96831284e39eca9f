//! A mistake of the person who called the program.

use std::time::Duration;

use crate::values::{self, TIME_HELP};

/// A mistake on the command line or in what was passed to the program: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Reads a time that an argument of the command line gives, such as `50us` or `5s`.
///
/// # Errors
/// The text is no time.
pub fn time_argument(argument: &str, text: &str) -> Result<Duration, UsageError> {
    values::time(text)
        .ok_or_else(|| UsageError(format!("{argument}: `{text}` is no time; {TIME_HELP}")))
}
