//! What options name outside of the program, looked at before anything is served: what only the start would show
//! otherwise, and devices that name one thing and cannot both have it.

use std::collections::HashMap;

use vfiod_config::{Claim, Config, Conflict, DeviceConfig, Models, Options, Problem};

/// What keeps a configuration from being served.
#[derive(Debug, Default)]
pub struct Examination {
    /// Mistakes, with their places.
    pub problems: Vec<Problem>,
    /// What other processes of the same program use now, as if it were served already, with its place.
    pub in_use: Vec<Problem>,
}

/// Examines what the options of a configuration's devices name, as [`ConfiguredModel::examine`] does. Nothing is
/// changed. Waits for directories that are held up, but not for ever.
///
/// [`ConfiguredModel::examine`]: vfiod_config::ConfiguredModel::examine
pub fn examine(config: &Config, models: &Models) -> Examination {
    let mut examination = Examination::default();
    let mut known: HashMap<String, Vec<(&DeviceConfig, Claim)>> = HashMap::new();
    for device in &config.devices {
        let options = device.options.iter().map(|set| (set.name.clone(), set.value.clone()));
        let options: Options = options.collect();
        // What is wrong with the options themselves is found where the device is made.
        let Ok(examined) = models.examine(&device.model, &options) else { continue };
        for finding in examined.findings {
            let what = chain(&finding.refusal);
            let place =
                if finding.in_use { &mut examination.in_use } else { &mut examination.problems };
            place.push(problem(device, finding.option, what, None));
        }
        for claim in examined.claims {
            let others = known.entry(claim.identity.clone()).or_default();
            let conflict = others.iter().find_map(|(other, theirs)| {
                let is_twice = other.name == device.name;
                collision(device, &claim, (other, theirs), is_twice)
            });
            examination.problems.extend(conflict);
            others.push((device, claim));
        }
    }
    examination
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
    is_twice: bool,
) -> Option<Problem> {
    let name = &claim.name;
    let taken = format!("{name} is `{}` already", key(other, theirs.option));
    if is_twice {
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
fn chain(error: &vfiod_core::Error) -> String {
    let mut text = error.message().to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
