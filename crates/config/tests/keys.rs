//! The table of keys against what a file may have in it.

use std::collections::BTreeSet;

use vfiod_config::{KEYS, read};
use vfiod_devices::catalogue;

/// The keys that the reader knows in a table: it lists them where it finds another one.
fn known(table: &str) -> BTreeSet<String> {
    let header = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
    // What an object is in; a table without what it must have is still read.
    let text = header + "zzzz = 1\n";
    let said = read("c.toml", &text, &catalogue()).unwrap_err().to_string();
    let help = said.split("there is no such key").nth(1).unwrap_or_else(|| panic!("{said}"));
    let (_, keys) = help.split_once("keys: ").unwrap_or_else(|| panic!("{said}"));
    let line = keys.lines().next().unwrap_or_default();
    line.trim_end_matches(')').split(", ").map(str::to_owned).collect()
}

#[test]
fn table_of_keys_has_every_key_that_a_file_may_have() {
    let names: Vec<String> = KEYS.iter().flat_map(|keys| keys.full_names()).collect();
    let tables: BTreeSet<&str> = KEYS.iter().map(|keys| keys.table).collect();
    assert!(tables.contains("container.NAME.object.NAME"), "{tables:?}");
    for table in tables {
        let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
        let described: BTreeSet<String> = names
            .iter()
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(|rest| rest.split('.').next().unwrap_or(rest).to_owned())
            .collect();
        assert_eq!(described, known(table), "in [{table}]");
    }
}
