//! Definitions of instances, and starting instances from them.

use uuid::Uuid;
use vfiod_core::{Errno, Error, Result};

use crate::definitions::{Definition, Definitions, Listing, Start};
use crate::events::EventKind;
use crate::examine::chain;
use crate::manager::{Manager, NewInstance};

/// What is to be changed of a definition.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// When it starts from now on.
    pub start: Option<Start>,
    /// Attributes to be set, added at the end if they are new.
    pub set: Vec<(String, String)>,
    /// Attributes to be left out.
    pub unset: Vec<String>,
}

impl Manager {
    fn store(&self) -> Result<&Definitions> {
        self.definitions.as_ref().ok_or_else(|| {
            let what = "this daemon keeps no definitions: its configuration has no \
                        `definitions` under [mdev]";
            Error::new(Errno::OPNOTSUPP, what)
        })
    }

    /// Starts what is defined to start by itself.
    pub(super) fn start_defined(&self) {
        let Some(store) = &self.definitions else { return };
        let listing = match store.list() {
            Ok(listing) => listing,
            Err(error) => {
                tracing::error!(%error, "the definitions cannot be read: nothing is started");
                return;
            }
        };
        for definition in listing.definitions {
            let (uuid, parent) = (definition.uuid, definition.parent.clone());
            if definition.start == Start::Auto
                && let Err(error) = self.create_defined(definition)
            {
                let error = chain(&error);
                tracing::error!(%uuid, parent, error, "a defined instance did not start");
            }
        }
    }

    /// Creates the instance of a definition, and remembers why that failed.
    fn create_defined(&self, definition: Definition) -> Result<vfiod_mdev::Instance> {
        let key = (definition.parent.clone(), definition.uuid);
        let created = self.create(instance_of(definition));
        let mut failures = vfiod_sync::lock(&self.start_failures);
        match &created {
            Ok(_) => failures.remove(&key),
            Err(error) => failures.insert(key, chain(error)),
        };
        created
    }

    /// Why a definition did not start when that was tried last; `None`: it started, or was not tried.
    pub fn start_failure(&self, definition: &Definition) -> Option<String> {
        let key = (definition.parent.clone(), definition.uuid);
        vfiod_sync::lock(&self.start_failures).get(&key).cloned()
    }

    /// What is known of an earlier start says nothing of a definition that has changed.
    fn forget_start(&self, uuid: Uuid, parent: Option<&str>) {
        vfiod_sync::lock(&self.start_failures).retain(|(known, failed), _| {
            *failed != uuid || parent.is_some_and(|parent| parent != known)
        });
    }

    /// Creates an instance that has no definition, as [`Manager::create`].
    ///
    /// # Errors
    /// As [`Manager::create`]; `EEXIST`: its UUID is defined, and what was asked for would differ from
    /// the definition.
    pub fn create_undefined(&self, new: NewInstance) -> Result<vfiod_mdev::Instance> {
        if let (Some(store), Some(uuid)) = (&self.definitions, new.uuid) {
            let parents = store.parents_of(uuid)?;
            if !parents.is_empty() {
                let what = format!(
                    "{uuid} is defined under {}: start it with `start {uuid}`, remove the definition \
                     with `undefine {uuid}`, or choose another UUID",
                    parents.join(" and ")
                );
                return Err(Error::new(Errno::EXIST, what));
            }
        }
        self.create(new)
    }

    /// The definition of an instance, if it has one.
    pub fn definition_of(&self, instance: &vfiod_mdev::Instance) -> Option<Definition> {
        let store = self.definitions.as_ref()?;
        store.get(instance.uuid(), Some(instance.parent())).ok().flatten()
    }

    /// Every definition, and the files that could not be read as one.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the daemon keeps no definitions; errors of the file system.
    pub fn definitions(&self) -> Result<Listing> {
        self.store()?.list()
    }

    /// Whether an instance of a definition is there.
    pub fn is_running(&self, definition: &Definition) -> bool {
        let instance = self.bus.instance(definition.uuid);
        instance.is_some_and(|instance| instance.parent() == definition.parent)
    }

    /// A definition; `parent` where a UUID is defined for several.
    ///
    /// # Errors
    /// `ENOENT`: there is none; errors of reading its file.
    pub fn definition(&self, uuid: Uuid, parent: Option<&str>) -> Result<Definition> {
        let none = || Error::new(Errno::NOENT, format!("there is no definition {uuid}"));
        self.store()?.get(uuid, parent)?.ok_or_else(none)
    }

