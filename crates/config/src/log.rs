//! How the daemon logs, as far as a file can say it.

use tracing_subscriber::EnvFilter;

use crate::nearest::suggestion;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The names that people write.
    pub const NAMES: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// What a filter may name besides `off`.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Checks a log filter: a level, or levels by module.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    // A word alone would be taken for a module, and a level with a typing error silence all others.
    let alone = |part: &&str| !part.is_empty() && !part.contains(['=', '[', ']', '{', '}']);
    if filter.split(',').all(|part| part.trim().is_empty()) {
        return Err("a log filter without a level shows nothing; write `off` for that".to_owned());
    }
    // `info=` is taken for the module `info` with no level at all.
    if let Some(word) = filter.split(',').map(str::trim).find(|part| part.ends_with('=')) {
        return Err(format!("`{word}` has no level; write one: {word}debug"));
    }
    for word in filter.split(',').map(str::trim).filter(alone) {
        let level = word.to_ascii_lowercase();
        let number = level.parse().is_ok_and(|number: u8| number <= 5);
        if !number && level != "off" && !LEVELS.contains(&level.as_str()) {
            let levels = suggestion(&level, "levels", LEVELS);
            return Err(format!(
                "`{word}` is no level; {levels}; a module is written with its level: {word}=debug"
            ));
        }
    }
    EnvFilter::builder()
        .parse(filter)
        .map(drop)
        .map_err(|error| format!("`{filter}` is no log filter: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_level_is_refused_and_not_taken_for_a_module() {
        for right in ["info", "INFO", "off", "3", "warn,vfiod_server=trace", "info,", "a[b{c=d}]=1"]
        {
            assert_eq!(check_filter(right), Ok(()), "{right}");
        }
        for wrong in
            ["inof", "warn,vfiod_server", "vfiod_server=tarce", "a=b=c", "7", "", " ", ",", "info="]
        {
            assert!(check_filter(wrong).is_err(), "{wrong}");
        }
        let said = check_filter("inof").unwrap_err();
        assert!(said.starts_with("`inof` is no level; did you mean `info`?"), "{said}");
    }
}
