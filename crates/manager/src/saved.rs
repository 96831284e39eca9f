//! The state of a device in a file: saved from one that runs, and restored to one of the same model, here or
//! elsewhere.
//!
//! The document says what it is and of what; its checksum finds what was damaged on the way. What it says may
//! come from anybody all the same: the core and the model check it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vfiod_core::{DeviceRef, Errno, Error, Result, Saved};

use crate::departure;
use crate::events::EventKind;
use crate::manager::Manager;

const FORMAT: &str = "vfiod device state";
const VERSION: u64 = 1;

/// The state of a device, and of what device it is. Files, memory and interrupts of its clients are not part of
/// it, nor is what a disk contains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SavedDevice {
    /// What this is: `vfiod device state`.
    pub format: String,
    /// The version of this format: 1. The parts of the state have versions of their own.
    pub version: u32,
    /// The version of vfiod that has saved it.
    pub vfiod: String,
    /// When it was saved (RFC 3339).
    pub saved: String,
    /// What the device was called. It can be restored to one of another name.
    pub name: String,
    /// Its model; of a mediated device the model of its parent, and its type.
    pub model: String,
    /// Those of its options that clients can tell, with defaults: the device that it is restored to has the same.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub options: Map<String, Value>,
    /// The state.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub state: Saved,
    /// Of everything else, whatever the order of keys and the space between them.
    pub checksum: String,
}

fn invalid(what: String) -> Error {
    Error::new(Errno::INVAL, what)
}

impl SavedDevice {
    /// The document of a device's state ([`DeviceRef::save_portable`]).
    ///
    /// # Errors
    /// `EINVAL`: it cannot be written.
    pub fn new(
        name: &str,
        model: String,
        options: Map<String, Value>,
        state: Saved,
    ) -> Result<Self> {
        let mut saved = Self {
            format: FORMAT.to_owned(),
            version: VERSION as u32,
            vfiod: env!("CARGO_PKG_VERSION").to_owned(),
            saved: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            name: name.to_owned(),
            model,
            options,
            state,
            checksum: String::new(),
        };
        let document = serde_json::to_value(&saved)
            .map_err(|error| invalid("the state cannot be written".to_owned()).because(error))?;
        saved.checksum = checksum(&document);
        Ok(saved)
    }

    /// The checksum of a document, whatever its own says, in 16 hexadecimal digits: FNV-1a of what is in it but
    /// `checksum`, with sorted keys. A byte that was changed by accident gives another one; whoever means to can make
    /// another document of the same checksum.
    pub fn checksum_of(document: &Value) -> String {
        checksum(document)
    }

    /// Reads a document, which may be hostile: whatever it says is not checked but that it is whole.
    ///
    /// # Errors
    /// `EINVAL`: it is something else, of another version, damaged or malformed.
    pub fn read(document: Value) -> Result<Self> {
        let Some(fields) = document.as_object() else {
            return Err(invalid("this is not the saved state of a device".to_owned()));
        };
        match fields.get("format").and_then(Value::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                let what =
                    format!("this is {:?}, not the saved state of a device", shortened(other));
                return Err(invalid(what));
            }
            None => return Err(invalid("this is not the saved state of a device".to_owned())),
        }
        match fields.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                let what = format!(
                    "the saved state has version {other} of the format; this program reads version {VERSION}"
                );
                return Err(invalid(what));
            }
            None => return Err(invalid("the saved state does not say its version".to_owned())),
        }
        let sum = checksum(&document);
        match fields.get("checksum").and_then(Value::as_str) {
            Some(said) if said == sum => {}
            Some(said) => {
                let said = shortened(said);
                let what =
                    format!("the saved state is damaged: its checksum is {sum}, not {said:?}");
                return Err(invalid(what));
            }
            None => return Err(invalid("the saved state has no checksum".to_owned())),
        }
        serde_json::from_value(document).map_err(|error| {
            invalid(format!("the saved state is malformed: {error}")).because(error)
        })
    }
}

/// What a state is of, and what it can be restored to.
#[derive(Debug, PartialEq)]
struct Kind {
    model: String,
    options: Map<String, Value>,
}

