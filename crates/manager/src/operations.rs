//! Operations of devices that run: what their models offer beyond what every device can do.

use serde_json::Value;
use vfiod_config::{Document, Operated, Planned};
use vfiod_core::{Errno, Error, Result};

use crate::changes::Origin;
use crate::manager::Manager;
use crate::plan;
use crate::sandbox;

impl Manager {
    /// A JSON schema of the operations of a device.
    ///
    /// # Errors
    /// `ENOENT`: there is no such device; `EOPNOTSUPP`: its model has no operations.
    pub fn operations_schema(&self, name: &str) -> Result<Value> {
        self.models.operations_schema(&self.find(name)?)
    }

    /// Carries out an operation of a device. What it changes for good is part of the configuration that
    /// runs ([`Manager::configuration`]) from then on; of an instance it lasts until that is removed.
    ///
    /// # Errors
    /// `ENOENT`: there is no such device; `EOPNOTSUPP`: its model has no operations; `EINVAL`: it has no
    /// such one, or a configuration could not say what it leads to; `EACCES`: the sandbox does not allow a
    /// path; what the model says. Nothing has changed.
    pub fn operate(&self, name: &str, operation: Value) -> Result<Operated> {
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        let device = self.find(name)?;
        self.leaving.check([name], None)?;
        let planned = self.models.plan_operation(&device, operation)?;
        let new = match self.origin(&device) {
            Origin::Instance => None,
            Origin::File | Origin::CommandLine | Origin::Added => {
                self.document_after(name, &planned)?
            }
        };
        let operated = planned.operate()?;
        if let Some(new) = new {
            if let Some(device) = new.config().devices.iter().find(|device| device.name == name) {
                self.stack().set_options(name, &plan::device(new.config(), device).options);
            }
            *vfiod_sync::lock(&self.document) = Some(new);
        }
        tracing::info!(device = name, "operation carried out");
        Ok(operated)
    }

    /// The configuration after an operation; `None`: no text says it, or it stays as it is.
    fn document_after(&self, name: &str, planned: &Planned) -> Result<Option<Document>> {
        let Planned { before, after, .. } = planned;
        let Some(old) = vfiod_sync::lock(&self.document).clone().filter(|_| before != after) else {
            return Ok(None);
        };
        let invalid = |problems: vfiod_config::Problems| {
            Error::new(Errno::INVAL, problems.by_key().to_string().trim_end().to_owned())
        };
        let new = old.with_options(name, before, after, &self.models).map_err(invalid)?;
        let mistakes = self.mistakes(&old, &new)?;
        if !mistakes.is_empty() {
            return Err(invalid(new.problems(mistakes)));
        }
        sandbox::check(old.config(), new.config(), &self.models)?;
        Ok(Some(new))
    }
}
