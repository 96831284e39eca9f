//! Changes of the configuration while the daemon runs: adding and removing a device, and reading the
//! file again.
//!
//! Each is a change of the configuration's text ([`vfiod_config::Document`]). What runs is compared
//! with what the new text asks for, unit by unit: what is the same stays untouched, what differs is
//! removed and added. Everything that can be refused is refused before anything is changed.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vfiod_config::{Config, Document, LoadError, Options, ParentConfig, Problem, Problems};
use vfiod_core::{DeviceRef, Errno, Error, OpenPause, Result};
use vfiod_mdev::CreationPause;

use crate::build;
use crate::departure;
use crate::event_log::owner_name;
use crate::examine::{Change, examine_change};
use crate::leaving::Leaving;
use crate::manager::Manager;
use crate::paths;
use crate::plan::{self, Unit};
use crate::sandbox;

/// What to do with devices that are to be removed and in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUsePolicy {
    /// Change nothing, and name them.
    Refuse,
    /// Ask their users to close them, and revoke their files after this time.
    RevokeAfter(Duration),
}

/// A change of the configuration that can remove devices in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removing {
    /// [`Manager::delete`] of a device of this name.
    Device(String),
    /// [`Manager::reload`].
    Reload,
}

/// Where a device comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Origin {
    /// The configuration file.
    File,
    /// The command line of the daemon.
    CommandLine,
    /// It was added while the daemon ran.
    Added,
    /// A parent of mediated devices made it.
    Instance,
}

/// What a change did, by the names of devices, containers and parents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Changes {
    /// New ones.
    pub added: Vec<String>,
    /// Removed ones.
    pub removed: Vec<String>,
    /// Removed and added again, as something of them differs.
    pub changed: Vec<String>,
    /// How many stayed untouched.
    pub kept: usize,
    /// Notes for the user: that a removed and an added device may be one that was renamed.
    pub notes: Vec<String>,
}

/// The difference between what runs and what is asked for.
pub(crate) struct Difference {
    /// What runs and is not asked for, or not as it runs.
    pub(crate) gone: Vec<Unit>,
    /// What is asked for and does not run, or not as asked.
    pub(crate) new: Vec<Unit>,
    pub(crate) parents_gone: Vec<ParentConfig>,
    pub(crate) parents_new: Vec<ParentConfig>,
    /// The new ones that take something, such as an image, from those that are gone.
    pub(crate) taking: BTreeSet<String>,
    pub(crate) changes: Changes,
}

impl Difference {
    /// The names of all that it removes or adds.
    fn names(&self) -> impl Iterator<Item = &str> {
        let Changes { added, removed, changed, .. } = &self.changes;
        added.iter().chain(removed).chain(changed).map(String::as_str)
    }
}

/// What makes sure that nothing that a change removes is in use, but what its users were asked to close.
#[derive(Default)]
pub(crate) struct Cleared {
    devices: Vec<OpenPause>,
    parents: Vec<CreationPause>,
    _leaving: Option<Leaving>,
}

fn invalid(problems: impl std::fmt::Display) -> Error {
    Error::new(Errno::INVAL, problems.to_string().trim_end().to_owned())
}

impl Manager {
    /// The configuration that runs, as a file that makes it again.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the daemon serves something that no file can say, such as a descriptor that
    /// its parent process passed.
    pub fn configuration(&self) -> Result<String> {
        Ok(self.document(&vfiod_sync::lock(&self.document))?.text())
    }