impl Manager {
    /// Saves the state of a device, which quiesces for that and goes on.
    ///
    /// # Errors
    /// `ENOENT`: there is no such device; as [`DeviceRef::save_portable`].
    pub fn save_device(&self, name: &str) -> Result<SavedDevice> {
        let device = self.find(name)?;
        let Kind { model, options } = self.kind_of(&device)?;
        let saved = SavedDevice::new(name, model, options, device.save_portable()?)?;
        tracing::info!(device = name, "state saved");
        Ok(saved)
    }

    /// Restores a state that [`Manager::save_device`] has saved, of this daemon or of another one, to a device of
    /// the same model that nobody has open. Whoever opens the device next finds it; see
    /// [`DeviceRef::restore_portable`]. A client that has hung up is waited for, two seconds at most.
    ///
    /// # Errors
    /// `ENOENT`: there is no such device; `EINVAL`: the document is damaged, of another format or version, or of a
    /// device of another model or with other options, or as [`DeviceRef::restore_portable`], as all else. Nothing
    /// has changed.
    pub fn restore_device(&self, name: &str, document: Value) -> Result<()> {
        let device = self.find(name)?;
        let SavedDevice { model, options, state, .. } = SavedDevice::read(document)?;
        let of = Kind { model, options };
        let own = self.kind_of(&device)?;
        if of != own {
            return Err(invalid(format!("cannot restore {name}: {}", difference(&of, &own))));
        }
        let departures = self.departures(&device);
        departure::past_departures(departures.as_slice(), || device.restore_portable(&state))?;
        tracing::info!(device = name, "state restored");
        self.emit(EventKind::Restored, name);
        Ok(())
    }

    fn kind_of(&self, device: &DeviceRef) -> Result<Kind> {
        if let Some(instance) = self.instance_of(device) {
            let parent = self.parent_model(instance.parent()).unwrap_or_default();
            let model = format!("{parent}/{}", instance.mdev_type().id);
            return Ok(Kind { model, options: Map::new() });
        }
        let model = self.stack().about(device.name()).model;
        let options = match self.stack().options(device.name()) {
            None => Map::new(),
            Some(options) => {
                let options = self.models.portable_options(&model, &options);
                options.map_err(|error| invalid(error.to_string()))?
            }
        };
        Ok(Kind { model, options })
    }
}

/// A text of somebody else for a message.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// In what the device that a state is of differs from the one that it is to be restored to.
fn difference(of: &Kind, own: &Kind) -> String {
    if of.model != own.model {
        return format!(
            "the state is of the model `{}`, not `{}`",
            shortened(&of.model),
            own.model
        );
    }
    let names =
        of.options.keys().chain(own.options.keys().filter(|key| !of.options.contains_key(*key)));
    let value = |kind: &Kind, name: &str| {
        kind.options.get(name).map_or("nothing".to_owned(), |value| shortened(&value.to_string()))
    };
    let differ = names.filter(|name| of.options.get(*name) != own.options.get(*name));
    let differ = differ.take(8).map(|name| {
        format!("`{}` is {} there and {} here", shortened(name), value(of, name), value(own, name))
    });
    format!(
        "the state is of a device with other options: {}",
        differ.collect::<Vec<_>>().join(", ")
    )
}

fn checksum(document: &Value) -> String {
    let mut sum = Sum(0xcbf2_9ce4_8422_2325);
    let fields = document.as_object();
    sum.object(fields.into_iter().flatten().filter(|(name, _)| *name != "checksum"));
    format!("{:016x}", sum.0)
}

struct Sum(u64);

