//! The models and parents that a program can serve, by name: what a configuration file can make, and from which
//! options.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value};
use vfiod_core::{Device, DeviceRef, Errno, Error};
use vfiod_mdev::{Parent, ParentSpec};
use vfiod_pci::{Fitting, Function};

use crate::build_error::BuildError;
use crate::examined::{Claim, Finding};
use crate::model::{ConfiguredModel, ConfiguredParent, Needs};
use crate::nearest::nearest;
use crate::operations::{self, OperatedModel, OperationInfo, Operations, Planned};
use crate::options::{self, ModelOptions, OptionInfo, Options};

/// A model or parent, described for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// What it is, in a line.
    pub summary: String,
    /// Its options, in the order of the structure's fields.
    pub options: Vec<OptionInfo>,
    /// What an operator can ask of a device that runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationInfo>,
    /// What it needs of the kernel.
    #[serde(skip)]
    pub needs: Needs,
}

type Look<T> = fn(&ModelInfo, &Options) -> Result<Vec<T>, BuildError>;
type Portable = fn(&ModelInfo, &Options) -> Result<Options, BuildError>;
type StatusSchema = fn(&mut SchemaGenerator) -> Option<Schema>;
type Build = fn(&ModelInfo, &Options, Fitting) -> Result<Box<dyn Device>, BuildError>;
type BuildParent =
    fn(&ModelInfo, &str, &Options) -> Result<(ParentSpec, Box<dyn Parent>), BuildError>;

/// The models and parents that a program can serve: one table for the configuration file, for
/// help, and for making devices.
///
/// ```
/// use vfiod_config::Models;
///
/// let models = Models::new();
/// let error = models.build("edu", &Default::default(), Default::default()).err().unwrap();
/// assert_eq!(error.to_string(), "there is no model `edu`; it has no model at all");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Models {
    models: Vec<(ModelInfo, Build)>,
    examinations: Vec<(String, Look<Claim>, Look<Finding>)>,
    portable: Vec<(String, Portable)>,
    statuses: Vec<(String, StatusSchema)>,
    parents: Vec<(ModelInfo, BuildParent)>,
    operations: Vec<Operations>,
}

impl Models {
    /// A table without a model.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a model. A later one of the same name replaces an earlier one.
    #[must_use]
    pub fn model<M: ConfiguredModel>(mut self, name: &str) -> Self {
        fn build<M: ConfiguredModel>(
            info: &ModelInfo,
            options: &Options,
            fitting: Fitting,
        ) -> Result<Box<dyn Device>, BuildError> {
            let model = M::configured(options::read(&info.name, &info.options, options)?)?;
            Ok(Box::new(Function::fitted(model, fitting)?))
        }
        let info = describe::<M::Options>(name, M::SUMMARY, M::NEEDS);
        self.models.retain(|(known, _)| known.name != name);
        self.models.push((info, build::<M>));
        let claims: Look<Claim> =
            |info, options| Ok(M::claims(&options::read(&info.name, &info.options, options)?));
        let examine: Look<Finding> =
            |info, options| Ok(M::examine(&options::read(&info.name, &info.options, options)?));
        self.examinations.retain(|(known, ..)| known != name);
        self.examinations.push((name.to_owned(), claims, examine));
        let portable: Portable =
            |info, options| options::portable::<M::Options>(&info.name, &info.options, options);
        self.portable.retain(|(known, _)| known != name);
        self.portable.push((name.to_owned(), portable));
        self.statuses.retain(|(known, _)| known != name);
        self.statuses.push((name.to_owned(), M::status_schema));
        self
    }

    /// Adds a model with operations. A later one of the same name replaces an earlier one.
    #[must_use]
    pub fn operated<M: OperatedModel>(self, name: &str) -> Self {
        let mut models = self.model::<M>(name);
        if let Some((info, _)) = models.models.last_mut() {
            info.operations = operations::help::<M::Operation>();
        }
        models.operations.push(Operations::of::<M>());
        models
    }

    /// Adds a parent of mediated devices. A later one of the same name replaces an earlier one.
    #[must_use]
    pub fn parent<P: ConfiguredParent>(mut self, name: &str) -> Self {
        fn build<P: ConfiguredParent>(
            info: &ModelInfo,
            name: &str,
            options: &Options,
        ) -> Result<(ParentSpec, Box<dyn Parent>), BuildError> {
            Ok(P::configured(name, options::read(&info.name, &info.options, options)?)?)
        }
        let info = describe::<P::Options>(name, P::SUMMARY, P::NEEDS);
        self.parents.retain(|(known, _)| known.name != name);
        self.parents.push((info, build::<P>));
        self
    }

    /// Every model, in the order in which they were added.
    pub fn models(&self) -> impl Iterator<Item = &ModelInfo> + Clone {
        self.models.iter().map(|(info, _)| info)
    }