    fn document<'d>(&self, document: &'d Option<Document>) -> Result<&'d Document> {
        document.as_ref().ok_or_else(|| {
            let what = "this daemon serves a socket that was passed to it, which no configuration \
                        file can say; start it with a file to change its devices while it runs";
            Error::new(Errno::OPNOTSUPP, what)
        })
    }

    /// Where a device comes from.
    pub fn origin(&self, device: &DeviceRef) -> Origin {
        if !self.stack().has(device.name()) {
            return Origin::Instance;
        }
        match &*vfiod_sync::lock(&self.document) {
            Some(document) if document.is_added(device.name()) => Origin::Added,
            Some(document) if document.path().is_some() => Origin::File,
            _ => Origin::CommandLine,
        }
    }

    /// Adds a device: `section` has the keys of its section in a configuration file.
    ///
    /// # Errors
    /// `EEXIST`: there is a device of this name; `EINVAL`: mistakes of the section, by their keys, and what is wrong
    /// with what its options name; `EBUSY`: somebody has that, or the new device would change another one; errors of
    /// the model, the socket or the kernel. Nothing has changed.
    pub fn add(&self, name: &str, section: &Options) -> Result<Changes> {
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        self.leaving.check([name], None)?;
        let old = self.document(&vfiod_sync::lock(&self.document))?.clone();
        if old.config().devices.iter().any(|device| device.name == name) {
            let what = format!("device.{name}: there is a device of this name already");
            return Err(Error::new(Errno::EXIST, what));
        }
        let by_key = |problems: vfiod_config::Problems| invalid(problems.by_key());
        let new = old.with_device(name, section, &self.models).map_err(by_key)?;
        let difference = self.judge(&old, &new, Vec::new(), |problems| problems.by_key())?;
        others(name, &difference, "adding")?;
        self.apply(new, difference, Cleared::default())
    }

    /// Removes a device of the configuration. One of the file comes back when that is read again. Waits
    /// for its users as long as `in_use` gives them.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name; `EBUSY`: it is in use, or being removed already, or its
    /// removal would change another one; `EINVAL`: others depend on it.
    pub fn delete(&self, name: &str, in_use: InUsePolicy) -> Result<Changes> {
        self.change(&Removing::Device(name.to_owned()), in_use)
    }

    fn plan_delete(&self, name: &str) -> Result<(Document, Difference)> {
        self.find_configured(name)?;
        let old = self.document(&vfiod_sync::lock(&self.document))?.clone();
        let by_key = |problems: vfiod_config::Problems| invalid(problems.by_key());
        let new = old.without_device(name, &self.models).map_err(by_key)?;
        let difference = self.difference(&old, &new)?;
        if difference.gone.iter().all(|unit| unit.name() != name) {
            let what = format!("{name} belongs to a container: change the file and reload it");
            return Err(Error::new(Errno::INVAL, what));
        }
        others(name, &difference, "removing")?;
        Ok((new, difference))
    }

    /// Refuses opens of a device of the configuration for as long as the result exists, so that it can
    /// be removed when its users have closed it.
    ///
    /// # Errors
    /// `ENOENT`: there is none of this name; `EINVAL`: it is an instance, or belongs to a container.
    pub fn pause_opens(&self, name: &str) -> Result<Vec<OpenPause>> {
        self.find_configured(name)?;
        let pauses = self.stack().pause_opens(name);
        if pauses.is_empty() {
            let what = format!("{name} belongs to a container: change the file and reload it");
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(pauses)
    }

    /// Checks that there is a device of this name, and that it is no instance.
    fn find_configured(&self, name: &str) -> Result<()> {
        let device = self.find(name)?;
        if self.origin(&device) == Origin::Instance {
            let what = format!("{name} is an instance of a parent: remove it with `remove {name}`");
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(())
    }

    /// Reads the configuration file again, and adds, removes and changes what differs. Devices
    /// that were added while the daemon ran, and instances, stay. Waits for the users of what is removed as
    /// long as `in_use` gives them; then the file is read once more.
    ///
    /// # Errors
    /// `EINVAL`: mistakes of the file, with place and remedy; `EBUSY`: a device that is to be removed
    /// is in use, whose owner the message names, or another change is removing it, or somebody has what a
    /// device is to have; `EOPNOTSUPP`: there is no file. In these cases nothing has changed. Errors of a model, a
    /// socket or the kernel: what was removed by then was made again, as the message says. `EIO`: that failed, too.
    pub fn reload(&self, in_use: InUsePolicy) -> Result<Changes> {
        self.change(&Removing::Reload, in_use)
    }

    fn plan_reload(&self) -> Result<(Document, Difference)> {
        let old = self.document(&vfiod_sync::lock(&self.document))?.clone();
        let Some(path) = old.path() else {
            let what = "this daemon was started without a configuration file";
            return Err(Error::new(Errno::OPNOTSUPP, what));
        };
        let new = old.reloaded(path, &self.models).map_err(|error| match error {
            LoadError::Wrong(problems) => invalid(problems),
            LoadError::Unreadable(ref path, ref cause) => {
                let hint = vfiod_sandbox::hint(cause.kind(), Some(path));
                Error::new(Errno::INVAL, format!("{error}: {cause}{hint}"))
            }
            error => invalid(error),
        })?;
        let fixed = fixed(old.config(), &new);
        let difference = self.judge(&old, &new, fixed, |problems| problems.to_string())?;
        Ok((new, difference))
    }

    /// Judges what a change brings before anything is changed, and says what it changes. `mistakes` are known
    /// already; `say` makes a text of mistakes.
    fn judge(
        &self,
        old: &Document,
        new: &Document,
        mut mistakes: Vec<Problem>,
        say: impl Fn(Problems) -> String,
    ) -> Result<Difference> {
        mistakes.extend(self.mistakes(old, new)?);
        if !mistakes.is_empty() {
            return Err(invalid(say(new.problems(mistakes))));
        }
        sandbox::check(old.config(), new.config(), &self.models)?;
        let mut difference = self.difference(old, new)?;
        let (old, config) = (old.config(), new.config());
        let change = Change { old, gone: &difference.gone, new: config, come: &difference.new };
        let (found, taking) = examine_change(&change, &self.models);
        found.refuse(|mistakes| say(new.problems(mistakes)))?;
        difference.taking = taking;
        Ok(difference)
    }

    /// What a change would do now.
    fn plan(&self, change: &Removing) -> Result<(Document, Difference)> {
        match change {
            Removing::Device(name) => self.plan_delete(name),
            Removing::Reload => self.plan_reload(),
        }
    }

    fn change(&self, change: &Removing, in_use: InUsePolicy) -> Result<Changes> {
        match in_use {
            InUsePolicy::Refuse => self.finish_change(change, None),
            InUsePolicy::RevokeAfter(grace) => {
                let leaving = self.begin_change(change)?;
                departure::ask_users(leaving.devices(), grace);
                self.finish_change(change, Some(leaving))
            }
        }
    }

    /// Begins a change: nobody can open any more what it will remove. Whoever has it open can be asked to
    /// close it ([`request_close`](crate::request_close)) until [`Manager::finish_change`]. Other changes
    /// can be made meanwhile, but for those of the same things (`EBUSY`).
    ///
    /// # Errors
    /// As [`Manager::delete`] and [`Manager::reload`]; nothing has changed.
    pub fn begin_change(&self, change: &Removing) -> Result<Leaving> {
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        let (_, difference) = self.plan(change)?;
        self.leaving.check(difference.names(), None)?;
        let units = difference.gone.iter().map(|unit| unit.name());
        let pauses = units.clone().flat_map(|unit| self.stack().pause_opens(unit)).collect();
        let parents = difference.parents_gone.iter().map(|parent| parent.name.as_str());
        let is_of_parent = |instance: &vfiod_mdev::Instance| {
            difference.parents_gone.iter().any(|parent| parent.name == instance.parent())
        };
        let instances = self.bus.instances().into_iter().filter(is_of_parent);
        let instances = instances.map(|instance| instance.device().clone()).collect();
        let names = units.chain(parents).map(str::to_owned).collect();
        Ok(self.leaving.claim(names, pauses, instances))
    }

    /// Makes a change. Files of what `leaving` has are revoked; what is removed besides must not be in
    /// use.
    ///
    /// # Errors
    /// As [`Manager::delete`] and [`Manager::reload`].
    pub fn finish_change(&self, change: &Removing, leaving: Option<Leaving>) -> Result<Changes> {
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        let (new, difference) = self.plan(change)?;
        self.leaving.check(difference.names(), leaving.as_ref())?;
        let cleared = self.check_use(&difference, leaving)?;
        self.apply(new, difference, cleared)
    }

    /// The mistakes that a change would make.
    ///
    /// # Errors
    /// `ETIMEDOUT`: somebody holds up a directory that is new.
    pub(crate) fn mistakes(&self, old: &Document, new: &Document) -> Result<Vec<Problem>> {
        let known = paths::of(old.config(), &self.models);
        build::mistakes_beyond(&known, new.config(), &self.models)
    }

    fn difference(&self, old: &Document, new: &Document) -> Result<Difference> {
        let runs = self.stack().plans();
        let wanted = plan::units(new.config());
        let stays = |unit: &Unit| wanted.iter().any(|wanted| unit.serves_as(wanted));
        let (kept, gone): (Vec<_>, Vec<_>) = runs.into_iter().partition(stays);
        let is_kept = |unit: &Unit| kept.iter().any(|kept| kept.name() == unit.name());
        let new_units: Vec<_> = wanted.iter().filter(|unit| !is_kept(unit)).cloned().collect();
        let same = |one: &ParentConfig, other: &ParentConfig| {
            let options = |parent: &ParentConfig| -> Vec<_> {
                parent.options.iter().map(|set| (set.name.clone(), set.value.clone())).collect()
            };
            (&one.name, &one.model) == (&other.name, &other.model) && options(one) == options(other)
        };
        // One that could not be registered again after a change that failed is as good as new.
        let registered = self.bus.parent_names();
        let is_registered = |parent: &&ParentConfig| registered.contains(&parent.name);
        let old_parents: Vec<_> =
            old.config().parents.iter().filter(is_registered).cloned().collect();
        let new_parents = &new.config().parents;
        let missing = |from: &[ParentConfig], in_: &[ParentConfig]| -> Vec<ParentConfig> {
            let is_missing = |one: &&ParentConfig| !in_.iter().any(|other| same(one, other));
            from.iter().filter(is_missing).cloned().collect()
        };
        let parents_gone = missing(&old_parents, new_parents);
        let parents_new = missing(new_parents, &old_parents);
        let names = |units: &[Unit], parents: &[ParentConfig]| -> BTreeSet<String> {
            let units = units.iter().map(|unit| unit.name().to_owned());
            units.chain(parents.iter().map(|parent| parent.name.clone())).collect()
        };
        let (before, after) = (names(&gone, &parents_gone), names(&new_units, &parents_new));
        let changes = Changes {
            added: after.difference(&before).cloned().collect(),
            removed: before.difference(&after).cloned().collect(),
            changed: before.intersection(&after).cloned().collect(),
            kept: kept.len() + new_parents.len() - parents_new.len(),
            notes: renamed(&gone, &new_units),
        };
        let taking = BTreeSet::new();
        Ok(Difference { gone, new: new_units, parents_gone, parents_new, taking, changes })
    }

    /// Checks that nothing that is to be removed is in use, but what `leaving` has. It cannot be used from
    /// then on until the result is dropped.
    fn check_use(&self, difference: &Difference, leaving: Option<Leaving>) -> Result<Cleared> {
        let is_leaving = |name: &str| leaving.as_ref().is_some_and(|leaving| leaving.has(name));
        let units: Vec<_> =
            difference.gone.iter().map(Unit::name).filter(|name| !is_leaving(name)).collect();
        let parents = difference.parents_gone.iter().map(|parent| parent.name.as_str());
        let parents: Vec<_> = parents.filter(|name| !is_leaving(name)).collect();
        let departures: Vec<_> =
            units.iter().flat_map(|unit| self.stack().departures_of_unit(unit)).collect();
        let cleared =
            departure::past_departures(&departures, || self.refuse_use(&units, &parents))?;
        Ok(Cleared { _leaving: leaving, ..cleared })
    }

    /// Checks that nothing of these is in use.
    fn refuse_use(&self, units: &[&str], parents: &[&str]) -> Result<Cleared> {
        let mut cleared = Cleared::default();
        let mut users = Vec::new();
        for unit in units {
            let (pauses, in_use) = self.stack().pause_opens_of_unused(unit);
            cleared.devices.extend(pauses);
            for device in in_use {
                for file in device.status().files {
                    users.push(format!("{} by {}", device.name(), owner_name(&file.owner)));
                }
            }
        }
        for parent in parents {
            match self.bus.pause_creation_if_unused(parent) {
                Ok(pause) => cleared.parents.push(pause),
                Err(error) if error.errno() == Errno::BUSY => users.push(error.to_string()),
                // It has gone by itself.
                Err(_) => {}
            }
        }
        if users.is_empty() {
            return Ok(cleared);
        }
        let what = format!(
            "in use: {}; nothing was changed. Close what uses them, or give their users a deadline \
             (--deadline 5s)",
            users.join(", ")
        );
        Err(Error::new(Errno::BUSY, what))
    }

    pub(crate) fn register_parent(&self, parent: &ParentConfig) -> anyhow::Result<()> {
        let register = || {
            let (spec, ops) = build::build_parent(&self.models, parent)?;
            anyhow::Ok(self.bus.register(spec, ops)?)
        };
        let registration =
            register().map_err(|error| error.context(format!("parent {}", parent.name)))?;
        self.add_parent(registration, &parent.model);
        Ok(())
    }
}

/// Refuses a change of one device that would change others.
fn others(name: &str, difference: &Difference, what: &str) -> Result<()> {
    let Changes { added, removed, changed, .. } = &difference.changes;
    let all = added.iter().chain(removed).chain(changed);
    let others: Vec<_> = all.filter(|other| *other != name).map(String::as_str).collect();
    if others.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{what} {name} would remove and add again: {}; write the change into the file and reload it",
        others.join(", ")
    );
    Err(Error::new(Errno::BUSY, what))
}

