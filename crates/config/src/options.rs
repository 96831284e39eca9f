//! Options of a model: their help, out of the structure's JSON schema, and reading them.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::build_error::BuildError;
use crate::nearest::nearest;

/// Options of a model, by name.
pub type Options = serde_json::Map<String, Value>;

/// A structure that is the options of a model: `#[serde(default, deny_unknown_fields)]`, each
/// field with a doc comment.
///
/// Where the type of a field does not say what may be written (a list of names, say),
/// `#[schemars(extend("x-values" = "a list of names"))]` does. A field that is a path has
/// `#[schemars(extend("x-path" = "socket"))]`, or `"link"`, `"directory"`, `"file"` or `true`: see
/// [`PathKind`]. The daemon's sandbox allows its directory, and what is in its way is found before
/// anything is served. An option by which clients cannot tell devices apart, such as how fast it may be, has
/// `#[schemars(extend("x-local" = true))]`: a saved state goes to a device with another one.
pub trait ModelOptions: Default + Serialize + DeserializeOwned + JsonSchema {}

impl<T: Default + Serialize + DeserializeOwned + JsonSchema> ModelOptions for T {}

/// An option of a model, described for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionInfo {
    /// Its name.
    pub name: String,
    /// What may be written.
    pub values: String,
    /// What it is if nothing is written.
    pub default: String,
    /// What it does.
    pub summary: String,
    /// What is at the path that it is, or at each of a list of them, if it is one.
    #[serde(skip)]
    pub path: Option<PathKind>,
    /// Whether it is about this machine alone: a device whose other options are the same cannot be told from
    /// another one by its clients, and takes its saved state. So is every path.
    #[serde(skip)]
    pub is_local: bool,
}

/// What is to be at a path that an option names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A socket that the model makes.
    Socket,
    /// A symbolic link that the model makes.
    Link,
    /// A directory in which the model makes files.
    Directory,
    /// A file with contents, or a block device: it is there already.
    File,
    /// Anything.
    Other,
}

/// The options of a structure, in the order of its fields.
pub(crate) fn help<O: ModelOptions>() -> Vec<OptionInfo> {
    let defaults = serde_json::to_value(O::default()).unwrap_or_default();
    let mut options = described(schema_of::<O>().as_value(), |_, _| String::new());
    options.iter_mut().for_each(|option| option.default = written(&defaults[&option.name]));
    options
}

/// The schema of a type, without references.
pub(crate) fn schema_of<T: JsonSchema>() -> schemars::Schema {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

/// The fields of a structure, in their order. `default` says what each is if it is left out, from its schema
/// and whether it must be there.
pub(crate) fn described(
    structure: &Value,
    default: impl Fn(&Value, bool) -> String,
) -> Vec<OptionInfo> {
    let required = |name: &String| {
        let required = structure["required"].as_array();
        required.is_some_and(|required| required.iter().any(|other| other == name))
    };
    let option = |(name, schema): (&String, &Value)| OptionInfo {
        name: name.clone(),
        values: values(schema),
        default: default(schema, required(name)),
        summary: summary(schema["description"].as_str().unwrap_or_default()),
        path: path_kind(schema),
        is_local: path_kind(schema).is_some() || schema["x-local"] == true,
    };
    structure["properties"].as_object().into_iter().flatten().map(option).collect()
}

/// The first sentence of a doc comment, without its full stop and its capital.
pub(crate) fn summary(description: &str) -> String {
    let text = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    match (letters.next(), letters.as_str()) {
        // An abbreviation such as UNIX or BAR keeps its capitals.
        (Some(first), rest) if rest.starts_with(|letter: char| letter.is_lowercase()) => {
            first.to_lowercase().collect::<String>() + rest
        }
        (Some('A'), rest) if rest.starts_with(' ') => format!("a{rest}"),
        _ => sentence.to_owned(),
    }
}

fn path_kind(schema: &Value) -> Option<PathKind> {
    match &schema["x-path"] {
        Value::Bool(true) => Some(PathKind::Other),
        Value::String(kind) => Some(match kind.as_str() {
            "socket" => PathKind::Socket,
            "link" => PathKind::Link,
            "directory" => PathKind::Directory,
            "file" => PathKind::File,
            _ => PathKind::Other,
        }),
        _ => None,
    }
}

/// What may be written, in words.
fn values(schema: &Value) -> String {
    if let Some(words) = schema["x-values"].as_str() {
        return words.to_owned();
    }
    if path_kind(schema).is_some() {
        return "a path".to_owned();
    }
    if let Some(names) = names(schema) {
        return one_of(&names);
    }
    // `null` stands for an option that is left out.
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null"),
        kind => Some(kind),
    };
    match kind.and_then(Value::as_str) {
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => number(schema),
        Some("number") => "a number".to_owned(),
        Some("array") => "a list".to_owned(),
        _ => "a string".to_owned(),
    }
}

