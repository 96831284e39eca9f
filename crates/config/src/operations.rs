//! Operations: what an operator can ask of a device that runs, beyond what every device can do.
//!
//! A model says in its type what they are ([`OperatedModel::Operation`]). What an operation changes for good
//! is an option of the model, so that a configuration can say it: an operation is judged first by the options
//! that it leads to, then carried out.

use std::fmt;
use std::pin::Pin;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vfiod_core::{DeviceRef, Errno, Error, Result};
use vfiod_pci::ModelRef;

use crate::model::ConfiguredModel;
use crate::options::{self, OptionInfo, Options};

/// What a model's operations are: an enum with `#[serde(rename_all = "kebab-case", deny_unknown_fields)]`, one
/// variant with named fields an operation, also where there are none (`Flush {}`). Each variant and field has a
/// doc comment. In JSON an operation is an object with one key, its name, and an object of its arguments:
/// `{"resize": {"size": 4096}}`.
pub trait ModelOperation: DeserializeOwned + JsonSchema + Send + 'static {}

impl<T: DeserializeOwned + JsonSchema + Send + 'static> ModelOperation for T {}

/// A model with operations; [`Models::operated`](crate::Models::operated) serves it.
pub trait OperatedModel: ConfiguredModel {
    /// The operations.
    type Operation: ModelOperation;

    /// The options that make what runs. Called under the device's lock.
    fn options(&self) -> Self::Options;

    /// Changes the options to those that make what runs after the operation, and settles what the
    /// operation leaves open. Changes nothing else and takes no lock; what it refuses has not begun.
    ///
    /// # Errors
    /// What is wrong with the operation, and what would be right.
    fn plan(operation: &mut Self::Operation, options: &mut Self::Options) -> Result<()>;

    /// Carries an operation out, on a thread of whoever asked and without a lock of the device:
    /// [`ModelRef::step`] reaches the model, and what may wait is done between steps. A path that somebody
    /// may hold up is reached by a thread that may be lost (`vfiod_directories`).
    /// [`OperatedModel::options`] gives from then on what was planned. One operation of a device is
    /// carried out at a time.
    ///
    /// # Errors
    /// What has failed; then nothing has changed.
    fn operate(device: &ModelRef<Self>, operation: Self::Operation) -> Result<Operated>;
}

/// What is still to end after an operation: it was carried out, and something that was begun before goes on. An
/// error is what then could not be done.
pub type Ending = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// An operation that was carried out.
#[derive(Default)]
pub struct Operated {
    /// What came of it, in JSON.
    pub result: Value,
    /// Whoever asked waits for this, and other operations and changes do not. Where that takes too long, it
    /// goes on without them.
    pub ending: Option<Ending>,
}

impl Operated {
    /// An operation with this result that has ended.
    ///
    /// # Panics
    /// If the result is none that JSON has, such as a map with keys that are no strings.
    pub fn with(result: impl Serialize) -> Self {
        let result = serde_json::to_value(result).expect("a result that JSON has");
        Self { result, ending: None }
    }
}

impl fmt::Debug for Operated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends_later = self.ending.is_some();
        f.debug_struct("Operated")
            .field("result", &self.result)
            .field("ends_later", &ends_later)
            .finish()
    }
}

/// An operation that was judged and can be carried out.
pub struct Planned {
    /// The options of what runs, without those that are as by default.
    pub before: Options,
    /// The options of what runs afterwards, without those that are as by default.
    pub after: Options,
    operate: Box<dyn FnOnce() -> Result<Operated> + Send>,
}

impl Planned {
    /// Carries it out; see [`OperatedModel::operate`].
    ///
    /// # Errors
    /// As [`OperatedModel::operate`].
    pub fn operate(self) -> Result<Operated> {
        (self.operate)()
    }
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planned").field("after", &self.after).finish_non_exhaustive()
    }
}

/// An operation of a model, described for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationInfo {
    /// Its name.
    pub name: String,
    /// What it does.
    pub summary: String,
    /// Its arguments, in the order of the variant's fields.
    pub arguments: Vec<OptionInfo>,
}