    /// Adds a definition, and starts nothing.
    ///
    /// # Errors
    /// `ENODEV`, `EINVAL`, `ENOENT`, `EACCES`: no such parent, type or attribute, or it can only
    /// be read; errors of writing its file.
    pub fn define(&self, new: NewInstance, start: Start) -> Result<Definition> {
        let store = self.store()?;
        let NewInstance { parent, type_id, uuid, attributes } = new;
        self.check_attributes(&parent, &type_id, &attributes)?;
        let uuid = uuid.unwrap_or_else(Uuid::new_v4);
        let mut definition = Definition::new(uuid, parent, type_id);
        definition.start = start;
        definition.attrs = attributes;
        store.define(&definition)?;
        tracing::info!(%uuid, parent = definition.parent, mdev_type = definition.mdev_type, "defined");
        self.emit(EventKind::Defined, &uuid.to_string());
        Ok(definition)
    }

    /// Adds a definition of an instance as it is now.
    ///
    /// # Errors
    /// `ENOENT`: there is no such instance; errors of writing its file.
    pub fn define_running(&self, uuid: Uuid, start: Start) -> Result<Definition> {
        let instance = self.find_instance(uuid)?;
        let attributes =
            instance.mdev_type().attributes.iter().filter(|attribute| attribute.writable);
        let value = |attribute: &vfiod_mdev::AttributeInfo| {
            Ok((attribute.name.clone(), instance.attribute(&attribute.name)?))
        };
        let new = NewInstance {
            parent: instance.parent().to_owned(),
            type_id: instance.mdev_type().id.clone(),
            uuid: Some(uuid),
            attributes: attributes.map(value).collect::<Result<_>>()?,
        };
        self.define(new, start)
    }

    fn check_attributes(
        &self,
        parent: &str,
        type_id: &str,
        attributes: &[(String, String)],
    ) -> Result<()> {
        let Some(status) = self.bus.parent(parent) else {
            let known = self.bus.parents();
            let known: Vec<_> = known.iter().map(|parent| parent.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let what = format!("there is no parent `{parent}`; there is: {known}");
            return Err(Error::new(Errno::NODEV, what));
        };
        let types = &status.types;
        if !types.iter().any(|mdev_type| mdev_type.info.id == type_id) {
            let known: Vec<_> = types.iter().map(|mdev_type| mdev_type.info.id.as_str()).collect();
            let what =
                format!("parent {parent} has no type `{type_id}`; its types: {}", known.join(", "));
            return Err(Error::new(Errno::INVAL, what));
        }
        attributes
            .iter()
            .try_for_each(|(name, value)| self.bus.check_attribute(parent, type_id, name, value))
    }

    /// Changes a definition; an instance of it that runs stays as it is.
    ///
    /// # Errors
    /// As [`Manager::define`]; `ENOENT`: an attribute to be left out is not in it.
    pub fn modify(&self, uuid: Uuid, parent: Option<&str>, change: &Change) -> Result<Definition> {
        let changed = self.store()?.modify(uuid, parent, |definition| {
            self.check_attributes(&definition.parent, &definition.mdev_type, &change.set)?;
            definition.start = change.start.unwrap_or(definition.start);
            for name in &change.unset {
                let before = definition.attrs.len();
                definition.attrs.retain(|(known, _)| known != name);
                if definition.attrs.len() == before {
                    let what = format!("definition {uuid} does not set `{name}`");
                    return Err(Error::new(Errno::NOENT, what));
                }
            }
            for (name, value) in &change.set {
                match definition.attrs.iter_mut().find(|(known, _)| known == name) {
                    Some((_, old)) => old.clone_from(value),
                    None => definition.attrs.push((name.clone(), value.clone())),
                }
            }
            Ok(())
        })?;
        self.forget_start(uuid, parent);
        self.emit(EventKind::Modified, &uuid.to_string());
        Ok(changed)
    }

    /// Removes a definition. An instance of it that runs stays until it is removed.
    ///
    /// # Errors
    /// Errors of removing its file.
    pub fn undefine(&self, uuid: Uuid, parent: Option<&str>) -> Result<()> {
        self.store()?.undefine(uuid, parent)?;
        self.forget_start(uuid, parent);
        tracing::info!(%uuid, "undefined");
        self.emit(EventKind::Undefined, &uuid.to_string());
        Ok(())
    }

    /// Starts what is defined.
    ///
    /// # Errors
    /// `ENOENT`: there is no such definition; as [`Manager::create`].
    pub fn start_definition(
        &self,
        uuid: Uuid,
        parent: Option<&str>,
    ) -> Result<vfiod_mdev::Instance> {
        self.create_defined(self.definition(uuid, parent)?)
    }
}

fn instance_of(definition: Definition) -> NewInstance {
    let Definition { uuid, parent, mdev_type, attrs, start: _, other: _ } = definition;
    NewInstance { parent, type_id: mdev_type, uuid: Some(uuid), attributes: attrs }
}