/// The names of an enumeration.
fn names(schema: &Value) -> Option<Vec<&str>> {
    if let Some(list) = schema["enum"].as_array() {
        return list.iter().map(Value::as_str).collect();
    }
    let list = schema["oneOf"].as_array()?;
    let names = list.iter().map(|one| match names(one) {
        Some(names) => Some(names),
        None => Some(vec![one["const"].as_str()?]),
    });
    Some(names.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn number(schema: &Value) -> String {
    let most = match schema["format"].as_str() {
        Some("uint8") => Some("255"),
        Some("uint16") => Some("65535"),
        Some("uint32") => Some("4294967295"),
        Some("uint64" | "uint") => Some("2^64 - 1"),
        _ => None,
    };
    let (from, to) = (schema["minimum"].as_i64(), schema["maximum"].as_i64());
    let least = from.unwrap_or(0);
    match (to, most) {
        (Some(to), _) if to == least + 1 => format!("{least} or {to}"),
        (Some(to), _) => format!("a number from {least} to {to}"),
        (None, Some(most)) => format!("a number from {least} to {most}"),
        (None, None) => "a number".to_owned(),
    }
}

/// A default as one would write it.
pub(crate) fn written(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        // Large numbers of devices are masks and sizes.
        Value::Number(number) => match number.as_u64() {
            Some(number) if number > 0xffff => format!("{number:#x}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// Reads options one by one first, so that an error names the one that it is about.
pub(crate) fn read<T: DeserializeOwned>(
    model: &str,
    known: &[OptionInfo],
    options: &Options,
) -> Result<T, BuildError> {
    for (key, value) in options {
        let Some(option) = known.iter().find(|option| option.name == *key) else {
            let known: Vec<_> = known.iter().map(|option| option.name.clone()).collect();
            let nearest = nearest(key, known.iter().map(String::as_str)).map(str::to_owned);
            let (model, option) = (model.to_owned(), key.clone());
            return Err(BuildError::UnknownOption { model, option, nearest, known });
        };
        let mut alone = Options::new();
        alone.insert(key.clone(), value.clone());
        if let Err(error) = serde_json::from_value::<T>(alone.into()) {
            return Err(BuildError::BadValue {
                model: model.to_owned(),
                option: key.clone(),
                problem: error.to_string(),
                expected: option.values.clone(),
            });
        }
    }
    serde_json::from_value(options.clone().into()).map_err(|error| BuildError::BadValue {
        model: model.to_owned(),
        option: options.keys().cloned().collect::<Vec<_>>().join(", "),
        problem: error.to_string(),
        expected: "as listed".to_owned(),
    })
}

/// What options say of a device beyond this machine ([`OptionInfo::is_local`]), each with its value whether it is
/// written or not.
pub(crate) fn portable<T: ModelOptions>(
    model: &str,
    known: &[OptionInfo],
    options: &Options,
) -> Result<Options, BuildError> {
    let whole = serde_json::to_value(read::<T>(model, known, options)?).unwrap_or_default();
    let Value::Object(mut whole) = whole else { return Ok(Options::new()) };
    whole.retain(|name, _| known.iter().any(|option| option.name == *name && !option.is_local));
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Plug {
        /// Output joined to input.
        Loop,
        /// Nothing.
        None,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        /// Address bits of the DMA engine.
        mask: u64,
        /// Inputs at the start, a bit each. More is said here.
        #[schemars(extend("x-local" = true))]
        inputs: u16,
        /// BAR 0 is shared.
        shared: bool,
        /// A plug.
        plug: Plug,
        /// How many ports.
        #[schemars(with = "u8", range(min = 1, max = 2))]
        ports: u8,
        /// UNIX socket.
        #[schemars(extend("x-path" = "socket"))]
        socket: Option<std::path::PathBuf>,
    }

    impl Default for Example {
        fn default() -> Self {
            let (mask, inputs, shared, ports) = (0xfff_ffff, 0, true, 1);
            Self { mask, inputs, shared, plug: Plug::Loop, ports, socket: None }
        }
    }

    #[test]
    fn help_of_options_comes_from_their_structure() {
        let help: Vec<_> = help::<Example>()
            .into_iter()
            .map(|o| format!("{} = {}: {} [{}]", o.name, o.values, o.summary, o.default))
            .collect();
        assert_eq!(
            help,
            [
                "mask = a number from 0 to 2^64 - 1: address bits of the DMA engine [0xfffffff]",
                "inputs = a number from 0 to 65535: inputs at the start, a bit each [0]",
                "shared = true or false: BAR 0 is shared [true]",
                "plug = loop or none: a plug [loop]",
                "ports = 1 or 2: how many ports [1]",
                "socket = a path: UNIX socket [none]",
            ]
        );
        let path = super::help::<Example>().pop().and_then(|option| option.path);
        assert_eq!(path, Some(PathKind::Socket));
    }

    #[test]
    fn portable_options_have_their_defaults_and_are_not_local() {
        let written = serde_json::json!({ "mask": 5, "inputs": 7, "socket": "/s" });
        let portable =
            portable::<Example>("example", &help::<Example>(), written.as_object().unwrap());
        let expected = serde_json::json!({ "mask": 5, "shared": true, "plug": "loop", "ports": 1 });
        assert_eq!(Value::from(portable.unwrap()), expected);
    }
}
