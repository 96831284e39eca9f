//! From a configuration to devices and parents: models, their options, and where they are.

use std::ops::Range;

use vfiod_config::{
    BuildError, Config, DeviceConfig, Models, OptionSetting, Options, ParentConfig, Problem,
    SriovConfig,
};
use vfiod_core::Device;
use vfiod_mdev::{Parent, ParentSpec};
use vfiod_pci::{BusKind, Fitting, Role, Sriov};

/// Finds the mistakes of a configuration that only show when its devices and parents are made.
pub fn find_mistakes(config: &Config, models: &Models) -> Vec<Problem> {
    let roles = roles(config).unwrap_or_default();
    let device = |(index, device): (usize, &DeviceConfig)| {
        let role = roles.get(index).cloned().unwrap_or_default();
        let error = build(models, config, device, role).err()?;
        let key = format!("device.{}", device.name);
        Some(mistake(error, key, &device.options, &device.span))
    };
    let parent = |parent: &ParentConfig| {
        let error = build_parent(models, parent).err()?;
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
    models: &Models,
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
    models.build(&device.model, &settings(&device.options), fitting)
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

/// Builds a parent.
///
/// # Errors
/// What is wrong with its options.
pub(crate) fn build_parent(
    models: &Models,
    parent: &ParentConfig,
) -> Result<(ParentSpec, Box<dyn Parent>), BuildError> {
    models.build_parent(&parent.model, &parent.name, &settings(&parent.options))
}

fn settings(options: &[OptionSetting]) -> Options {
    options.iter().map(|given| (given.name.clone(), given.value.clone())).collect()
}
