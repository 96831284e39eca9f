//! Makes a change of the configuration that was judged, as a whole or not at all.
//!
//! What is new is made ready first where it can be there beside what is removed. Where it cannot, what is to be
//! removed goes first; if something fails then, all that is new is removed, and what was there is made again.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use vfiod_config::{Config, Document, ParentConfig, UsageError};
use vfiod_core::{Errno, Error, Result};

use crate::changes::{Changes, Cleared, Difference};
use crate::manager::Manager;
use crate::plan::{self, Unit};
use crate::sockets::Opened;

/// How long is waited for what a device had that was removed, such as an image: its last requests may not have ended.
const UNTIL_FREE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// What a change has done so far.
#[derive(Default)]
struct Done {
    /// Units that were registered, by their names.
    units: Vec<String>,
    parents: Vec<String>,
    has_removed_units: bool,
    has_removed_parents: bool,
}

impl Done {
    fn has_removed(&self) -> bool {
        self.has_removed_units || self.has_removed_parents
    }
}

impl Difference {
    /// Whether a unit that is new can be there only when what goes has gone.
    fn waits(&self, unit: &Unit) -> bool {
        self.taking.contains(unit.name()) || self.gone.iter().any(|gone| gone.excludes(unit))
    }
}

impl Manager {
    /// Makes a change. `_cleared` is dropped at its end, when what it refuses to open has been removed,
    /// or nothing was changed. No user is waited for: files that are open are revoked.
    ///
    /// # Errors
    /// Errors of a model, a socket or the kernel: what was changed by then was changed back. `EIO`: not all of it
    /// could be. The message says which.
    pub(crate) fn apply(
        &self,
        new: Document,
        difference: Difference,
        _cleared: Cleared,
    ) -> Result<Changes> {
        let old = vfiod_sync::lock(&self.document).clone();
        let mut done = Done::default();
        // All that is free now, so that most failures change nothing.
        let (come, gone): (Vec<_>, Vec<_>) =
            (difference.new.iter().collect(), difference.gone.iter().collect());
        let made = Opened::of_units(&come, &gone)
            .and_then(|opened| self.carry_out(new.config(), &difference, opened, &mut done));
        if let Err(error) = made {
            let failure = self.give_up(old, &difference, &done, &error);
            tracing::warn!(error = %failure, "configuration not changed");
            return Err(failure);
        }
        let Difference { changes, .. } = difference;
        let Changes { added, removed, changed, .. } = &changes;
        let (added, removed, changed) = (added.join(","), removed.join(","), changed.join(","));
        tracing::info!(added, removed, changed, kept = changes.kept, "configuration changed");
        *vfiod_sync::lock(&self.document) = Some(new);
        Ok(changes)
    }

    fn carry_out(
        &self,
        new: &Config,
        difference: &Difference,
        mut opened: Opened,
        done: &mut Done,
    ) -> anyhow::Result<()> {
        let (stack, removes) = (self.stack(), !difference.gone.is_empty());
        let (mut late, early): (Vec<&Unit>, Vec<&Unit>) =
            difference.new.iter().partition(|unit| difference.waits(unit));
        for unit in early {
            match stack.add(unit.clone(), &self.models, &mut opened) {
                Ok(()) => done.units.push(unit.name().to_owned()),
                // What is removed may give back what is missing.
                Err(error) if removes && is_scarcity(&error) => late.push(unit),
                Err(error) => return Err(error),
            }
        }
        if difference.parents_gone.is_empty() {
            self.add_parents(&difference.parents_new, done)?;
        }
        if removes {
            done.has_removed_units = true;
            let names: Vec<_> = difference.gone.iter().map(Unit::name).collect();
            stack.remove(&names, Duration::ZERO);
        }
        stack.forget_buses(&plan::units(new));
        for unit in late {
            self.add_once_free(unit, &mut opened)?;
            done.units.push(unit.name().to_owned());
        }
        stack.publish()?;
        // Last, as instances of a parent do not come back.
        if !difference.parents_gone.is_empty() {
            done.has_removed_parents = true;
            for parent in &difference.parents_gone {
                self.remove_parent(&parent.name, Duration::ZERO);
            }
            self.add_parents(&difference.parents_new, done)?;
        }
        stack.serve()
    }