    /// The schemas of what models report of themselves, and those that they refer to, by names in the
    /// components of an OpenAPI document.
    pub fn status_schemas(&self) -> (Vec<Value>, Map<String, Value>) {
        let at = |settings: &mut SchemaSettings| {
            settings.definitions_path = "/components/schemas".into();
        };
        let mut generator =
            SchemaSettings::draft2020_12().with(at).for_serialize().into_generator();
        let schemas = self.statuses.iter().filter_map(|(_, schema)| schema(&mut generator));
        let schemas = schemas.map(Value::from).collect();
        (schemas, generator.take_definitions(true))
    }

    /// Every parent, in the order in which they were added.
    pub fn parents(&self) -> impl Iterator<Item = &ModelInfo> + Clone {
        self.parents.iter().map(|(info, _)| info)
    }

    fn operations_of(&self, device: &DeviceRef) -> Result<&Operations, Error> {
        let operations = self.operations.iter().find(|operations| operations.are_of(device));
        operations.ok_or_else(|| {
            let what = format!("{} is of a model that has no operations", device.name());
            Error::new(Errno::OPNOTSUPP, what)
        })
    }

    /// A JSON schema of the operations of a device, whoever made it.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: its model has none.
    pub fn operations_schema(&self, device: &DeviceRef) -> Result<Value, Error> {
        Ok(self.operations_of(device)?.schema())
    }

    /// Judges an operation of a device, whoever made it, and says which options it leads to.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: its model has none; `EINVAL`: it has no such one; as [`OperatedModel::plan`], and as
    /// [`DeviceRef::step`].
    pub fn plan_operation(&self, device: &DeviceRef, operation: Value) -> Result<Planned, Error> {
        self.operations_of(device)?.plan(device, operation)
    }

    /// Makes a device that fits in with what is around it.
    ///
    /// # Errors
    /// What is wrong with the name or an option, and what would be right.
    pub fn build(
        &self,
        name: &str,
        options: &Options,
        fitting: Fitting,
    ) -> Result<Box<dyn Device>, BuildError> {
        let (info, build) = find(&self.models, name)?;
        build(info, options, fitting)
    }

    /// What a device of a model uses outside of the program: see [`ConfiguredModel::claims`].
    ///
    /// # Errors
    /// What is wrong with the name or an option, and what would be right.
    pub fn claims(&self, name: &str, options: &Options) -> Result<Vec<Claim>, BuildError> {
        let (info, _) = find(&self.models, name)?;
        let found = self.examinations.iter().find(|(known, ..)| known == name);
        found.map_or_else(|| Ok(Vec::new()), |(_, claims, _)| claims(info, options))
    }

    /// Examines what the options of a model name: see [`ConfiguredModel::examine`].
    ///
    /// # Errors
    /// What is wrong with the name or an option, and what would be right.
    pub fn examine(&self, name: &str, options: &Options) -> Result<Vec<Finding>, BuildError> {
        let (info, _) = find(&self.models, name)?;
        let found = self.examinations.iter().find(|(known, ..)| known == name);
        found.map_or_else(|| Ok(Vec::new()), |(.., examine)| examine(info, options))
    }

    /// What options say of a device of a model that its clients can tell: all but those that are about this
    /// machine ([`OptionInfo::is_local`]), with the defaults of those that are not written.
    ///
    /// # Errors
    /// What is wrong with the name or an option, and what would be right.
    pub fn portable_options(&self, name: &str, options: &Options) -> Result<Options, BuildError> {
        let (info, _) = find(&self.models, name)?;
        let portable = self.portable.iter().find(|(known, _)| known == name);
        portable.map_or_else(|| Ok(Options::new()), |(_, portable)| portable(info, options))
    }

    /// Makes a parent of the kind `kind`, called `name`.
    ///
    /// # Errors
    /// What is wrong with the kind or an option, and what would be right.
    pub fn build_parent(
        &self,
        kind: &str,
        name: &str,
        options: &Options,
    ) -> Result<(ParentSpec, Box<dyn Parent>), BuildError> {
        let (info, build) = find(&self.parents, kind)?;
        build(info, name, options)
    }
}

fn describe<O: ModelOptions>(name: &str, summary: &str, needs: Needs) -> ModelInfo {
    let (name, summary) = (name.to_owned(), summary.to_owned());
    let (options, operations) = (options::help::<O>(), Vec::new());
    ModelInfo { name, summary, options, operations, needs }
}

fn find<'t, B>(table: &'t [(ModelInfo, B)], name: &str) -> Result<&'t (ModelInfo, B), BuildError> {
    table.iter().find(|(info, _)| info.name == name).ok_or_else(|| {
        let known: Vec<_> = table.iter().map(|(info, _)| info.name.clone()).collect();
        let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
        BuildError::UnknownModel { name: name.to_owned(), nearest, known }
    })
}