/// Removed and added units that may be the same under another name.
fn renamed(gone: &[Unit], new: &[Unit]) -> Vec<String> {
    let mut notes = Vec::new();
    for old in gone {
        let same = new.iter().find(|new| {
            new.name() != old.name() && new.sockets().iter().any(|s| old.sockets().contains(s))
        });
        if let Some(new) = same {
            let (old, new) = (old.name(), new.name());
            notes.push(format!("{new} has a socket of {old}: {old} was removed and {new} added"));
        }
    }
    notes
}

/// What a file says differently that cannot change while the daemon runs.
fn fixed(old: &Config, new: &Document) -> Vec<Problem> {
    let config = new.config();
    let differs = [
        ("log", old.log != config.log || old.log_format != config.log_format),
        ("poll", old.poll != config.poll),
        ("threads", old.threads != config.threads),
        ("limits", old.limits != config.limits),
        ("dma_files", old.dma_files != config.dma_files),
        ("mdev", old.mdev != config.mdev),
        ("control", old.control != config.control),
        ("metrics", old.metrics != config.metrics),
        ("sandbox", old.sandbox != config.sandbox),
    ];
    let problem = |key: &str| Problem {
        span: new.span_of(key),
        key: key.to_owned(),
        what: "this cannot change while the daemon runs".to_owned(),
        help: Some("restart the daemon, or put back what was there".to_owned()),
    };
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| problem(key)).collect()
}
