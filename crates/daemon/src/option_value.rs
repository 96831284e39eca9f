//! Options of models on the command line.

use std::collections::BTreeSet;

use vfiod_config::UsageError;

/// The value of an option on the command line: a number, also hexadecimal, true or false or a
/// list as JSON has them; anything else is a string.
pub fn option_value(text: &str) -> serde_json::Value {
    if let Some(number) = text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok())
    {
        return number.into();
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Checks that each option is given once: which of two values counts would be a guess.
pub(crate) fn no_option_twice<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), UsageError> {
    no_argument_twice("--option", names)
}

/// Checks that each argument of `what` is given once.
pub(crate) fn no_argument_twice<'a>(
    what: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), UsageError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(UsageError(format!(
                "{what} {name}: it is given twice; leave one of them out"
            )));
        }
    }
    Ok(())
}
