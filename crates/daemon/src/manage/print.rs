//! What the API answers, for people: tables of lists, trees of single things. The words are the
//! API's own.

use std::fmt::Write;

use serde_json::{Map, Value};

/// A value in a word or a few.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        // A name with more lines than one would look like several things.
        Value::String(text) => text.replace('\n', "\\n"),
        Value::Number(number) => number.to_string(),
        Value::Array(list) => match list.iter().map(word).collect::<Vec<_>>().join(" ") {
            none if none.is_empty() => "-".to_owned(),
            words => words,
        },
        Value::Object(fields) => owner(fields).unwrap_or_else(|| pairs(fields)),
    }
}

/// A process that holds a file.
fn owner(fields: &Map<String, Value>) -> Option<String> {
    if let Some(purpose) = fields.get("purpose") {
        return Some(format!("{} (the daemon itself)", word(purpose)));
    }
    let [pid, uid, gid] = ["pid", "uid", "gid"].map(|key| fields.get(key).map(word));
    Some(format!("pid {}, uid {}, gid {}", pid?, uid?, gid?))
}

fn pairs(fields: &Map<String, Value>) -> String {
    let pairs = fields.iter().map(|(key, value)| format!("{} {}", label(key), word(value)));
    pairs.collect::<Vec<_>>().join(", ")
}

fn label(key: &str) -> String {
    key.replace('_', " ")
}

/// A table with a line for each of `rows`: the fields `columns` of each.
pub(super) fn table(rows: &[Value], columns: &[&str]) -> String {
    let titles = columns.iter().map(|column| label(column).to_uppercase()).collect();
    let cells = |row: &Value| columns.iter().map(|column| word(&row[*column])).collect();
    let lines: Vec<Vec<String>> = std::iter::once(titles).chain(rows.iter().map(cells)).collect();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let padded = padded.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", padded.trim_end());
    }
    text
}

/// A thing with everything in it.
pub(super) fn tree(title: &str, value: &Value) -> String {
    let mut text = format!("{title}\n");
    branches(&mut text, "", value);
    text
}

/// A node of the tree: what stands in its line, and what hangs below.
struct Branch<'a> {
    line: String,
    below: Option<&'a Value>,
}

fn branches(text: &mut String, indent: &str, value: &Value) {
    let branches: Vec<Branch<'_>> = match value {
        Value::Object(fields) => fields.iter().map(|(key, value)| field(key, value)).collect(),
        Value::Array(list) => list.iter().map(element).collect(),
        _ => Vec::new(),
    };
    let last = branches.len().saturating_sub(1);
    for (at, branch) in branches.into_iter().enumerate() {
        let (twig, more) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let _ = writeln!(text, "{indent}{twig}{}", branch.line);
        if let Some(below) = branch.below {
            self::branches(text, &format!("{indent}{more}"), below);
        }
    }
}

fn is_leaf(value: &Value) -> bool {
    match value {
        Value::Array(list) => !list.iter().any(|value| value.is_object() || value.is_array()),
        Value::Object(fields) => owner(fields).is_some(),
        _ => true,
    }
}

fn field<'a>(key: &str, value: &'a Value) -> Branch<'a> {
    match value {
        Value::Array(list) if list.is_empty() => {
            Branch { line: format!("{}: none", label(key)), below: None }
        }
        Value::Array(list) if list.len() > 4 && is_leaf(value) => {
            Branch { line: format!("{}: {}", label(key), list.len()), below: Some(value) }
        }
        _ if is_leaf(value) => {
            Branch { line: format!("{}: {}", label(key), word(value)), below: None }
        }
        _ => Branch { line: label(key), below: Some(value) },
    }
}

/// An element of a list: in one line if it has nothing but words in it.
fn element(value: &Value) -> Branch<'_> {
    const TITLES: [&str; 5] = ["name", "number", "uuid", "iova", "type"];
    let Value::Object(fields) = value else { return Branch { line: word(value), below: None } };
    let title = TITLES.into_iter().find(|key| fields.contains_key(*key));
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    if !fields.values().all(is_leaf) {
        let line = title.map_or_else(|| "-".to_owned(), |key| word(&fields[key]));
        return Branch { line, below: Some(value) };
    }
    let rest = fields.iter().filter(|(key, value)| Some(key.as_str()) != title && !empty(value));
    let rest = rest.map(|(key, value)| format!("{} {}", label(key), word(value)));
    let rest = rest.collect::<Vec<_>>().join(", ");
    let line = title.map_or_else(|| rest.clone(), |key| format!("{}: {rest}", word(&fields[key])));
    Branch { line, below: None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [json!({"name": "a", "open": 12, "since": null}), json!({"name": "höhe"})];
        let expected = "NAME  OPEN  SINCE\na     12    -\nhöhe  -     -\n";
        assert_eq!(table(&rows, &["name", "open", "since"]), expected);
        assert_eq!(table(&[], &["name"]), "NAME\n");
    }

    #[test]
    fn a_tree_has_everything() {
        let set = json!({
            "open": 1,
            "members": [
                {"name": "a", "state": "open", "files": [
                    {"number": 7, "owner": {"pid": 1, "uid": 2, "gid": 3}},
                ]},
                {"name": "b", "state": "idle"},
            ],
            "errors": [],
            "first_words": ["x", "y"],
        });
        let expected = "\
set
├─ open: 1
├─ members
│  ├─ a
│  │  ├─ name: a
│  │  ├─ state: open
│  │  └─ files
│  │     └─ 7: owner pid 1, uid 2, gid 3
│  └─ b: state idle
├─ errors: none
└─ first words: x y
";
        assert_eq!(tree("set", &set), expected);
    }
}
