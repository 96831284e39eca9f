//! From plans to devices and parents: models, their options, and where they are.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use vfiod_config::{BuildError, Config, Models, OptionSetting, Options, ParentConfig, Problem};
use vfiod_core::{Device, Result, Token};
use vfiod_mdev::{Parent, ParentSpec};
use vfiod_pci::{BusKind, Fitting, Role, Sriov};

use crate::paths::{self, Found, NamedPath};
use crate::plan::{self, DevicePlan, SriovPlan};

/// What the virtual functions of each physical function share with it, by its name.
pub(crate) type Siblings = HashMap<String, Sriov>;

/// Finds the mistakes of a configuration that only show when its devices and parents are made, and what is
/// in the way of its paths. The span of a mistake is empty where only its key says where it is.
pub fn find_mistakes(config: &Config, models: &Models) -> Vec<Problem> {
    mistakes_beyond(&[], config, models).unwrap_or_else(|error| {
        let (key, what) = (String::new(), format!("{error:#}"));
        vec![Problem { span: 0..0, key, what, help: None }]
    })
}

/// As [`find_mistakes`]; what is at the paths of `known` is not looked at, as they are in use already.
///
/// # Errors
/// `ETIMEDOUT`: somebody holds up the directory of another path.
pub(crate) fn mistakes_beyond(
    known: &[NamedPath],
    config: &Config,
    models: &Models,
) -> Result<Vec<Problem>> {
    let paths = paths::of(config, models);
    let found = paths::look(&paths, |path| known.contains(path))?;
    Ok(mistakes(&paths, found, config, models))
}

fn mistakes(
    paths: &[NamedPath],
    found: Vec<Found>,
    config: &Config,
    models: &Models,
) -> Vec<Problem> {
    let mut siblings = Siblings::new();
    let mut problems = Vec::new();
    for device in &config.devices {
        let plan = plan::device(config, device);
        if let Err(error) = build(models, &plan, &mut siblings) {
            let key = format!("device.{}", device.name);
            problems.push(mistake(error, key, &device.options, &device.span));
        }
    }
    for parent in &config.parents {
        let built = build_parent(models, parent);
        if let Err(error) = built.and_then(|(spec, _)| Ok(spec.validate()?)) {
            let key = format!("parent.{}", parent.name);
            problems.push(mistake(error, key, &parent.options, &parent.span));
        }
    }
    problems.extend(paths::collisions(paths, &found));
    problems.extend(found.into_iter().filter_map(|found| found.obstacle));
    problems
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

/// A device that was built outside any registry.
pub struct Built {
    /// The device.
    pub device: Box<dyn Device>,
    /// Of a virtual function: its physical function, and the VF token that the configuration presents for
    /// that one's clients.
    pub physical: Option<(Box<dyn Device>, Option<Token>)>,
}

impl fmt::Debug for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Built")
            .field("is_virtual", &self.physical.is_some())
            .finish_non_exhaustive()
    }
}

/// Builds one device of a configuration, outside any registry; `None` if there is none of this name. A
/// virtual function comes with its physical function, whose user decides who may open it.
///
/// # Errors
/// What is wrong with its options; virtual functions that contradict themselves.
pub fn build_device(
    config: &Config,
    models: &Models,
    name: &str,
) -> Result<Option<Built>, BuildError> {
    let Some(device) = config.devices.iter().find(|device| device.name == name) else {
        return Ok(None);
    };
    let (plan, mut siblings) = (plan::device(config, device), Siblings::new());
    let device = build(models, &plan, &mut siblings)?;
    let physical = match &plan.sriov {
        SriovPlan::Virtual(physical) => {
            Some((build(models, physical, &mut siblings)?, physical.token))
        }
        SriovPlan::None | SriovPlan::Physical(_) => None,
    };
    Ok(Some(Built { device, physical }))
}

/// Builds a device.
///
/// # Errors
/// What is wrong with its options; virtual functions that contradict themselves.
pub(crate) fn build(
    models: &Models,
    plan: &DevicePlan,
    siblings: &mut Siblings,
) -> Result<Box<dyn Device>, BuildError> {
    let bus = plan.place.as_ref().map(|place| &place.bus);
    let fitting = Fitting {
        multifunction: plan.multifunction,
        integrated: bus.is_some_and(|bus| bus.kind == BusKind::Root && bus.bridge.is_none()),
        role: role(plan, siblings)?,
    };
    let options: Options = plan.options.iter().cloned().collect();
    models.build(&plan.model, &options, fitting)
}

fn role(plan: &DevicePlan, siblings: &mut Siblings) -> vfiod_core::Result<Role> {
    let mut shared = |name: &str, functions| match siblings.get(name) {
        Some(sriov) => Ok(sriov.clone()),
        None => {
            let sriov = Sriov::new(functions)?;
            siblings.insert(name.to_owned(), sriov.clone());
            Ok(sriov)
        }
    };
    match &plan.sriov {
        SriovPlan::None => Ok(Role::Alone),
        SriovPlan::Physical(functions) => shared(&plan.name, *functions).map(Role::Physical),
        SriovPlan::Virtual(physical) => match physical.sriov {
            SriovPlan::Physical(functions) => shared(&physical.name, functions).map(Role::Virtual),
            _ => Ok(Role::Alone),
        },
    }
}

/// Builds a parent.
///
/// # Errors
/// What is wrong with its options.
pub(crate) fn build_parent(
    models: &Models,
    parent: &ParentConfig,
) -> Result<(ParentSpec, Box<dyn Parent>), BuildError> {
    let options = parent.options.iter().map(|set| (set.name.clone(), set.value.clone()));
    models.build_parent(&parent.model, &parent.name, &options.collect())
}
