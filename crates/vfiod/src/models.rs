//! The device models as the command line shows them.

use serde::Serialize;
use vfiod_core::Device;

use crate::config::{Config, DeviceConfig, Problem};

/// The value of a model's option.
pub(crate) type OptionValue = serde_json::Value;

/// A model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Model {
    /// Its name.
    pub(crate) name: String,
    /// What it is, in a line.
    pub(crate) summary: String,
    /// Its options.
    pub(crate) options: Vec<ModelOption>,
}

/// An option of a model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelOption {
    /// Its name.
    pub(crate) name: String,
    /// What may be written.
    pub(crate) values: String,
    /// What it has if nothing is written.
    pub(crate) default: String,
    /// What it does.
    pub(crate) summary: String,
}

/// The value of an option on the command line: a number, true or false or a list as JSON has
/// them; anything else is a string.
pub(crate) fn option_value(text: &str) -> OptionValue {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Every model.
pub(crate) fn all() -> Vec<Model> {
    Vec::new()
}

/// What only shows when the devices of a configuration are built.
pub(crate) fn mistakes(config: &Config) -> Vec<Problem> {
    let mistake = |device: &DeviceConfig| {
        let what = build(config, device).err()?;
        let key = format!("device.{}", device.name);
        Some(Problem { span: device.span.clone(), key, what, help: None })
    };
    config.devices.iter().filter_map(mistake).collect()
}

/// Builds a device.
///
/// # Errors
/// What is wrong with its options, in words.
pub(crate) fn build(config: &Config, device: &DeviceConfig) -> Result<Box<dyn Device>, String> {
    let _ = config;
    Err(device.model.clone())
}
