//! The device models: what the command line says about them, and how a configured device
//! becomes one.

use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;

use serde::Serialize;
use vfiod_core::Device;
use vfiod_devices::{BuildError, Options};
use vfiod_mdev::{Parent, ParentSpec};
use vfiod_pci::{BusKind, Fitting, Role, Sriov};

use crate::config::{Config, DeviceConfig, OptionSetting, ParentConfig, Problem, SriovConfig};
use crate::output;

/// The value of a model's option.
pub(crate) type OptionValue = serde_json::Value;

/// A model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Model {
    /// Its name.
    pub(crate) name: Cow<'static, str>,
    /// What it is, in a line.
    pub(crate) summary: Cow<'static, str>,
    /// Its options.
    pub(crate) options: Vec<ModelOption>,
}

/// An option of a model.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelOption {
    /// Its name.
    pub(crate) name: Cow<'static, str>,
    /// What may be written.
    pub(crate) values: Cow<'static, str>,
    /// What it has if nothing is written.
    pub(crate) default: Cow<'static, str>,
    /// What it does.
    pub(crate) summary: Cow<'static, str>,
}

/// Every model.
pub(crate) fn all() -> Vec<Model> {
    described(vfiod_devices::models())
}

/// Every kind of parent of mediated devices.
pub(crate) fn parents() -> Vec<Model> {
    described(vfiod_devices::parents())
}

fn described(models: &[vfiod_devices::ModelInfo]) -> Vec<Model> {
    let option = |option: &vfiod_devices::OptionInfo| ModelOption {
        name: option.name.into(),
        values: option.values.into(),
        default: option.default.into(),
        summary: option.summary.into(),
    };
    let model = |model: &vfiod_devices::ModelInfo| Model {
        name: model.name.into(),
        summary: model.summary.into(),
        options: model.options.iter().map(option).collect(),
    };
    models.iter().map(model).collect()
}

/// Builds a parent.
///
/// # Errors
/// What is wrong with its options.
pub(crate) fn build_parent(
    parent: &ParentConfig,
) -> Result<(ParentSpec, Box<dyn Parent>), BuildError> {
    vfiod_devices::build_parent(&parent.model, &parent.name, &settings(&parent.options))
}

fn settings(options: &[OptionSetting]) -> Options {
    options.iter().map(|given| (given.name.clone(), given.value.clone())).collect()
}

/// Runs `vfiod devices`.
pub(crate) fn list(json: bool) -> anyhow::Result<()> {
    let (models, parents) = (all(), parents());
    if json {
        return output::print_json(&serde_json::json!({ "models": models, "parents": parents }));
    }
    let mut text = String::new();
    describe(&mut text, &models);
    text.push_str("\nParents of mediated devices ([parent.NAME] in a configuration file):\n\n");
    describe(&mut text, &parents);
    output::print(&text)
}

fn describe(text: &mut String, models: &[Model]) {
    for model in models {
        let _ = writeln!(text, "{}\n    {}", model.name, model.summary);
        for option in &model.options {
            let _ = writeln!(text, "    {} = {}", option.name, option.values);
            let _ = writeln!(text, "        {} [default: {}]", option.summary, option.default);
        }
    }
}

/// The value of an option on the command line: a number, also hexadecimal, true or false or a
/// list as JSON has them; anything else is a string.
pub(crate) fn option_value(text: &str) -> OptionValue {
    if let Some(number) = text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok())
    {
        return number.into();
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// What only shows when the devices and parents of a configuration are built.
pub(crate) fn mistakes(config: &Config) -> Vec<Problem> {
    let roles = roles(config).unwrap_or_default();
    let device = |(index, device): (usize, &DeviceConfig)| {
        let role = roles.get(index).cloned().unwrap_or_default();
        let error = build(config, device, role).err()?;
        let key = format!("device.{}", device.name);
        Some(mistake(error, key, &device.options, &device.span))
    };
    let parent = |parent: &ParentConfig| {
        let error = build_parent(parent).err()?;
        let key = format!("parent.{}", parent.name);
        Some(mistake(error, key, &parent.options, &parent.span))
    };
    let devices = config.devices.iter().enumerate().filter_map(device);
    devices.chain(config.parents.iter().filter_map(parent)).collect()
}

fn mistake(
    error: BuildError,
    mut key: String,
    options: &[OptionSetting],
    whole: &Range<usize>,
) -> Problem {
    let mut span = whole.clone();
    let (what, help) = match error {
        BuildError::BadValue { option, problem, expected, .. } => {
            key = format!("{key}.options.{option}");
            let given = options.iter().find(|given| given.name == option);
            span = given.map_or(span, |given| given.span.clone());
            (problem, Some(format!("write {expected}")))
        }
        other => (format!("{:#}", anyhow::Error::new(other)), None),
    };
    Problem { span, key, what, help }
}

/// Builds a device.
///
/// # Errors
/// What is wrong with its options.
pub(crate) fn build(
    config: &Config,
    device: &DeviceConfig,
    role: Role,
) -> Result<Box<dyn Device>, BuildError> {
    let slot_of = |device: &DeviceConfig| device.place.map(|(slot, _)| slot);
    let shares = |slot| config.devices.iter().filter(|d| slot_of(d) == Some(slot)).count() > 1;
    let place = device.place.filter(|(slot, _)| shares(*slot));
    let bus = config.bus(device).map(|bus| &config.buses[bus]);
    let fitting = Fitting {
        multifunction: place.map(|(_, function)| function),
        integrated: bus.is_some_and(|bus| bus.kind == BusKind::Root && bus.bridge.is_none()),
        role,
    };
    vfiod_devices::build(&device.model, &settings(&device.options), fitting)
}

/// The SR-IOV role of each device, in the order of the configuration.
///
/// # Errors
/// Virtual functions that contradict themselves.
pub(crate) fn roles(config: &Config) -> vfiod_core::Result<Vec<Role>> {
    let physical = |device: &DeviceConfig| match device.sriov {
        SriovConfig::Physical(functions) => Sriov::new(functions).map(Role::Physical),
        _ => Ok(Role::Alone),
    };
    let mut roles = config.devices.iter().map(physical).collect::<Result<Vec<_>, _>>()?;
    for (index, device) in config.devices.iter().enumerate() {
        if let SriovConfig::Virtual { physical, .. } = device.sriov
            && let Some(Role::Physical(sriov)) = roles.get(physical).cloned()
        {
            roles[index] = Role::Virtual(sriov);
        }
    }
    Ok(roles)
}