/// The operations of one model, whichever devices are made of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operations {
    is_one: fn(&DeviceRef) -> bool,
    schema: fn() -> Value,
    plan: fn(&DeviceRef, Value) -> Result<Planned>,
}

impl Operations {
    pub(crate) fn of<M: OperatedModel>() -> Self {
        Self {
            is_one: |device| ModelRef::<M>::of(device).is_some(),
            schema: schema::<M>,
            plan: plan::<M>,
        }
    }

    /// Whether a device is made of the model.
    pub(crate) fn are_of(&self, device: &DeviceRef) -> bool {
        (self.is_one)(device)
    }

    /// A JSON schema of the operations.
    pub(crate) fn schema(&self) -> Value {
        (self.schema)()
    }

    pub(crate) fn plan(&self, device: &DeviceRef, operation: Value) -> Result<Planned> {
        (self.plan)(device, operation)
    }
}

fn schema<M: OperatedModel>() -> Value {
    options::schema_of::<M::Operation>().into()
}

fn plan<M: OperatedModel>(device: &DeviceRef, operation: Value) -> Result<Planned> {
    let invalid = |what: String| Error::new(Errno::INVAL, what);
    let name = device.name();
    let mut operation: M::Operation = serde_json::from_value(operation)
        .map_err(|error| invalid(format!("no operation of {name}: {error}")))?;
    let Some(device) = ModelRef::<M>::of(device) else {
        return Err(invalid(format!("{name} is of another model")));
    };
    let mut options = device.step(|model, _| model.options())?;
    let defaults = serde_json::to_value(M::Options::default()).unwrap_or_default();
    let in_json = |options: &M::Options| match serde_json::to_value(options) {
        Ok(Value::Object(mut options)) => {
            options.retain(|key, value| *value != defaults[key]);
            Ok(options)
        }
        _ => Err(invalid(format!("the options of {name} are no object"))),
    };
    let before = in_json(&options)?;
    M::plan(&mut operation, &mut options)?;
    let after = in_json(&options)?;
    Ok(Planned { before, after, operate: Box::new(move || M::operate(&device, operation)) })
}

/// The operations of an enum, in the order of its variants.
pub(crate) fn help<O: ModelOperation>() -> Vec<OperationInfo> {
    let schema = options::schema_of::<O>();
    let variants = schema.get("oneOf").and_then(Value::as_array);
    let operation = |variant: &Value| {
        let (name, arguments) = variant["properties"].as_object()?.iter().next()?;
        let default = |argument: &Value, required| match &argument["default"] {
            Value::Null if required => "required".to_owned(),
            default => options::written(default),
        };
        let arguments = options::described(arguments, default);
        let summary = options::summary(variant["description"].as_str().unwrap_or_default());
        Some(OperationInfo { name: name.clone(), summary, arguments })
    };
    variants.into_iter().flatten().filter_map(operation).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations of a disk.
    #[derive(Deserialize, JsonSchema)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    enum Operation {
        /// Changes its size. It may be smaller.
        Resize {
            /// Bytes.
            size: u64,
            /// Also if it becomes smaller.
            #[serde(default)]
            force: bool,
        },
        /// Forgets what is kept.
        ForgetAll {},
        /// Gives it a name.
        Rename(Name),
    }

    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    struct Name {
        /// The new one.
        name: Option<String>,
    }

    #[test]
    fn help_of_operations_comes_from_their_enum() {
        let lines = |operation: OperationInfo| {
            let of = |o: OptionInfo| {
                format!("  {} = {}: {} [{}]", o.name, o.values, o.summary, o.default)
            };
            let first = format!("{}: {}", operation.name, operation.summary);
            std::iter::once(first)
                .chain(operation.arguments.into_iter().map(of))
                .collect::<Vec<_>>()
        };
        let help: Vec<_> = help::<Operation>().into_iter().flat_map(lines).collect();
        assert_eq!(
            help,
            [
                "resize: changes its size",
                "  size = a number from 0 to 2^64 - 1: bytes [required]",
                "  force = true or false: also if it becomes smaller [false]",
                "forget-all: forgets what is kept",
                "rename: gives it a name",
                "  name = a string: the new one [none]",
            ]
        );
    }
}