    /// Registers a unit after others were removed.
    fn add_once_free(&self, unit: &Unit, opened: &mut Opened) -> anyhow::Result<()> {
        let end = Instant::now() + UNTIL_FREE;
        loop {
            match self.stack().add(unit.clone(), &self.models, opened) {
                Err(error) if errno_of(&error) == Some(Errno::BUSY) && Instant::now() < end => {
                    thread::sleep(PAUSE);
                }
                added => return added,
            }
        }
    }

    fn add_parents(&self, parents: &[ParentConfig], done: &mut Done) -> anyhow::Result<()> {
        for parent in parents {
            self.register_parent(parent)?;
            done.parents.push(parent.name.clone());
        }
        Ok(())
    }

    /// Undoes what a change has done that failed, and says what came of it.
    fn give_up(
        &self,
        old: Option<Document>,
        difference: &Difference,
        done: &Done,
        error: &anyhow::Error,
    ) -> Error {
        let stack = self.stack();
        let names: Vec<_> = done.units.iter().map(String::as_str).collect();
        stack.remove(&names, Duration::ZERO);
        for parent in &done.parents {
            self.remove_parent(parent, Duration::ZERO);
        }
        if !done.has_removed() {
            return failure(error, "nothing was changed");
        }
        let (mut again, mut lost) = (Vec::new(), Vec::new());
        let mut document = old;
        if let Some(document) = &document {
            stack.forget_buses(&plan::units(document.config()));
        }
        for unit in difference.gone.iter().filter(|_| done.has_removed_units) {
            match self.add_again(unit) {
                Ok(()) => again.push(unit.name()),
                Err(error) => {
                    lost.push(format!("{error:#}"));
                    let without = |old: &Document| old.without_device(unit.name(), &self.models);
                    if let Some(Ok(without)) = document.as_ref().map(without) {
                        document = Some(without);
                    }
                }
            }
        }
        for parent in difference.parents_gone.iter().filter(|_| done.has_removed_parents) {
            match self.register_parent(parent) {
                Ok(()) => again.push(&parent.name),
                Err(error) => lost.push(format!("{error:#}")),
            }
        }
        *vfiod_sync::lock(&self.document) = document;
        let again = again.join(", ");
        if lost.is_empty() {
            let outcome = format!(
                "the configuration is as it was: {again} had been removed, and began anew as after a start"
            );
            return failure(error, &outcome);
        }
        let again = if again.is_empty() { String::new() } else { format!(", but for {again}") };
        let outcome = format!(
            "what had been removed for it could not be made again{again}, and is left out: {}; everything else is as it \
             was",
            lost.join("; ")
        );
        Error::new(Errno::IO, failure(error, &outcome).message().to_owned())
    }

    /// Registers and serves a unit that was removed.
    fn add_again(&self, unit: &Unit) -> anyhow::Result<()> {
        let stack = self.stack();
        let mut opened = Opened::of_units(&[unit], &[])?;
        self.add_once_free(unit, &mut opened)?;
        stack
            .publish()
            .and_then(|()| stack.serve())
            .inspect_err(|_| stack.remove(&[unit.name()], Duration::ZERO))
    }
}

fn errno_of(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<Error>().map(Error::errno)
}

/// Whether something was missing that others may give back.
fn is_scarcity(error: &anyhow::Error) -> bool {
    let scarce =
        [Errno::NOMEM, Errno::NOSPC, Errno::DQUOT, Errno::USERS, Errno::MFILE, Errno::NFILE];
    errno_of(error).is_some_and(|errno| scarce.contains(&errno))
}

fn failure(error: &anyhow::Error, outcome: &str) -> Error {
    let core = errno_of(error);
    let kind = core.map_or(ErrorKind::Other, |errno| std::io::Error::from(errno).kind());
    let hint = vfiod_sandbox::hint(kind, None);
    let usage = error.is::<UsageError>().then_some(Errno::INVAL);
    Error::new(core.or(usage).unwrap_or(Errno::IO), format!("{error:#}; {outcome}{hint}"))
}
