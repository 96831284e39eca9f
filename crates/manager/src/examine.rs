//! What options name outside of the program, looked at before anything is served or changed: what only the start
//! would show otherwise, and devices that name one thing and cannot both have it. The start, `serve --check`, `add`
//! and a reload are judged here alike.

use std::collections::{BTreeSet, HashMap, HashSet};

use vfiod_config::{Claim, Config, Conflict, DeviceConfig, Models, Options, Problem};
use vfiod_core::{Errno, Error, Result};

use crate::plan::Unit;

/// What keeps a configuration from being served.
#[derive(Debug, Default)]
pub struct Examination {
    /// Mistakes, with their places.
    pub problems: Vec<Problem>,
    /// What processes of the same program use now, as if it were served already, with its place.
    pub in_use: Vec<Problem>,
    /// The errors of all these.
    errnos: Vec<Errno>,
}

/// A change of what is served: units that go, and units that come.
pub(crate) struct Change<'c> {
    pub(crate) old: &'c Config,
    pub(crate) gone: &'c [Unit],
    pub(crate) new: &'c Config,
    pub(crate) come: &'c [Unit],
}

/// Who has a thing.
type Users<'c> = HashMap<String, Vec<(&'c DeviceConfig, Claim)>>;

/// Examines what the options of a configuration's devices name, as [`ConfiguredModel::claims`] and
/// [`ConfiguredModel::examine`] do. Nothing is changed. Waits for directories that are held up, but not for ever.
///
/// [`ConfiguredModel::claims`]: vfiod_config::ConfiguredModel::claims
/// [`ConfiguredModel::examine`]: vfiod_config::ConfiguredModel::examine
pub fn examine(config: &Config, models: &Models) -> Examination {
    let mut examination = Examination::default();
    let mut users = Users::new();
    for device in &config.devices {
        examination.look(device, models, |_| false);
        examination.judge(device, claims(device, models), &mut users);
    }
    examination
}

/// Examines what a change brings, as [`examine`] does: what the devices of before have is no obstacle to those that
/// have it then. Returns the names of devices that come and take something from those that go, too.
pub(crate) fn examine_change(
    change: &Change<'_>,
    models: &Models,
) -> (Examination, BTreeSet<String>) {
    let is_one_of = |units: &[Unit], device: &DeviceConfig| {
        units.iter().any(|unit| matches!(unit, Unit::Device(plan) if plan.name == device.name))
    };
    let (come, kept): (Vec<_>, Vec<_>) =
        change.new.devices.iter().partition(|device| is_one_of(change.come, device));
    let (mut examination, mut taking) = (Examination::default(), BTreeSet::new());
    let come: Vec<_> = come.into_iter().map(|device| (device, claims(device, models))).collect();
    if come.iter().any(|(_, claims)| !claims.is_empty()) {
        let mut users = Users::new();
        for device in kept {
            // Served as it is, whatever there is to say about it.
            Examination::default().judge(device, claims(device, models), &mut users);
        }
        let gone = change.old.devices.iter().filter(|device| is_one_of(change.gone, device));
        let left: HashSet<_> =
            gone.flat_map(|device| claims(device, models)).map(|claim| claim.identity).collect();
        let served: HashSet<_> = left.iter().chain(users.keys()).cloned().collect();
        for (device, claims) in come {
            if claims.iter().any(|claim| left.contains(&claim.identity)) {
                taking.insert(device.name.clone());
            }
            examination.look(device, models, |identity| served.contains(identity));
            examination.judge(device, claims, &mut users);
        }
    } else {
        come.iter().for_each(|(device, _)| examination.look(device, models, |_| false));
    }
    (examination, taking)
}

fn options(device: &DeviceConfig) -> Options {
    device.options.iter().map(|set| (set.name.clone(), set.value.clone())).collect()
}

fn claims(device: &DeviceConfig, models: &Models) -> Vec<Claim> {
    // What is wrong with the options themselves is found where the device is made.
    models.claims(&device.model, &options(device)).unwrap_or_default()
}

impl Examination {
    /// Refuses what was found; `say` makes a text of it.
    ///
    /// # Errors
    /// `EBUSY`, `ETIMEDOUT`: that is all that is wrong; `EINVAL`.
    pub(crate) fn refuse(self, say: impl FnOnce(Vec<Problem>) -> String) -> Result<()> {
        let Self { mut problems, in_use, errnos } = self;
        problems.extend(in_use);
        if problems.is_empty() {
            return Ok(());
        }
        let are_all = |errno: &Errno| errnos.iter().all(|found| found == errno);
        let errno = [Errno::BUSY, Errno::TIMEDOUT].into_iter().find(are_all);
        let what = format!("{}\nnothing was changed", say(problems).trim_end());
        Err(Error::new(errno.unwrap_or(Errno::INVAL), what))
    }

    /// Looks at what a device names; that it is in use by who `is_served` is no obstacle.
    fn look(&mut self, device: &DeviceConfig, models: &Models, is_served: impl Fn(&str) -> bool) {
        let Ok(findings) = models.examine(&device.model, &options(device)) else { return };
        for finding in findings {
            if finding.in_use && finding.identity.as_deref().is_some_and(&is_served) {
                continue;
            }
            let place = if finding.in_use { &mut self.in_use } else { &mut self.problems };
            place.push(problem(device, finding.option, chain(&finding.refusal), None));
            self.errnos.push(finding.refusal.errno());
        }
    }

    /// Judges what a device takes beside those before it.
    fn judge<'c>(&mut self, device: &'c DeviceConfig, claims: Vec<Claim>, users: &mut Users<'c>) {
        // A thing has several identities: one is told.
        let mut told = HashSet::new();
        for claim in claims {
            let others = users.entry(claim.identity.clone()).or_default();
            let conflict = others
                .iter()
                .find_map(|(other, theirs)| collision(device, &claim, (other, theirs)))
                .filter(|_| told.insert(claim.option));
            self.errnos.extend(conflict.iter().map(|_| Errno::INVAL));
            self.problems.extend(conflict);
            others.push((device, claim));
        }
    }
}

fn problem(device: &DeviceConfig, option: &str, what: String, help: Option<String>) -> Problem {
    let given = device.options.iter().find(|given| given.name == option);
    let span = given.map_or(device.span.clone(), |given| given.span.clone());
    Problem { span, key: key(device, option), what, help }
}

fn key(device: &DeviceConfig, option: &str) -> String {
    format!("device.{}.options.{option}", device.name)
}

fn collision(
    device: &DeviceConfig,
    claim: &Claim,
    (other, theirs): (&DeviceConfig, &Claim),
) -> Option<Problem> {
    let name = &claim.name;
    let taken = format!("{name} is `{}` already", key(other, theirs.option));
    if other.name == device.name {
        return Some(problem(device, claim.option, taken, Some("name it once".to_owned())));
    }
    Some(match claim.sharing.conflict(&theirs.sharing)? {
        Conflict::Taken(remedy) => problem(device, claim.option, taken, Some(remedy.to_owned())),
        Conflict::Differs(option) => {
            let what = format!(
                "`{option}` is another one than that of `device.{}`, which has {name} as well",
                other.name
            );
            let help = "devices that share it have it with the same options";
            problem(device, &option, what, Some(help.to_owned()))
        }
    })
}

/// An error with its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.message().to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