impl Sum {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.len().to_string().as_bytes());
        self.bytes(b":");
        self.bytes(text.as_bytes());
    }

    /// Keys in an order that does not depend on that of the text.
    fn object<'a>(&mut self, fields: impl Iterator<Item = (&'a String, &'a Value)>) {
        let mut fields: Vec<_> = fields.collect();
        fields.sort_unstable_by_key(|(name, _)| *name);
        self.bytes(b"{");
        for (name, value) in fields {
            self.text(name);
            self.value(value);
        }
        self.bytes(b"}");
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"n"),
            Value::Bool(value) => self.bytes(if *value { b"t" } else { b"f" }),
            Value::Number(number) => {
                self.bytes(b"#");
                self.text(&number.to_string());
            }
            Value::String(text) => self.text(text),
            Value::Array(values) => {
                self.bytes(b"[");
                values.iter().for_each(|value| self.value(value));
                self.bytes(b"]");
            }
            Value::Object(fields) => self.object(fields.iter()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        let state = json!({ "kind": "portable device", "version": 1, "state": {
            "interrupts": [{}, { "3": { "level": true } }], "text": "a", "none": null, "numbers": [1, -2],
        }});
        let options = Map::from_iter([("mask".to_owned(), json!(4095))]);
        let state = serde_json::from_value(state).unwrap();
        let saved = SavedDevice::new("d", "edu".to_owned(), options, state).unwrap();
        serde_json::to_value(saved).unwrap()
    }

    /// Every document that differs from this one in one place.
    fn changed(value: &Value) -> Vec<Value> {
        let mut all = match value {
            Value::Object(fields) => {
                let mut all: Vec<Value> = Vec::new();
                for (name, value) in fields {
                    let with = |name: &str, value: Option<Value>| {
                        let others = fields.iter().filter(|(other, _)| *other != name);
                        let others = others.map(|(name, value)| (name.clone(), value.clone()));
                        let changed = value.map(|value| (name.to_owned(), value));
                        Value::from(others.chain(changed).collect::<Map<_, _>>())
                    };
                    all.extend(changed(value).into_iter().map(|value| with(name, Some(value))));
                    all.push(with(name, None));
                }
                let one_more = fields.clone().into_iter().chain([("x".to_owned(), json!(0))]);
                all.push(one_more.collect::<Map<_, _>>().into());
                all
            }
            Value::Array(values) => {
                let mut all: Vec<Value> = Vec::new();
                for (n, value) in values.iter().enumerate() {
                    for value in changed(value) {
                        let mut values = values.clone();
                        values[n] = value;
                        all.push(values.into());
                    }
                    let mut values = values.clone();
                    values.remove(n);
                    all.push(values.into());
                }
                all
            }
            Value::String(text) => vec![json!(format!("{text}x")), json!(text.get(1..))],
            Value::Number(number) => {
                vec![json!(number.as_i64().unwrap() ^ 1), json!(number.to_string())]
            }
            Value::Bool(value) => vec![json!(!value)],
            Value::Null => vec![json!(false)],
        };
        if !value.is_null() {
            all.push(Value::Null);
        }
        all.retain(|other| other != value);
        all
    }

    #[test]
    fn document_that_was_changed_anywhere_is_refused() {
        let document = document();
        SavedDevice::read(document.clone()).unwrap();
        let changed = changed(&document);
        assert!(changed.len() > 60, "{}", changed.len());
        for changed in changed {
            let error = SavedDevice::read(changed.clone());
            let error = error.err().unwrap_or_else(|| panic!("accepted: {changed}"));
            assert_eq!(error.errno(), Errno::INVAL, "{error}");
        }
    }

    #[test]
    fn layout_and_order_of_a_document_do_not_matter() {
        let mut document = document();
        let fields = document.as_object_mut().unwrap();
        let checksum = fields.shift_remove("checksum").unwrap();
        let reversed: Map<_, _> = [("checksum".to_owned(), checksum)]
            .into_iter()
            .chain(fields.clone().into_iter().rev())
            .collect();
        let text = serde_json::to_string_pretty(&reversed).unwrap();
        SavedDevice::read(serde_json::from_str(&text).unwrap()).unwrap();
    }

    /// The sum is part of the format: what was saved is read by later versions.
    #[test]
    fn checksum_is_what_it_was() {
        let document = json!({ "b": [1, -2, "x"], "a": { "c": null, "d": true }, "checksum": "?" });
        assert_eq!(checksum(&document), "860c829575a5bde7");
    }

    #[test]
    fn whoever_restores_learns_what_differs() {
        let kind = |model: &str, options: Value| Kind {
            model: model.to_owned(),
            options: options.as_object().unwrap().clone(),
        };
        let own = kind("edu", json!({ "dma_mask": 1, "same": 2 }));
        let other = kind("gpio", json!({}));
        assert_eq!(difference(&other, &own), "the state is of the model `gpio`, not `edu`");
        let other = kind("edu", json!({ "same": 2, "more": "x" }));
        let expected = "the state is of a device with other options: `more` is \"x\" there and nothing here, \
                        `dma_mask` is nothing there and 1 here";
        assert_eq!(difference(&other, &own), expected);
    }
}
