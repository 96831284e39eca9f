//! How the daemon logs, as far as a file can say it.

use tracing_subscriber::EnvFilter;

use crate::nearest::{nearest, suggestion};

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

/// The crates of this project, as log lines name them. What begins like one and is none is a mistake;
/// any other name may be that of a library, or of somebody's model.
const CRATES: [&str; 33] = [
    "vfiod",
    "vfiod_buffer",
    "vfiod_client",
    "vfiod_config",
    "vfiod_control",
    "vfiod_core",
    "vfiod_daemon",
    "vfiod_devices",
    "vfiod_directories",
    "vfiod_disk",
    "vfiod_dma",
    "vfiod_fsl_mc",
    "vfiod_fuzz_targets",
    "vfiod_holder",
    "vfiod_io",
    "vfiod_journal",
    "vfiod_manager",
    "vfiod_mdev",
    "vfiod_mdev_sysfs",
    "vfiod_nvme",
    "vfiod_nvme_driver",
    "vfiod_nvme_spec",
    "vfiod_pci",
    "vfiod_protocol",
    "vfiod_quota",
    "vfiod_sandbox",
    "vfiod_server",
    "vfiod_sockets",
    "vfiod_sync",
    "vfiod_tasks",
    "vfiod_testing",
    "vfiod_tools",
    "vfiod_wire",
];

/// The spans of these crates.
const SPANS: [&str; 1] = ["message"];

/// Checks a log filter: a level, or levels by module.
///
/// # Errors
/// What is wrong with it. A crate of ours that there is not, or a span that is nearly one of ours, would
/// silence what was meant without a word.
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
        .map_err(|error| format!("`{filter}` is no log filter: {error}"))?;
    filter.split(',').map(str::trim).try_for_each(check_names)
}

/// Checks the names of a module and a span: `module[span{field=value}]=level`.
fn check_names(directive: &str) -> Result<(), String> {
    let module = directive.split(['[', '=']).next().unwrap_or_default();
    let name = module.split("::").next().unwrap_or_default();
    if name.starts_with("vfiod") && !CRATES.contains(&name) {
        let crates = suggestion(name, "crates", CRATES);
        return Err(format!("`{directive}`: nothing is called `{name}`; {crates}"));
    }
    let span = directive.split_once('[').map(|(_, rest)| rest);
    let span = span.and_then(|rest| rest.split(['{', ']']).next()).unwrap_or_default();
    match nearest(span, SPANS) {
        Some(near) if near != span => {
            Err(format!("`{directive}`: no span is called `{span}`; did you mean `{near}`?"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_level_is_refused_and_not_taken_for_a_module() {
        let right = [
            "info",
            "INFO",
            "off",
            "3",
            "warn,vfiod_server=trace",
            "info,",
            "a[b{c=d}]=1",
            "info,[message{device=edu0}]=trace",
            "vfiod_server[message{device=edu0}]=trace,vfiod_core::set=debug",
            "fuser=debug,checksum=trace",
        ];
        for right in right {
            assert_eq!(check_filter(right), Ok(()), "{right}");
        }
        for wrong in
            ["inof", "warn,vfiod_server", "vfiod_server=tarce", "a=b=c", "7", "", " ", ",", "info="]
        {
            assert!(check_filter(wrong).is_err(), "{wrong}");
        }
        let said = check_filter("info,vfiod_cor=debug").unwrap_err();
        let start = "`vfiod_cor=debug`: nothing is called `vfiod_cor`; did you mean `vfiod_core`?";
        assert!(said.starts_with(start), "{said}");
        let said = check_filter("[mesage{device=a}]=trace,info").unwrap_err();
        assert_eq!(
            said,
            "`[mesage{device=a}]=trace`: no span is called `mesage`; did you mean `message`?"
        );
        let said = check_filter("inof").unwrap_err();
        assert!(said.starts_with("`inof` is no level; did you mean `info`?"), "{said}");
    }

    #[test]
    fn crates_are_those_of_the_workspace() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut there: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap().replace('-', "_"))
            .map(|name| if name == "vfiod" { name } else { format!("vfiod_{name}") })
            .collect();
        there.sort();
        assert_eq!(there, CRATES);
    }
}
