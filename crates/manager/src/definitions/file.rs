//! The text of a definition's file.

use std::time::{Duration, SystemTime};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Definition, Start};

/// The fields that mdevctl knows.
pub(super) const FIELDS: [&str; 3] = ["mdev_type", "start", "attrs"];

/// How long a file that is no definition must have been as it is before it is set aside: mdevctl
/// truncates a file and then writes it, and may be at it.
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// No definition is as large as this, in bytes.
pub(super) const LARGEST: u64 = 1 << 20;

/// Whether a file last modified then is no longer being written. A moment in the future says nothing
/// of when it was; if it is far enough away, it was not now.
pub(super) fn settled(modified: SystemTime) -> bool {
    let apart = modified.elapsed().unwrap_or_else(|ahead| ahead.duration());
    apart > SETTLED
}

/// Reads a definition as mdevctl does.
///
/// # Errors
/// What is wrong, and what would be right.
pub(super) fn parse(parent: &str, uuid: Uuid, text: &[u8]) -> Result<Definition, String> {
    if text.len() as u64 > LARGEST {
        return Err(format!("it has more than {LARGEST} bytes"));
    }
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty".into());
    }
    let value = serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let Value::Object(mut other) = value else {
        return Err(format!("it holds {}, not an object with mdev_type and start", kind(&value)));
    };
    let [mdev_type, start, attrs] = FIELDS.map(|field| other.remove(field).unwrap_or_default());
    let mdev_type = match mdev_type {
        Value::String(mdev_type) if !mdev_type.is_empty() => mdev_type,
        Value::String(_) => return Err("mdev_type is empty".into()),
        wrong => return Err(format!("mdev_type is {}, not a string", kind(&wrong))),
    };
    let start = match start {
        Value::Null => return Err(r#"start is missing; it is "auto" or "manual""#.into()),
        Value::String(word) if word == "auto" => Start::Auto,
        // As mdevctl takes it.
        _ => Start::Manual,
    };
    let attrs = match attrs {
        Value::Null => Vec::new(),
        Value::Array(attrs) => attrs
            .into_iter()
            .enumerate()
            .map(|(at, attr)| attribute(attr).map_err(|why| format!("attrs[{at}]: {why}")))
            .collect::<Result<_, _>>()?,
        wrong => return Err(format!("attrs is {}, not an array", kind(&wrong))),
    };
    Ok(Definition { uuid, parent: parent.to_owned(), mdev_type, start, attrs, other })
}

fn attribute(value: Value) -> Result<(String, String), String> {
    let right = r#"an attribute is an object of one name and a string, {"name": "value"}"#;
    let Value::Object(attribute) = value else {
        return Err(format!("it is {}; {right}", kind(&value)));
    };
    if attribute.len() != 1 {
        return Err(format!("it has {} fields; {right}", attribute.len()));
    }
    match attribute.into_iter().next() {
        Some((name, Value::String(value))) => Ok((name, value)),
        Some((name, wrong)) => Err(format!("the value of {name} is {}; {right}", kind(&wrong))),
        None => Err(right.into()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The text of a definition, as mdevctl writes it, with the other fields behind its own.
///
/// # Errors
/// None that a definition can cause.
pub(super) fn text(definition: &Definition) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Written(definition))
}

struct Written<'a>(&'a Definition);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(definition) = self;
        let attrs = definition.attrs.iter().map(|(name, value)| {
            let value = Value::String(value.clone());
            Value::Object(Map::from_iter([(name.clone(), value)]))
        });
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("mdev_type", &definition.mdev_type)?;
        map.serialize_entry("start", definition.start.as_str())?;
        map.serialize_entry("attrs", &Value::Array(attrs.collect()))?;
        for (name, value) in &definition.other {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
